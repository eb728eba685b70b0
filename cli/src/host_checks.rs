//! The checks of `doctor` that the command line makes itself: what it needs of the host.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use banger_daemon_api::daemon::{Check, CheckStatus};

use crate::daemon::DaemonBinary;
use crate::subordinate_ids;

/// Where administration tools are that a user's PATH may lack.
const MORE_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// openat2 (5.6) and pidfds (5.3) are used without a fallback.
const LEAST_KERNEL: (u32, u32) = (5, 6);

/// Runs them in the order to show.
pub fn run() -> Vec<Check> {
    let root = rustix::process::geteuid().is_root();
    let mut checks = vec![architecture(env::consts::ARCH), kernel_version(), binary()];
    checks.push(tool("git", "vm run PATH", "git", CheckStatus::Warn));
    checks.push(tool("mmdebstrap", "image pull", "mmdebstrap", CheckStatus::Warn));
    checks.push(tool("apt-get", "kernel pull", "apt", CheckStatus::Warn));
    if !root {
        checks.push(tool("newuidmap", "image pull without root", "uidmap", CheckStatus::Warn));
        checks.push(subordinate_id_ranges());
    }
    checks
}

fn check(
    name: &str,
    status: CheckStatus,
    detail: impl Into<String>,
    hint: Option<String>,
) -> Check {
    Check { name: name.to_owned(), status, detail: detail.into(), hint }
}

fn architecture(architecture: &str) -> Check {
    if architecture == "x86_64" {
        return check("architecture", CheckStatus::Pass, architecture, None);
    }
    check(
        "architecture",
        CheckStatus::Fail,
        format!("banger runs on x86_64 only, and this is {architecture}"),
        Some("use an x86_64 host".to_owned()),
    )
}

fn kernel_version() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match parse_release(&release) {
        Some(version) if version >= LEAST_KERNEL => {
            check("host kernel", CheckStatus::Pass, release, None)
        }
        _ => check(
            "host kernel",
            CheckStatus::Fail,
            format!("{release} is too old"),
            Some(format!("use Linux {}.{} or later", LEAST_KERNEL.0, LEAST_KERNEL.1)),
        ),
    }
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn binary() -> Check {
    match DaemonBinary::find() {
        Ok(binary) => check(
            "bangerd's executable",
            CheckStatus::Pass,
            binary.path().display().to_string(),
            None,
        ),
        Err(error) => check(
            "bangerd's executable",
            CheckStatus::Fail,
            error.message,
            error.hints.into_iter().next(),
        ),
    }
}

fn tool(program: &str, purpose: &str, package: &str, missing: CheckStatus) -> Check {
    match find_program(program) {
        Some(path) => check(program, CheckStatus::Pass, path.display().to_string(), None),
        None => check(
            program,
            missing,
            format!("not found; '{purpose}' needs it"),
            Some(format!("apt-get install {package}")),
        ),
    }
}

fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(MORE_DIRECTORIES.iter().map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| {
            fs::metadata(candidate)
                .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        })
}

fn subordinate_id_ranges() -> Check {
    let uid = nix::unistd::getuid();
    let name = nix::unistd::User::from_uid(uid)
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name);
    if subordinate_ids::missing_for(&name, uid.as_raw()).is_none() {
        return check("subordinate ids", CheckStatus::Pass, format!("{name} has a range"), None);
    }
    check(
        "subordinate ids",
        CheckStatus::Warn,
        format!("{name} has none; 'image pull' without root needs a range of 65536"),
        Some(format!("as root: {}", subordinate_ids::command_for(&name))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(parse_release("6.1.0-18-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse_release("5.10.0"), Some((5, 10)));
        assert_eq!(parse_release("nonsense"), None);
        assert!((5, 10) >= LEAST_KERNEL && (4, 19) < LEAST_KERNEL);
    }

    #[test]
    fn other_architectures_fail() {
        assert_eq!(architecture("aarch64").status, CheckStatus::Fail);
        assert_eq!(architecture("x86_64").status, CheckStatus::Pass);
    }

    #[test]
    fn programs_are_found_or_not() {
        assert!(find_program("sh").is_some_and(|path| path.is_file()));
        assert!(find_program("surely-no-such-program").is_none());
        let missing = tool("surely-no-such-program", "x", "package", CheckStatus::Warn);
        assert_eq!(missing.hint.as_deref(), Some("apt-get install package"));
    }
}
