//! Finding disks by the UUID in their ext4 superblock.
//!
//! Neither a disk's order nor its serial can be relied on under every VMM; the UUID can.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_agent_api::BootConfig;
use uuid::Uuid;

use super::BootError;

/// Disks are there before the modules have finished; a machine under load may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks; a look costs one directory listing and a read per disk.
const PAUSE: Duration = Duration::from_millis(2);

/// The disks of this machine.
pub(super) struct Disks {
    pub root: PathBuf,
    pub work: Option<PathBuf>,
    pub modules: Option<PathBuf>,
}

/// Waits until every configured disk is there.
pub(super) fn wait_for(config: &BootConfig) -> Result<Disks, BootError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = look(Path::new("/sys/block"), Path::new("/dev"));
        let find = |uuid: Uuid| {
            found.iter().find(|(_, found)| *found == uuid).map(|(path, _)| path.clone())
        };
        let wanted = [Some(config.root), config.work, config.modules];
        let missing = wanted.into_iter().flatten().find(|uuid| find(*uuid).is_none());
        match (missing, find(config.root)) {
            (None, Some(root)) => {
                return Ok(Disks {
                    root,
                    work: config.work.and_then(find),
                    modules: config.modules.and_then(find),
                });
            }
            (missing, _) if Instant::now() >= deadline => {
                return Err(BootError::NoDisk {
                    uuid: missing.unwrap_or(config.root),
                    seconds: PATIENCE.as_secs(),
                    found: describe(&found),
                });
            }
            _ => std::thread::sleep(PAUSE),
        }
    }
}

fn describe(found: &[(PathBuf, Uuid)]) -> String {
    if found.is_empty() {
        return "no ext4 disk".to_owned();
    }
    let list: Vec<String> =
        found.iter().map(|(path, uuid)| format!("{} {uuid}", path.display())).collect();
    list.join(", ")
}

/// Lists the whole disks that hold an ext4 file system.
fn look(block: &Path, devices: &Path) -> Vec<(PathBuf, Uuid)> {
    let Ok(entries) = std::fs::read_dir(block) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"vd"))
        .filter_map(|entry| {
            let path = devices.join(entry.file_name());
            let uuid = ext4_uuid(std::fs::File::open(&path).ok()?).ok()??;
            Some((path, uuid))
        })
        .collect()
}

/// Reads the UUID of an ext2/3/4 superblock.
fn ext4_uuid(disk: impl Read + Seek) -> std::io::Result<Option<Uuid>> {
    Ok(read_superblock(disk)?.and_then(|block| Uuid::from_slice(&block[0x68..0x78]).ok()))
}

/// Bytes of a superblock that hold fields of interest.
pub(super) const SUPERBLOCK: usize = 0x158;

/// Reads the beginning of an ext2/3/4 superblock: at byte 1024, magic 0xef53 at 0x38
/// (<https://docs.kernel.org/filesystems/ext4/super.html>).
pub(super) fn read_superblock(
    mut disk: impl Read + Seek,
) -> std::io::Result<Option<[u8; SUPERBLOCK]>> {
    let mut block = [0; SUPERBLOCK];
    disk.seek(SeekFrom::Start(1024))?;
    disk.read_exact(&mut block)?;
    Ok((block[0x38..0x3a] == [0x53, 0xef]).then_some(block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn superblock(uuid: Uuid) -> Vec<u8> {
        let mut disk = vec![0; 4096];
        disk[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        disk[1024 + 0x68..1024 + 0x78].copy_from_slice(uuid.as_bytes());
        disk
    }

    #[test]
    fn disks_without_ext4_have_no_uuid() {
        assert!(ext4_uuid(Cursor::new(vec![0; 10])).is_err());
        assert_eq!(ext4_uuid(Cursor::new(vec![0; 4096])).unwrap(), None);
    }

    #[test]
    fn the_uuid_is_found() {
        let uuid = Uuid::from_u128(0x1111_2222);
        assert_eq!(ext4_uuid(Cursor::new(superblock(uuid))).unwrap(), Some(uuid));
    }

    #[test]
    fn only_whole_virtio_disks_are_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let (block, devices) = (directory.path().join("block"), directory.path().join("dev"));
        for name in ["vda", "vdb", "sda", "vdc"] {
            std::fs::create_dir_all(block.join(name)).unwrap();
        }
        std::fs::create_dir(&devices).unwrap();
        std::fs::write(devices.join("vda"), superblock(Uuid::from_u128(1))).unwrap();
        std::fs::write(devices.join("sda"), superblock(Uuid::from_u128(2))).unwrap();
        std::fs::write(devices.join("vdc"), b"short").unwrap();
        assert_eq!(look(&block, &devices), [(devices.join("vda"), Uuid::from_u128(1))]);
    }
}
