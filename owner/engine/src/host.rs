//! The real host's facts, from `/proc`, the control group and statvfs(3).

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::seams::{HostError, HostFacts, HostMemory};

/// This host.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxHost;

impl HostFacts for LinuxHost {
    fn memory(&self) -> Result<HostMemory, HostError> {
        let text = read("/proc/meminfo")?;
        let field = |name: &str| {
            meminfo_field(&text, name).ok_or_else(|| HostError {
                what: format!("{name} in /proc/meminfo"),
                source: std::io::ErrorKind::InvalidData.into(),
            })
        };
        let mut memory =
            HostMemory { total: field("MemTotal:")?, available: field("MemAvailable:")? };
        if let Some(limit) = control_group_room() {
            memory.available = memory.available.min(limit);
        }
        Ok(memory)
    }

    fn resident(&self, pid: u32) -> u64 {
        // proc_pid_statm(5): the second number is resident pages.
        fs::read_to_string(format!("/proc/{pid}/statm"))
            .ok()
            .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok())
            .map_or(0, |pages| pages.saturating_mul(rustix::param::page_size() as u64))
    }

    fn cpu_time(&self, pid: u32) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ticks = cpu_ticks(&stat)?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Some(Duration::from_millis(ticks.saturating_mul(1000) / per_second))
    }

    fn free_disk(&self, path: &Path) -> Result<u64, HostError> {
        rustix::fs::statvfs(path).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize)).map_err(
            |source| HostError {
                what: format!("the free space below {}", path.display()),
                source: source.into(),
            },
        )
    }
}

fn read(path: &str) -> Result<String, HostError> {
    fs::read_to_string(path).map_err(|source| HostError { what: path.to_owned(), source })
}

/// Returns a field of proc_meminfo(5), which counts in KiB, in bytes.
fn meminfo_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns user and kernel time of proc_pid_stat(5), fields 14 and 15; the name before, field 2, is in
/// brackets and may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    next()?.checked_add(next()?)
}

/// Returns what the daemon's own control group (v2) leaves; `None` where it sets no limit.
fn control_group_room() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let dir = Path::new("/sys/fs/cgroup").join(group);
    let number = |file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes_and_rubbish_is_no_number() {
        let text = "MemTotal:       24683976 kB\nMemAvailable:   x kB\nBig: 99999999999999999 kB\n";
        assert_eq!(meminfo_field(text, "MemTotal:"), Some(24_683_976 * 1024));
        assert_eq!(meminfo_field(text, "MemAvailable:"), None);
        assert_eq!(meminfo_field(text, "Big:"), None);
        assert_eq!(meminfo_field(text, "Missing:"), None);
    }

    #[test]
    fn cpu_time_is_read_behind_a_name_that_may_hold_anything() {
        let stat = "7 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 300 20 0 0 20 0 1";
        assert_eq!(cpu_ticks(stat), Some(320));
        for bad in ["", "7 (a", "7 (a) S 1 2", "7 (a) S 1 2 3 4 5 6 7 8 9 10 x 20"] {
            assert_eq!(cpu_ticks(bad), None, "{bad}");
        }
        assert!(LinuxHost.cpu_time(std::process::id()).is_some());
        assert_eq!(LinuxHost.cpu_time(u32::MAX), None);
    }

    #[test]
    fn this_host_has_memory_and_disk() {
        let memory = LinuxHost.memory().unwrap();
        assert!(memory.total >= memory.available && memory.available > 0);
        assert!(LinuxHost.resident(std::process::id()) > 0);
        assert_eq!(LinuxHost.resident(u32::MAX), 0);
        assert!(LinuxHost.free_disk(Path::new("/")).is_ok());
        assert!(LinuxHost.free_disk(Path::new("/does/not/exist")).is_err());
    }
}
