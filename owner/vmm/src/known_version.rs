//! A program's version, asked of it once.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long `--version` may take; it takes about 15 ms.
const DEADLINE: Duration = Duration::from_secs(10);

/// Asks the program for its version; `None` where it gives none that `parse` understands.
async fn of_program<V>(program: &Path, parse: fn(&str) -> Option<V>) -> Option<V> {
    let mut command = tokio::process::Command::new(program);
    command.arg("--version").env_clear().current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.ok()?.ok()?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// The version of the program last asked, so that only the first start after an upgrade asks.
#[derive(Debug)]
pub(crate) struct KnownVersion<V> {
    parse: fn(&str) -> Option<V>,
    known: Mutex<Option<(Stamp, V)>>,
}

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

impl<V: Copy> KnownVersion<V> {
    /// Knows nothing yet; `parse` reads what the program prints.
    pub(crate) fn new(parse: fn(&str) -> Option<V>) -> Self {
        Self { parse, known: Mutex::new(None) }
    }

    /// Returns the program's version, asking it only if it is not the one asked before.
    pub(crate) async fn of(&self, program: &Path) -> Option<V> {
        let stamp = Stamp::of(program)?;
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, version)) = known
            && before == stamp
        {
            return Some(version);
        }
        let version = of_program(program, self.parse).await?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((stamp, version));
        Some(version)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn number(output: &str) -> Option<u32> {
        output.strip_prefix("version ")?.trim().parse().ok()
    }

    #[tokio::test]
    async fn a_replaced_program_is_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        let asked = directory.path().join("asked");
        let install = |version: u32| {
            let script =
                format!("#!/bin/sh\necho x >> {}\necho version {version}\n", asked.display());
            let new = directory.path().join("new");
            std::fs::write(&new, script).unwrap();
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(&new, &program).unwrap();
        };
        let known = KnownVersion::new(number);
        for (version, times) in [(7, 1), (8, 2)] {
            install(version);
            for _ in 0..3 {
                assert_eq!(known.of(&program).await, Some(version));
            }
            assert_eq!(std::fs::read_to_string(&asked).unwrap().lines().count(), times);
        }
        std::fs::remove_file(&program).unwrap();
        assert_eq!(known.of(&program).await, None);
    }

    #[tokio::test]
    async fn another_program_has_no_version() {
        assert_eq!(of_program(Path::new("/bin/true"), number).await, None);
        assert_eq!(of_program(Path::new("/nonexistent"), number).await, None);
    }
}
