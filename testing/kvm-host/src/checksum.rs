//! Checksums of files of some hundred megabytes, with holes of some gigabytes.

use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cache::hexadecimal;

/// What is read at once; a piece that is all zeros counts as a hole.
const PIECE: usize = 1 << 20;

/// What a file held when it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checksum {
    /// Its length.
    pub(crate) bytes: u64,
    /// The SHA-256 of each piece with something in it, and of where it begins.
    pub(crate) sha256: String,
}

impl Checksum {
    /// Reads a file. Holes are not read, and count as the zeros that they are.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let (bytes, hash) = read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { bytes, sha256: hexadecimal(&hash.finalize()) })
    }

    /// Refuses a file of another length, without reading it.
    pub(crate) fn check_length(&self, path: &Path) -> Result<()> {
        let found = path.metadata().with_context(|| format!("look at {}", path.display()))?.len();
        let (path, wanted) = (path.display(), self.bytes);
        ensure!(found == wanted, "{path} has {found} bytes, and had {wanted} when it was made");
        Ok(())
    }

    /// Refuses a file with another content.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        self.check_length(path)?;
        let found = Self::of(path)?;
        ensure!(
            found == *self,
            "{} is damaged: its checksum is {}, and was {} when it was made",
            path.display(),
            &found.sha256[..16],
            self.sha256.get(..16).unwrap_or(&self.sha256)
        );
        Ok(())
    }
}

fn read(path: &Path) -> std::io::Result<(u64, Sha256)> {
    let mut file = std::fs::File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    let step = PIECE as u64;
    let mut at = 0;
    while at < bytes {
        // Where there are no holes, or no such call, data begins here (lseek(2), SEEK_DATA).
        let data = match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        at = data / step * step;
        file.seek(SeekFrom::Start(at))?;
        let count = fill(&mut file, &mut piece)?;
        if count == 0 {
            break;
        }
        if piece[..count].iter().any(|byte| *byte != 0) {
            hash.update(at.to_le_bytes());
            hash.update(&piece[..count]);
        }
        at += step;
    }
    Ok((bytes, hash))
}

/// Reads until the piece is full or the file ends.
fn fill(file: &mut std::fs::File, piece: &mut [u8]) -> std::io::Result<usize> {
    let mut count = 0;
    while count < piece.len() {
        match file.read(&mut piece[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn one_changed_byte_is_found_wherever_it_is_and_holes_are_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = std::fs::File::options();
        let file = file.clone().create(true).read(true).write(true).open(&path).unwrap();
        // Data, a hole, data beside a border, a hole at the end.
        let size = 5 * PIECE as u64 + 17;
        file.set_len(size).unwrap();
        let at = 3 * PIECE as u64 - 2;
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"over", at).unwrap();
        let sum = Checksum::of(&path).unwrap();
        assert_eq!(sum.bytes, size);
        sum.check(&path).unwrap();

        let written = folder.path().join("written");
        let content = std::fs::read(&path).unwrap();
        std::fs::File::create(&written).unwrap().write_all(&content).unwrap();
        sum.check(&written).unwrap();
        for place in [0, 4, at, at + 3, PIECE as u64, size - 1] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).unwrap();
            file.write_all_at(&[byte[0] ^ 1], place).unwrap();
            let error = sum.check(&path).unwrap_err().to_string();
            assert!(error.contains("damaged") && error.contains("file"), "{place}: {error}");
            file.write_all_at(&byte, place).unwrap();
            sum.check(&path).unwrap();
        }
        file.set_len(size + 1).unwrap();
        for error in [sum.check(&path), sum.check_length(&path)] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(&format!("{} bytes", size + 1)), "{error}");
        }
        // The same bytes at another place.
        file.set_len(size).unwrap();
        file.write_all_at(&[0; 5], 0).unwrap();
        file.write_all_at(b"begin", PIECE as u64).unwrap();
        assert!(sum.check(&path).is_err());
        let _ = std::fs::remove_file(&path);
        assert!(format!("{:#}", sum.check(&path).unwrap_err()).contains("look at"));
    }
}
