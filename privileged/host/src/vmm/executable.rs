//! What of the VMM is executed: opened once, checked with all its parents, run through what was
//! opened.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use banger_gates::{Name, Refusal, VmmPath};
use rustix::fs::FileType;

use crate::{Host, Result, descriptor_path, kind, open_guarded};

/// A firecracker or jailer that root alone can change.
#[derive(Debug)]
pub(super) struct Executable {
    /// It, opened by O_PATH; `/proc/self/fd/N` of it can be executed.
    pub(super) descriptor: OwnedFd,
    /// Where it lies. As it and all its parents are root's alone, nobody else can put another file
    /// there; the jailer, which takes nothing but a path, may have it.
    pub(super) path: PathBuf,
}

impl Executable {
    fn find(path: &VmmPath) -> Result<Option<Self>, String> {
        let Some((descriptor, stat)) = open_guarded(path.path(), false)? else { return Ok(None) };
        let path = path.path().to_owned();
        if kind(&stat) != FileType::RegularFile {
            return Err(format!("{} is not a regular file", path.display()));
        }
        if stat.st_mode & 0o111 == 0 {
            return Err(format!("{} is not executable", path.display()));
        }
        Ok(Some(Self { descriptor, path }))
    }

    /// Opens one.
    ///
    /// # Errors
    /// Nothing there, or what others than root could change (refused).
    pub(super) fn open(parameter: Name, path: &VmmPath) -> Result<Self> {
        let found = Self::find(path).map_err(|reason| Refusal::new(parameter, reason))?;
        Ok(found.ok_or_else(|| Refusal::new(parameter, "no such file"))?)
    }

    /// Whether it wants an interpreter, that is the dynamic loader and libraries (elf(5), PT_INTERP).
    ///
    /// # Errors
    /// No ELF64 file.
    pub(super) fn is_dynamic(&self) -> io::Result<bool> {
        let file = File::open(descriptor_path(&self.descriptor))?;
        let mut header = [0_u8; 64];
        let read = file.read_exact_at(&mut header, 0);
        if read.is_err() || header[..5] != *b"\x7fELF\x02" {
            return Err(io::Error::other("not an ELF file for 64 bits"));
        }
        let half = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let offset = u64::from_le_bytes(std::array::from_fn(|at| header[32 + at]));
        let (size, count) = (half(54), half(56));
        for index in 0..count {
            let mut kind = [0; 4];
            file.read_exact_at(&mut kind, offset.saturating_add(index * size))?;
            if u32::from_le_bytes(kind) == 3 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Host {
    /// Finds the first of some places with a Firecracker that root alone can change, and says where.
    ///
    /// # Errors
    /// None of them has one (refused, with what is wrong with each that is there).
    pub fn resolve_firecracker_binary(&self, places: &[VmmPath]) -> Result<PathBuf> {
        let mut faults = Vec::new();
        for place in places {
            match Executable::find(place) {
                Ok(Some(executable)) => return Ok(executable.path),
                Ok(None) => faults.push(format!("{} is not there", place.path().display())),
                Err(fault) => faults.push(fault),
            }
        }
        Err(Refusal::new("requested", faults.join("; ")).into())
    }
}
