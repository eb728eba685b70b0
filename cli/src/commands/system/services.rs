//! The files of the two services, and systemd's part in them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::CliError;

/// `systemctl`, by its one place.
pub const SYSTEMCTL: &str = "/usr/bin/systemctl";
/// Where systemd looks first for units of this machine.
pub const UNITS: &str = "/etc/systemd/system";
/// In the order of their needs: the machines' cgroup, the helper, the daemon, and what stops the
/// machines with the host.
pub const NAMES: [&str; 4] =
    ["banger-vms.service", "bangerd-root.service", "bangerd.service", "banger-shutdown.service"];
const VMS_UNIT: &str = include_str!("../../../systemd/banger-vms.service");
const HELPER_UNIT: &str = include_str!("../../../systemd/bangerd-root.service");
const DAEMON_UNIT: &str = include_str!("../../../systemd/bangerd.service");
const SHUTDOWN_UNIT: &str = include_str!("../../../systemd/banger-shutdown.service");

/// What is in `/etc` besides install.toml and the units.
pub const SYSCTL: (&str, &str) = (
    "/etc/sysctl.d/60-banger.conf",
    "# Written by `banger system install`: guests' packets are passed on.\n\
     net.ipv4.ip_forward = 1\n",
);
/// Keeps udev, and what listens to it, away from guests' disks.
pub const UDEV: (&str, &str) =
    ("/etc/udev/rules.d/05-banger.rules", include_str!("../../../udev/05-banger.rules"));
/// Makes the runtime directory before either service starts.
pub const TMPFILES: &str = "/etc/tmpfiles.d/banger.conf";

/// Where the programs go: the name in the build's directory, and the installed file.
pub const PROGRAMS: [(&str, &str); 3] = [
    ("banger", "/usr/local/bin/banger"),
    ("bangerd", "/usr/local/bin/bangerd"),
    ("bangerd-root", "/usr/local/lib/banger/bangerd-root"),
];

/// The units with the owner's name, ids and groups in them.
pub fn units(owner: &str, uid: u32, gid: u32, groups: &[String]) -> [(PathBuf, String); 4] {
    let fill = |text: &str| {
        text.lines()
            .filter(|line| !groups.is_empty() || !line.contains("@GROUPS@"))
            .map(|line| {
                line.replace("@OWNER@", owner)
                    .replace("@UID@", &uid.to_string())
                    .replace("@GID@", &gid.to_string())
                    .replace("@GROUPS@", &groups.join(" "))
                    + "\n"
            })
            .collect()
    };
    let path = |name| Path::new(UNITS).join(name);
    [
        (path(NAMES[0]), fill(VMS_UNIT)),
        (path(NAMES[1]), fill(HELPER_UNIT)),
        (path(NAMES[2]), fill(DAEMON_UNIT)),
        (path(NAMES[3]), fill(SHUTDOWN_UNIT)),
    ]
}

/// Runs systemctl.
pub fn systemctl(arguments: &[&str]) -> Result<(), CliError> {
    let words = arguments.join(" ");
    let output = Command::new(SYSTEMCTL)
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            CliError::new(format!("cannot run {SYSTEMCTL} {words}")).because(&error)
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    Err(CliError::new(format!("systemctl {words} failed"))
        .because(&std::io::Error::other(said))
        .hint("journalctl -b -u bangerd-root -u bangerd says more"))
}

/// Whether this machine was booted by systemd (`sd_booted(3)`).
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_filled_and_whole() {
        for groups in [vec![], vec!["kvm".to_owned()]] {
            for (path, text) in units("u", 1000, 1001, &groups) {
                assert!(path.starts_with(UNITS));
                assert!(!text.contains('@') || text.contains("SystemCallFilter=@"), "{text}");
                for mark in ["@OWNER@", "@UID@", "@GID@", "@GROUPS@"] {
                    assert!(!text.contains(mark), "{mark}");
                }
            }
        }
        let [_, _, (_, daemon), _] = units("u", 1000, 1001, &["kvm".to_owned()]);
        assert!(daemon.contains("\nUser=1000\nGroup=1001\nSupplementaryGroups=kvm\n"));
        let [_, _, (_, daemon), _] = units("u", 1000, 1001, &[]);
        assert!(!daemon.contains("SupplementaryGroups"));
    }

    #[test]
    fn what_keeps_machines_alive_is_in_both_units() {
        for text in [HELPER_UNIT, DAEMON_UNIT] {
            for line in [
                "Type=notify",
                "KillMode=process",
                "SendSIGKILL=no",
                "RuntimeDirectoryPreserve=yes",
                "NoNewPrivileges=yes",
                "ProtectSystem=strict",
                "UMask=0077",
            ] {
                assert!(text.lines().any(|have| have == line), "{line}");
            }
        }
        assert!(DAEMON_UNIT.lines().any(|line| line == "CapabilityBoundingSet="));
    }
}
