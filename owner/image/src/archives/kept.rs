//! The files of an archive, kept under numbers until the image is built of them.
//!
//! What names a layer may stand behind it in the archive, so all of it has to be there first. The
//! names of the archive are keys of a map and never names on the host.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use banger_types::Digest;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::documents::{Descriptor, LARGEST_DOCUMENT};
use super::error::ContainerError;
use crate::layers::LayerSource;
use crate::limits::Limits;
use crate::progress::CancelFlag;
use crate::tarball::{Archive, EntryKind, Piece, shown};

const MOST_FILES: u64 = 20_000;
const MOST_LINKS_FOLLOWED: usize = 8;

/// The files of an archive.
#[derive(Debug)]
pub(super) struct Kept {
    directory: PathBuf,
    files: HashMap<Vec<u8>, Place>,
}

#[derive(Debug)]
enum Place {
    File {
        number: u64,
        size: u64,
    },
    /// Another name for this path.
    Link(Vec<u8>),
}

/// A kept file as a layer's bytes.
struct KeptLayer(PathBuf);

impl LayerSource for KeptLayer {
    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(&self.0)?))
    }
}

impl Kept {
    /// Takes all files of `archive` into `directory`.
    pub(super) fn read<R: Read>(
        archive: &mut Archive<R>,
        directory: &Path,
        limits: &Limits,
        cancel: &CancelFlag,
        mut report: impl FnMut(&R) -> u64,
    ) -> Result<Self, ContainerError> {
        let mut kept = Self { directory: directory.to_owned(), files: HashMap::new() };
        let (mut number, mut bytes) = (0, 0);
        while let Some(entry) = archive.next_entry()? {
            cancel.check()?;
            report(archive.source());
            let name = entry.shown();
            let problem = |problem| ContainerError::Entry { entry: name.clone(), problem };
            let place = match &entry.kind {
                EntryKind::Directory => continue,
                EntryKind::File => {
                    let path = kept.directory.join(number.to_string());
                    let mut file =
                        BufWriter::new(File::create_new(path).map_err(ContainerError::Keep)?);
                    while let Some(piece) = archive.next_piece()? {
                        cancel.check()?;
                        let Piece::Data(data) = piece else { return Err(problem("sparse")) };
                        bytes += data.len() as u64;
                        if bytes > limits.content {
                            let limit = limits.content;
                            return Err(ContainerError::Limit { what: "bytes", limit });
                        }
                        file.write_all(data).map_err(ContainerError::Keep)?;
                        let bytes_in = report(archive.source());
                        if !limits.ratio_fits(bytes_in, bytes) {
                            let (what, limit) = ("bytes for each compressed one", limits.ratio);
                            return Err(ContainerError::Limit { what, limit });
                        }
                    }
                    file.flush().map_err(ContainerError::Keep)?;
                    Place::File { number, size: entry.size }
                }
                EntryKind::HardLink(target) => Place::Link(target.clone()),
                EntryKind::SymbolicLink(target) => Place::Link(
                    beside(&entry.path, target).ok_or_else(|| problem("a link out of it"))?,
                ),
                _ => return Err(problem("neither a file nor a directory")),
            };
            number += 1;
            if number > MOST_FILES {
                return Err(ContainerError::Limit { what: "files", limit: MOST_FILES });
            }
            if kept.files.insert(entry.path.clone(), place).is_some() {
                return Err(problem("there twice"));
            }
        }
        archive.drain(limits.padding)?;
        Ok(kept)
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.files.contains_key(path.as_bytes())
    }

    /// Returns the file `path` and its size.
    fn find(&self, path: &str) -> Result<(PathBuf, u64), ContainerError> {
        let missing = || ContainerError::Missing(shown(path.as_bytes()));
        let mut place = self.files.get(path.as_bytes()).ok_or_else(missing)?;
        for _ in 0..MOST_LINKS_FOLLOWED {
            match place {
                Place::File { number, size } => {
                    return Ok((self.directory.join(number.to_string()), *size));
                }
                Place::Link(target) => place = self.files.get(target).ok_or_else(missing)?,
            }
        }
        Err(missing())
    }

    /// Returns the layer at `path`, and its size.
    pub(super) fn layer(&self, path: &str) -> Result<(Box<dyn LayerSource>, u64), ContainerError> {
        let (file, size) = self.find(path)?;
        Ok((Box::new(KeptLayer(file)), size))
    }

    fn bytes(&self, path: &str) -> Result<Vec<u8>, ContainerError> {
        let (file, size) = self.find(path)?;
        if size > LARGEST_DOCUMENT {
            return Err(ContainerError::Limit {
                what: "bytes in a document",
                limit: LARGEST_DOCUMENT,
            });
        }
        std::fs::read(file).map_err(ContainerError::Keep)
    }

    /// Reads the document at `path`.
    pub(super) fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T, ContainerError> {
        parse(path, &self.bytes(path)?)
    }

    /// Reads the document that `descriptor` names, which must be exactly that one.
    pub(super) fn blob<T: DeserializeOwned>(
        &self,
        descriptor: &Descriptor,
    ) -> Result<T, ContainerError> {
        let name = blob_path(&descriptor.digest);
        let bytes = self.bytes(&name)?;
        if bytes.len() as u64 != descriptor.size {
            let (expected, found) = (descriptor.size, bytes.len() as u64);
            return Err(ContainerError::Size { name, expected, found });
        }
        let found = Digest::from_sha256(Sha256::digest(&bytes).into());
        if found != descriptor.digest {
            return Err(ContainerError::Digest { expected: descriptor.digest.clone(), found });
        }
        parse(&name, &bytes)
    }
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, ContainerError> {
    serde_json::from_slice(bytes)
        .map_err(|source| ContainerError::Document { name: shown(name.as_bytes()), source })
}

/// Where a layout keeps the blob with this digest.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The path that the link `target` at `path` means; `None` outside of the archive.
fn beside(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    if target.first() == Some(&b'/') {
        return None;
    }
    let mut names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    names.pop();
    for name in target.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}
