//! The mounts that this thread sees (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Debug)]
pub(super) struct Mount {
    /// Where it is.
    pub(super) point: PathBuf,
    /// What kind of file system it is of.
    pub(super) kind: String,
}

/// All mounts, each after what it lies on.
pub(super) fn all() -> io::Result<Vec<Mount>> {
    let text = std::fs::read("/proc/thread-self/mountinfo")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// The mounts at a path and below it, the deepest first.
pub(super) fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let points = all()?.into_iter().map(|mount| mount.point);
    let mut points: Vec<_> = points.filter(|point| point.starts_with(path)).collect();
    points.reverse();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    Ok(points)
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(4)?)));
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { point, kind: String::from_utf8_lossy(kind).into_owned() })
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
        let mount = parse(line).unwrap();
        assert_eq!(mount.point, Path::new("/a b\\c\n\td"));
        assert_eq!(mount.kind, "ext3");
        assert_eq!(parse(br"1 2 0:1 / /x rw - tmpfs t rw").unwrap().kind, "tmpfs");
        for none in [&b""[..], b"1 2 3", b"1 2 0:1 / /x rw", br"1 2 0:1 / /x rw -"] {
            assert!(parse(none).is_none());
        }
        assert_eq!(unescape(br"\04"), br"\04");
        assert_eq!(unescape(br"\048\777"), br"\048\777");
        assert!(!below(Path::new("/")).unwrap().is_empty());
    }
}
