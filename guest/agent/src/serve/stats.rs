//! Resource use, from /proc and the file systems.

use banger_agent_api::StatsReply;

/// Collects what can be read; what cannot stays zero.
pub(super) fn collect() -> StatsReply {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (root_total_bytes, root_free_bytes) = space("/");
    let (work_total_bytes, work_free_bytes) = space("/root");
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    StatsReply {
        agent_rss_kib: agent_rss_kib(),
        load_milli: load.split(' ').next().and_then(milli).unwrap_or(0),
        memory_total_kib: field(&memory, "MemTotal:"),
        memory_available_kib: field(&memory, "MemAvailable:"),
        root_total_bytes,
        root_free_bytes,
        work_total_bytes,
        work_free_bytes,
        processes: load.split([' ', '/']).nth(4).and_then(|count| count.parse().ok()).unwrap_or(0),
    }
}

/// Reads `12.34` as 12340.
fn milli(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.')?;
    let fraction: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    Some(whole.parse::<u64>().ok()? * 1000 + fraction)
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn space(path: &str) -> (u64, u64) {
    rustix::fs::statvfs(path)
        .map(|space| (space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize))
        .unwrap_or_default()
}

/// Adds up the agent's processes: those that run this program. Pages of the program that two of
/// them share count twice.
fn agent_rss_kib() -> u64 {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &std::path::Path| {
        std::fs::metadata(path.join("exe")).map(|file| (file.dev(), file.ino())).ok()
    };
    let own = identity(std::path::Path::new("/proc/self"));
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let numbered = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
            numbered && own.is_some() && identity(path) == own
        })
        .map(|path| {
            let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
            field(&status, "VmRSS:")
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_read_without_floating_point() {
        assert_eq!(milli("0.07"), Some(70));
        assert_eq!(milli("12.5"), Some(12500));
        assert_eq!(milli("x"), None);
    }

    #[test]
    fn this_process_counts_as_an_agent() {
        let stats = collect();
        assert!(stats.agent_rss_kib > 0 && stats.memory_total_kib > stats.memory_available_kib);
        assert!(stats.root_total_bytes > 0 && stats.processes > 0);
    }
}
