//! Which QEMU is installed, where that must be known before it is started for a guest.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;

/// How long `--version` may take; it takes about 15 ms.
const DEADLINE: Duration = Duration::from_secs(10);

/// QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct QemuVersion {
    /// The first number: 7 of 7.2.22.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub micro: u32,
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl QemuVersion {
    /// Reads the first line of `--version`: `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
    fn parse(output: &str) -> Option<Self> {
        let words = output.lines().next()?.strip_prefix("QEMU emulator version ")?;
        let mut numbers = words.split(' ').next()?.split('.').map(|number| number.parse().ok());
        let version =
            Self { major: numbers.next()??, minor: numbers.next()??, micro: numbers.next()?? };
        numbers.next().is_none().then_some(version)
    }

    /// Whether two threads of the translator may run one guest without corrupting it.
    ///
    /// Before 8.1 QEMU reads guest code first and begins to watch its page for writes afterwards.
    /// A guest that changes code while another CPU comes upon it (the kernel's `text_poke`, for
    /// static keys, ftrace and modules; just-in-time compilers) can leave a translation of the old
    /// bytes behind. Linux then meets an `int3` that nobody has set, and panics, or hangs. QEMU's
    /// commit deba78709ae8 "accel/tcg: Always lock pages before translation" closed the gap.
    pub(crate) fn translates_in_parallel(self) -> bool {
        (self.major, self.minor) >= (8, 1)
    }
}

/// Asks the program for its version; `None` where it gives none that we understand.
pub(crate) async fn of_program(program: &Path) -> Option<QemuVersion> {
    let mut command = tokio::process::Command::new(program);
    command.arg("--version").env_clear().current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.ok()?.ok()?;
    QemuVersion::parse(&String::from_utf8_lossy(&output.stdout))
}

/// The version of the program last asked, so that only the first start after an upgrade asks.
#[derive(Debug, Default)]
pub(crate) struct KnownVersion(Mutex<Option<(Stamp, QemuVersion)>>);

/// What tells a program file from the one that replaced it: device, inode, size, and the times of
/// its content's and of its inode's last change in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(u64, u64, u64, [i64; 4]);

impl Stamp {
    fn of(program: &Path) -> Option<Self> {
        let found = std::fs::metadata(program).ok()?;
        let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
        Some(Self(found.dev(), found.ino(), found.size(), times))
    }
}

impl KnownVersion {
    /// Returns the program's version, asking it only if it is not the one asked before.
    pub(crate) async fn of(&self, program: &Path) -> Option<QemuVersion> {
        let stamp = Stamp::of(program)?;
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, version)) = known
            && before == stamp
        {
            return Some(version);
        }
        let version = of_program(program).await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((stamp, version));
        Some(version)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn versions_are_read() {
        let version = |text: &str| {
            QemuVersion::parse(&format!("QEMU emulator version {text}\nCopyright (c) 2003-2022"))
        };
        let debian = version("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)").unwrap();
        assert_eq!(debian, QemuVersion { major: 7, minor: 2, micro: 22 });
        assert!(!debian.translates_in_parallel());
        assert!(!version("8.0.5").unwrap().translates_in_parallel());
        assert!(version("8.1.0").unwrap().translates_in_parallel());
        assert!(version("10.0.2").unwrap().translates_in_parallel());
        for bad in ["", "8", "8.1", "8.1.x", "8.1.0.1", "-8.1.0", "99999999999.1.0"] {
            assert_eq!(version(bad), None, "{bad:?}");
        }
        assert_eq!(QemuVersion::parse(""), None);
        assert_eq!(QemuVersion::parse("qemu-img version 8.1.0"), None);
    }

    #[tokio::test]
    async fn a_replaced_program_is_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("qemu");
        let asked = directory.path().join("asked");
        let install = |version: &str| {
            let script = format!(
                "#!/bin/sh\necho x >> {}\necho QEMU emulator version {version}\n",
                asked.display()
            );
            let new = directory.path().join("new");
            std::fs::write(&new, script).unwrap();
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(&new, &program).unwrap();
        };
        let known = KnownVersion::default();
        for (version, times) in [("7.2.1", 1), ("8.1.0", 2)] {
            install(version);
            for _ in 0..3 {
                assert_eq!(known.of(&program).await.unwrap().to_string(), version);
            }
            assert_eq!(std::fs::read_to_string(&asked).unwrap().lines().count(), times);
        }
        std::fs::remove_file(&program).unwrap();
        assert_eq!(known.of(&program).await, None);
    }

    #[tokio::test]
    async fn a_program_that_is_not_qemu_has_no_version() {
        assert_eq!(of_program(Path::new("/bin/true")).await, None);
        assert_eq!(of_program(Path::new("/nonexistent")).await, None);
    }
}
