//! The mounts that this thread sees (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use banger_privileged_sys::unshare_mounts;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

/// Gives this thread, which is to start the jailer, mounts of its own, with an empty `/proc/misc`. So
/// the jailer makes no `userfaultfd` in the jail: that is there for snapshots of Firecracker's, and its
/// number is another device's on another day.
pub(super) fn hide_misc() -> io::Result<()> {
    unshare_mounts()?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    Ok(mount_bind("/dev/null", "/proc/misc")?)
}

/// The mounts at a path and below it, the deepest first and of two the later.
pub(super) fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let text = std::fs::read("/proc/thread-self/mountinfo")?;
    let points = text.split(|byte| *byte == b'\n').filter_map(point);
    let mut points: Vec<_> = points.filter(|point| point.starts_with(path)).collect();
    points.reverse();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    Ok(points)
}

fn point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    Some(PathBuf::from(OsString::from_vec(unescape(field))))
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, others @ ..] = rest {
        rest = others;
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) =
            (first, others)
        {
            bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_as_the_kernel_escapes_them() {
        let line =
            br"36 35 98:0 /mnt1 /a\040b\134c\012\011d rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(point(line).unwrap(), Path::new("/a b\\c\n\td"));
        assert!([&b""[..], b"1 2 3"].iter().all(|none| point(none).is_none()));
        assert_eq!(unescape(br"\04"), br"\04");
        assert_eq!(unescape(br"\048\777"), br"\048\777");
        assert!(!below(Path::new("/")).unwrap().is_empty());
    }
}
