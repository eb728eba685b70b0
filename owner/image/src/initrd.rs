//! The initrd: the agent as `/init`, and the modules that it loads before it has a disk.
//!
//! An uncompressed cpio archive in the `newc` format (<https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>),
//! the same bytes for the same input. It is kept in a cache directory under the digest of its input,
//! so a VM's start only builds one when the agent or the kernel changed.
//!
//! ```text
//! /init                 the agent, 0755
//! /dev /proc /sys /sysroot
//! /modules/order        one line per module, "<role> <file>", in the order to load them
//! /modules/NNN-name.ko
//! ```

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::kernel::Kernel;
use crate::tarball::hexadecimal;

/// How long an initrd that nothing uses is kept.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

/// A change of the archive's layout; part of the cache key.
const LAYOUT: &[u8] = b"banger initrd 2";

/// A page of an x86-64 guest, in bytes.
const PAGE: usize = 4096;

/// Why an initrd could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct InitrdError {
    /// What was done.
    action: &'static str,
    /// The file.
    path: PathBuf,
    /// The cause.
    #[source]
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InitrdError {
    let path = path.to_owned();
    move |source| InitrdError { action, path, source }
}

/// The guest agent's executable, with its digest, which is taken once.
#[derive(Debug)]
pub struct AgentBinary<'a> {
    bytes: &'a [u8],
    digest: [u8; 32],
}

impl<'a> AgentBinary<'a> {
    /// Takes the digest of the executable.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, digest: Sha256::digest(bytes).into() }
    }
}

/// Returns the initrd for `agent` and `kernel`, building it in `cache` unless it is there.
///
/// Several callers at once are fine: each writes a file of its own and renames it.
///
/// # Errors
/// Modules that cannot be read, or a cache that cannot be written.
pub fn build_initrd(
    agent: &AgentBinary<'_>,
    kernel: &Kernel,
    cache: &Path,
) -> Result<PathBuf, InitrdError> {
    let mut key = Sha256::new();
    key.update(LAYOUT);
    key.update(agent.digest);
    key.update(kernel.manifest.id.as_bytes());
    let key = hexadecimal(&key.finalize());
    let path = cache.join(format!("initrd-{}.cpio", &key[..32]));
    if let Ok(file) = File::open(&path) {
        // Marks it as in use; where that fails it may be built again some day.
        let _ = file.set_modified(SystemTime::now());
        return Ok(path);
    }
    fs::create_dir_all(cache).map_err(failed("create", cache))?;
    let bytes = encode(agent.bytes, kernel)?;
    let temporary = cache.join(format!(".initrd-{}", uuid::Uuid::new_v4()));
    let written = File::create_new(&temporary).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, &path)) {
        // It may not even have been made; the error that matters is the first.
        let _ = fs::remove_file(&temporary);
        return Err(failed("write", &path)(error));
    }
    prune(cache);
    Ok(path)
}

/// Removes what no start has asked for in a long time: the initrds of agents and kernels that have
/// been replaced. Only room is lost where that fails.
fn prune(cache: &Path) {
    let now = SystemTime::now();
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let unused = entry.metadata().and_then(|metadata| metadata.modified());
        let unused = unused.ok().and_then(|used| now.duration_since(used).ok());
        if unused.is_some_and(|unused| unused > KEEP) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn encode(agent: &[u8], kernel: &Kernel) -> Result<Vec<u8>, InitrdError> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "sysroot", "modules"] {
        archive.add(directory, 0o040_755, &[]);
    }
    archive.add("init", 0o100_755, agent);
    let mut order = String::new();
    for (index, module) in kernel.manifest.modules.iter().enumerate() {
        let path = kernel.module(module);
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let file = format!("{index:03}-{}", module.file);
        // Writing to a string cannot fail.
        let _ = writeln!(order, "{} {file}", module.role);
        archive.add(&format!("modules/{file}"), 0o100_644, &bytes);
    }
    archive.add("modules/order", 0o100_644, order.as_bytes());
    Ok(archive.finish())
}

/// A `newc` archive being written.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        self.entry(name, self.entries, mode, content);
    }

    fn entry(&mut self, name: &str, inode: u32, mode: u32, content: &[u8]) {
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        // Agents and modules are far below the format's 4 GiB.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, owner, group, links, time, size, device and rdev numbers, name, checksum
        for field in [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, unit: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(unit), 0);
    }

    /// Ends the archive so that its last page is nearly empty.
    ///
    /// QEMU's microvm puts the initrd of an ELF kernel into the last whole pages of the memory below
    /// 4 GiB, and copies it there after the ACPI tables have been put at that memory's end: what the
    /// last page has of the initrd takes the tables' place, and the guest finds none of its devices.
    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, &[]);
        self.pad(PAGE);
        self.bytes.resize(self.bytes.len() + 4, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_has_room_for_tables_whatever_the_agents_length() {
        for length in 0..2 * PAGE {
            let mut archive = Archive::default();
            archive.add("init", 0o100_755, &vec![1; length]);
            let free = PAGE - archive.finish().len() % PAGE;
            assert!((PAGE / 2..PAGE).contains(&free), "{free} bytes free after {length}");
        }
    }

    #[test]
    fn what_nothing_has_used_for_long_goes() {
        let cache = tempfile::tempdir().unwrap();
        let make = |name: &str, age: Duration| {
            let path = cache.path().join(name);
            File::create(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
            path
        };
        let old = make("initrd-old.cpio", KEEP * 2);
        let fresh = make("initrd-fresh.cpio", KEEP / 2);
        let future = make("initrd-future.cpio", Duration::ZERO);
        File::open(&future).unwrap().set_modified(SystemTime::now() + KEEP * 2).unwrap();
        prune(cache.path());
        assert!(!old.exists() && fresh.exists() && future.exists());
    }
}
