//! The cgroups of machines: below a unit of their own, so that a restart of the helper's unit
//! neither ends them nor finds its cgroup in use (cgroups(7), version 2 only).

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use banger_gates::{JailId, Refusal};
use banger_helper_api::Limits;
use rustix::fs::XattrFlags;

use crate::{During, Result};

/// The unit, below the hierarchy's root; it has `Delegate=yes` and no process itself.
const UNIT: &str = "system.slice/banger-vms.service";
/// The attribute of a cgroup that says whose it is.
const WHOSE: &str = "trusted.banger";
/// `cpu.max` is a share of this many microseconds.
const PERIOD: u64 = 100_000;

/// The root of the hierarchy, alone or beside those of version 1, and the controllers that it has.
fn hierarchy() -> Option<(&'static Path, String)> {
    let mut roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new).into_iter();
    roots.find_map(|it| Some((it, fs::read_to_string(it.join("cgroup.controllers")).ok()?)))
}

/// The jailer's words for a machine's limits; none where there is no controller for them.
///
/// A limit that is not asked for is written too: the jailer makes a cgroup for the machine only
/// where it has something to write, and else puts it into the unit itself, which may have no process
/// of its own.
pub(super) fn arguments(limits: &Limits) -> Vec<String> {
    let Some((_, controllers)) = hierarchy() else { return Vec::new() };
    let or_max = |number: Option<u64>| number.map_or("max".to_owned(), |number| number.to_string());
    let share = limits.cpu_percent.map(|percent| u64::from(percent) * PERIOD / 100);
    let memory = limits.memory_max_mib.map(|mib| mib.saturating_mul(1 << 20));
    let wanted = [
        ("memory.max", or_max(memory)),
        ("cpu.max", format!("{} {PERIOD}", or_max(share))),
        ("pids.max", or_max(limits.pids_max.map(u64::from))),
    ];
    let has = |file: &str| controllers.split_whitespace().any(|name| file == format!("{name}.max"));
    let mut words = Vec::new();
    for (file, value) in wanted.iter().filter(|(file, _)| has(file)) {
        words.extend(["--cgroup".to_owned(), format!("{file}={value}")]);
    }
    if !words.is_empty() {
        words.extend(["--cgroup-version", "2", "--parent-cgroup", UNIT].map(str::to_owned));
    }
    words
}

/// Whether a process is in a cgroup of a machine.
pub(super) fn holds(pid: i32) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("0::/"));
    lines.any(|path| Path::new(path).starts_with(UNIT) && Path::new(path) != Path::new(UNIT))
}

/// Makes a machine's cgroup, before the jailer would: of helpers that launch machines of one id at
/// the same moment one does. It is told from another's by where this helper's jails are.
///
/// # Errors
/// There is one (refused).
pub(super) fn claim(jails: &Path, id: &JailId) -> Result<()> {
    let Some((root, _)) = hierarchy().filter(|(_, controllers)| !controllers.is_empty()) else {
        return Ok(());
    };
    let path = root.join(UNIT).join(id.as_str());
    let make = || {
        fs::create_dir_all(root.join(UNIT))?;
        fs::create_dir(&path)?;
        let (whose, flags) = (jails.as_os_str().as_bytes(), XattrFlags::CREATE);
        let said = rustix::fs::setxattr(&path, WHOSE, whose, flags).map_err(io::Error::from);
        said.inspect_err(|_| drop(fs::remove_dir(&path)))
    };
    let rule = "a machine of this id has a cgroup, perhaps another's";
    match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Refusal::new("vm_id", rule).into())
        }
        made => made.during("make the cgroup of", id.as_str()),
    }
}

/// Removes a machine's cgroup, which need not be there, unless another helper has claimed it.
pub(super) fn remove(jails: &Path, id: &JailId) -> io::Result<()> {
    let Some((root, _)) = hierarchy() else { return Ok(()) };
    let (path, mut whose) = (root.join(UNIT).join(id.as_str()), [0; 4096]);
    let length = rustix::fs::getxattr(&path, WHOSE, &mut whose);
    if length.is_ok_and(|length| whose[..length] != *jails.as_os_str().as_bytes()) {
        return Ok(());
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
