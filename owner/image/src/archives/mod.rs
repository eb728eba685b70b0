//! Archives that images come in, told apart by what is in them.
//!
//! ```text
//! root file system      a tar of anything else
//! container images      an OCI layout, or what `docker save` writes, as a tar
//! bundle                a tar of exactly rootfs.ext4 and manifest.json
//! ```
//! Any of them may be compressed. The first file decides, which is within the first MiB as it
//! comes: before it there are only directories.

mod bundle;
mod documents;
mod error;
mod export;
mod kept;
mod select;

use std::io::{self, Cursor, Read};

pub use bundle::BundleManifest;
pub(crate) use bundle::{build_bundle, copy_sparse, inspect};
pub use error::ContainerError;
pub use export::{Export, ExportFormat};
pub use select::Selection;

use crate::layers::LayeredImage;
use crate::limits::Limits;
use crate::progress::{CancelFlag, Progress};
use crate::tarball::{Archive, EntryKind, Piece, Source, TarError};

/// What is looked at to tell archives apart.
const HEAD: u64 = 1 << 20;

/// What an archive holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    RootFileSystem,
    Containers,
    Bundle,
}

/// Looks at the beginning of `input` and gives it back whole.
pub(crate) fn look<R: Read>(mut input: R) -> io::Result<(Contents, impl Read + use<R>)> {
    let mut head = Vec::new();
    input.by_ref().take(HEAD).read_to_end(&mut head)?;
    // What cannot be read is reported where all of it is read.
    let contents = contents_of(&head).unwrap_or(Contents::RootFileSystem);
    Ok((contents, Cursor::new(head).chain(input)))
}

fn contents_of(head: &[u8]) -> Option<Contents> {
    let mut archive = Archive::new(Source::new(head).ok()?);
    while let Some(entry) = archive.next_entry().ok()? {
        let directory = entry.kind == EntryKind::Directory;
        if entry.path == b"manifest.json" && !directory {
            return Some(manifest_of(&mut archive));
        }
        if let Some(contents) = meaning(&entry.path, directory) {
            return Some(contents);
        }
        if !directory {
            return Some(Contents::RootFileSystem);
        }
    }
    None
}

/// Both kinds have a `manifest.json`; that of `docker save` is a list.
fn manifest_of(archive: &mut Archive<impl Read>) -> Contents {
    while let Ok(Some(Piece::Data(data))) = archive.next_piece() {
        match data.trim_ascii_start().first() {
            None => {}
            Some(b'[') => return Contents::Containers,
            Some(_) => return Contents::Bundle,
        }
    }
    Contents::Containers
}

/// What a path says about the archive that begins with it.
fn meaning(path: &[u8], directory: bool) -> Option<Contents> {
    let is_id = |name: &[u8]| {
        let name = name.strip_prefix(b"sha256:").unwrap_or(name);
        let digits = name.split(|&byte| byte == b'.').next().unwrap_or_default();
        digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit)
    };
    let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    match names.as_slice() {
        _ if directory => None,
        [b"rootfs.ext4"] => Some(Contents::Bundle),
        [b"oci-layout" | b"index.json" | b"repositories"] => Some(Contents::Containers),
        [b"blobs", b"sha256", _] => Some(Contents::Containers),
        [name] | [name, b"layer.tar" | b"json" | b"VERSION"] if is_id(name) => {
            Some(Contents::Containers)
        }
        _ => None,
    }
}

/// Keeps the files of an archive of container images in `directory` and finds the image.
pub(crate) fn read_containers(
    input: impl Read,
    directory: &std::path::Path,
    selection: &Selection,
    limits: &Limits,
    progress: &dyn Progress,
    cancel: &CancelFlag,
) -> Result<LayeredImage, ContainerError> {
    progress.stage("reading the archive");
    let source = Source::new(input).map_err(|source| TarError::Read { position: 0, source })?;
    let mut archive = Archive::new(source);
    let kept = kept::Kept::read(&mut archive, directory, limits, cancel, |source| {
        progress.bytes(source.bytes_in(), None);
        source.bytes_in()
    })?;
    select::select(&kept, selection)
}
