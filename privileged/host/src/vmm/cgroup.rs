//! The cgroups of machines: below a unit of their own, so that a restart of the helper's unit
//! neither ends them nor finds its cgroup in use (cgroups(7), version 2 only).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use banger_gates::JailId;
use banger_helper_api::Limits;

use super::mounts;

/// The unit, below the hierarchy's root; it has `Delegate=yes` and no process itself.
const UNIT: &str = "system.slice/banger-vms.service";
/// `cpu.max` is a share of this many microseconds.
const PERIOD: u64 = 100_000;

/// The root of the hierarchy and the controllers that it has.
fn hierarchy() -> Option<(PathBuf, String)> {
    let mount = mounts::all().ok()?.into_iter().find(|mount| mount.kind == "cgroup2")?;
    let controllers = fs::read_to_string(mount.point.join("cgroup.controllers")).ok()?;
    Some((mount.point, controllers))
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

/// Whether there is a cgroup of this id, of whatever owner's machine.
pub(super) fn is_there(id: &JailId) -> bool {
    hierarchy().is_some_and(|(root, _)| root.join(UNIT).join(id.as_str()).exists())
}

/// Removes a machine's cgroup, which need not be there.
pub(super) fn remove(id: &JailId) -> io::Result<()> {
    let Some((root, _)) = hierarchy() else { return Ok(()) };
    match fs::remove_dir(root.join(UNIT).join(id.as_str())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
