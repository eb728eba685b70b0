//! The copy of each VM's row beside its disks, `vms/<id>/vm.json`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use banger_types::{VmId, VmName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::StoreError;

/// A mirror larger than this is not one of ours.
const MAX_MIRROR: u64 = 1024 * 1024;

#[derive(Serialize)]
struct MirrorOut<'a> {
    id: &'a VmId,
    name: &'a VmName,
    document: &'a RawValue,
}

/// One VM as its mirror has it.
#[derive(Debug, Deserialize)]
pub(crate) struct Mirror {
    pub(crate) id: VmId,
    pub(crate) name: VmName,
    pub(crate) document: Box<RawValue>,
}

fn io(act: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io { act, path, source }
}

/// Makes a directory only its owner may enter, if it is not there.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(io("making directory", path)),
    }
}

fn path_of(vms_dir: &Path, id: &VmId) -> PathBuf {
    vms_dir.join(id.as_str()).join("vm.json")
}

/// Writes the mirror of a VM whose directory exists; does nothing before and after that.
/// `durable`: wait until it would survive a power cut.
pub(crate) fn write(
    vms_dir: &Path,
    id: &VmId,
    name: &VmName,
    document: &RawValue,
    durable: bool,
) -> Result<(), StoreError> {
    let path = path_of(vms_dir, id);
    let temporary = path.with_extension("json.new");
    let text = serde_json::to_vec(&MirrorOut { id, name, document })
        .map_err(|source| StoreError::Encode { id: id.clone(), source })?;
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(&text)?;
            if durable { file.sync_data() } else { Ok(()) }
        })
        .and_then(|()| std::fs::rename(&temporary, &path));
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let _ = std::fs::remove_file(&temporary);
            return Err(io("writing", &path)(error));
        }
        Ok(()) => {}
    }
    if durable && let Some(parent) = path.parent() {
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(io("syncing", parent))?;
    }
    Ok(())
}

/// Reads every mirror below `vms_dir`. The second list says which directories have none that can
/// be read, and why.
pub(crate) fn read_all(vms_dir: &Path) -> Result<(Vec<Mirror>, Vec<String>), StoreError> {
    let entries = match std::fs::read_dir(vms_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok((Vec::new(), Vec::new()));
        }
        other => other.map_err(io("listing", vms_dir))?,
    };
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.map_err(io("listing", vms_dir))?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok()) else {
            continue;
        };
        match read(vms_dir, &id) {
            Ok(mirror) => found.push(mirror),
            Err(problem) => problems.push(format!("VM {id}: {problem}")),
        }
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((found, problems))
}

/// Reads one; the error is in words.
pub(crate) fn read(vms_dir: &Path, id: &VmId) -> Result<Mirror, String> {
    let mut text = Vec::new();
    File::open(path_of(vms_dir, id))
        .and_then(|file| file.take(MAX_MIRROR).read_to_end(&mut text))
        .map_err(|error| error.to_string())?;
    let mirror: Mirror = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if mirror.id == *id { Ok(mirror) } else { Err("its vm.json is another VM's".to_owned()) }
}
