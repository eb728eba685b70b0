//! QEMU processes of ours that nobody remembers: a daemon killed between starting one and writing
//! down who it is leaves it behind, held and doing nothing, and only its command line tells.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_engine::seams::{Acceleration, VmmError, VmmIdentity, VmmKind};

use super::command_line::agent_socket;
use super::files::RuntimeFiles;
use crate::held::{self, HeldProcess};

/// Finds this user's QEMUs whose runtime directory lies directly in `runtime_root`.
pub(super) fn find(runtime_root: &Path) -> Result<Vec<(PathBuf, VmmIdentity)>, VmmError> {
    let fail = |source| VmmError::Io { act: "looking for QEMU processes".to_owned(), source };
    let host_boot_id = held::host_boot_id().map_err(fail)?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(orphan) = examine(pid, runtime_root, &host_boot_id).map_err(fail)? {
            found.push(orphan);
        }
    }
    Ok(found)
}

fn examine(
    pid: u32,
    runtime_root: &Path,
    host_boot_id: &str,
) -> io::Result<Option<(PathBuf, VmmIdentity)>> {
    let Some(arguments) = arguments_of_our_own(pid) else {
        return Ok(None);
    };
    if recognize(&arguments, runtime_root).is_none() {
        return Ok(None);
    }
    // Held first, then read again: what is reported is true of the process that is held.
    let Some(held) = HeldProcess::open(pid)? else {
        return Ok(None);
    };
    let Some(arguments) = arguments_of_our_own(pid) else {
        return Ok(None);
    };
    let Some((runtime_dir, acceleration)) = recognize(&arguments, runtime_root) else {
        return Ok(None);
    };
    if held.has_ended() {
        return Ok(None);
    }
    let identity = VmmIdentity {
        kind: VmmKind::Qemu,
        acceleration,
        pid,
        start_time: held.start_time(),
        host_boot_id: host_boot_id.to_owned(),
    };
    Ok(Some((runtime_dir, identity)))
}

/// Returns the command line of a process of this user; `None` for others', and for one that is gone.
fn arguments_of_our_own(pid: u32) -> Option<Vec<u8>> {
    let directory = format!("/proc/{pid}");
    if std::fs::metadata(&directory).ok()?.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    std::fs::read(format!("{directory}/cmdline")).ok()
}

/// Returns the runtime directory and the acceleration that a command line names, if it is one of
/// ours.
fn recognize(cmdline: &[u8], runtime_root: &Path) -> Option<(PathBuf, Acceleration)> {
    let arguments: Vec<&OsStr> = cmdline.split(|&byte| byte == 0).map(OsStr::from_bytes).collect();
    let program = Path::new(*arguments.first()?);
    if !super::programs().any(|ours| ours == program) {
        return None;
    }
    let value_after = |option: &str, wanted: &dyn Fn(&str) -> bool| {
        arguments.windows(2).find_map(|pair| {
            let value = pair[1].to_str()?;
            (pair[0] == option && wanted(value)).then(|| value.to_owned())
        })
    };
    let agent = value_after("-chardev", &|value| agent_socket(value).is_some())?;
    let agent = agent_socket(&agent)?;
    let runtime_dir = agent.parent()?;
    let ours = runtime_dir.parent() == Some(runtime_root)
        && RuntimeFiles::below(runtime_dir).agent == agent;
    let acceleration = match value_after("-accel", &|_| true)?.as_str() {
        "kvm" => Acceleration::Kvm,
        _ => Acceleration::Tcg,
    };
    ours.then(|| (runtime_dir.to_owned(), acceleration))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cmdline(words: &[&str]) -> Vec<u8> {
        words.iter().flat_map(|word| word.bytes().chain([0])).collect()
    }

    #[test]
    fn only_our_own_command_lines_are_recognized() {
        let socket = "socket,id=agent,path=/run/b,,x/vms/0123/agent.sock,server=on,wait=off";
        let ours = ["/usr/bin/qemu-system-x86_64", "-accel", "kvm", "-chardev", socket];
        let (directory, acceleration) =
            recognize(&cmdline(&ours), Path::new("/run/b,x/vms")).unwrap();
        assert_eq!(directory, Path::new("/run/b,x/vms/0123"));
        assert_eq!(acceleration, Acceleration::Kvm);

        assert!(recognize(&cmdline(&ours), Path::new("/run/b,x")).is_none());
        assert!(recognize(&cmdline(&ours), Path::new("/run/other")).is_none());
        let mut foreign = ours;
        foreign[0] = "/tmp/qemu-system-x86_64";
        assert!(recognize(&cmdline(&foreign), Path::new("/run/b,x/vms")).is_none());
        for bad in [&b""[..], b"\0", b"/usr/bin/qemu-system-x86_64\0-chardev\0"] {
            assert!(recognize(bad, Path::new("/")).is_none());
        }
    }
}
