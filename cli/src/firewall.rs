//! What only root sees of the firewall: of which taps it knows.

use std::process::{Command, Stdio};

/// Where nft is; `$PATH` is the user's word.
const PROGRAMS: [&str; 2] = ["/usr/sbin/nft", "/sbin/nft"];
const TAP: &str = "tap-fc-";

/// Returns the taps of machines that banger's table names; none for who is not root.
pub fn taps() -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let Some(program) = PROGRAMS.iter().find(|path| std::path::Path::new(path).exists()) else {
        return Vec::new();
    };
    let listed = Command::new(program)
        .args(["list", "table", "bridge", "banger"])
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    // Without the table there is none.
    listed.map_or_else(|_| Vec::new(), |output| named(&String::from_utf8_lossy(&output.stdout)))
}

fn named(table: &str) -> Vec<String> {
    let words =
        table.split(|character: char| !character.is_ascii_alphanumeric() && character != '-');
    let mut taps: Vec<String> =
        words.filter(|word| word.starts_with(TAP)).map(str::to_owned).collect();
    taps.sort();
    taps.dedup();
    taps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_found_in_elements_and_comments() {
        let table = "table bridge banger {\n  set macs {\n    type ifname . ether_addr\n    elements = { \
                     \"tap-fc-00112233\" . 02:00:00:00:00:01,\n \"tap-pool-1\" . 02:00:00:00:00:02,\n \
                     \"tap-fc-44556677\" . 02:00:00:00:00:03, \"tap-fc-00112233\" . 1.2.3.4 }\n }\n}";
        assert_eq!(named(table), ["tap-fc-00112233", "tap-fc-44556677"]);
        assert_eq!(named(""), [""; 0]);
    }
}
