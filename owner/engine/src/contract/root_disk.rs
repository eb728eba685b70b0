//! The contract of `RootDisk`.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use banger_types::DiskSize;

use crate::seams::{DiskError, DiskImage, RootDisk};

const MIB: u64 = 1 << 20;

/// Runs the contract in `directory`, an empty directory on a file system that the kind works on.
pub async fn root_disk(disks: &dyn RootDisk, directory: &Path) {
    let place = Place::new(directory);
    assert!(disks.usable(&place.bases, &place.disks).await.unwrap());
    makes_measures_grows_and_removes(disks, &place).await;
    refuses_bad_input_and_leaves_nothing(disks, &place).await;
    never_replaces_what_is_there(disks, &place).await;
    drops_what_a_killed_daemon_left(disks, &place).await;
}

struct Place {
    bases: PathBuf,
    disks: PathBuf,
    base: PathBuf,
}

impl Place {
    /// Makes a base: data, a hole, data at the very end.
    fn new(directory: &Path) -> Self {
        let (bases, disks) = (directory.join("bases"), directory.join("disks"));
        std::fs::create_dir_all(&bases).unwrap();
        std::fs::create_dir_all(&disks).unwrap();
        let base = bases.join("base, \"image\".ext4");
        let file = File::create(&base).unwrap();
        file.set_len(BASE * MIB).unwrap();
        file.write_all_at(&[b'a'; 3 * 4096], 4096).unwrap();
        file.write_all_at(b"the end", BASE * MIB - 7).unwrap();
        std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o400)).unwrap();
        Self { bases, disks, base }
    }

    fn left_behind(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.disks).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Everything about the base that a disk over it could change.
    fn base_state(&self) -> (u64, i64, i64, Vec<u8>) {
        let metadata = std::fs::metadata(&self.base).unwrap();
        let mut content = std::fs::read(&self.base).unwrap();
        content.retain(|&byte| byte != 0);
        (metadata.len(), metadata.mtime(), metadata.mtime_nsec(), content)
    }
}

fn size(mib: u64) -> DiskSize {
    (mib * MIB).try_into().unwrap()
}

/// The size of the base, in MiB.
const BASE: u64 = 66;

/// Returns the size of a new disk in MiB: larger than the base where the kind can do that.
fn new_size(disks: &dyn RootDisk) -> u64 {
    disks.largest(BASE * MIB).map_or(128, |largest| (largest / MIB).min(128))
}

async fn make(disks: &dyn RootDisk, place: &Place) -> Result<DiskImage, DiskError> {
    disks.create(&place.base, &place.disks, "root", size(new_size(disks))).await
}

async fn makes_measures_grows_and_removes(disks: &dyn RootDisk, place: &Place) {
    let before = place.base_state();
    let mib = new_size(disks);
    let disk = make(disks, place).await.unwrap();
    assert_eq!(disk.kind, disks.kind());
    assert_eq!(disk.path.parent(), Some(place.disks.as_path()));
    assert!(disk.path.file_name().unwrap().to_str().unwrap().starts_with("root."));
    assert_eq!(place.left_behind(), std::slice::from_ref(&disk.path));
    let mode = std::fs::metadata(&disk.path).unwrap().mode();
    assert_eq!(mode & 0o077, 0, "others must not read a guest's disk");

    let usage = disks.measure(&disk).await.unwrap();
    assert_eq!(usage.size, mib * MIB);
    assert!(usage.allocated < MIB, "a new disk must be sparse, this takes {}", usage.allocated);
    assert!(usage.fill_percent.is_none_or(|percent| percent == 0), "{usage:?}");
    disks.check(&disk).await.unwrap();
    if let Some(largest) = disks.largest(BASE * MIB) {
        let beyond = DiskSize::try_from(largest + MIB).unwrap();
        let made = disks.create(&place.base, &place.disks, "beyond", beyond).await;
        assert!(made.is_err(), "a disk beyond the largest was made");
        assert_eq!(place.left_behind(), std::slice::from_ref(&disk.path));
    }

    let most = disks.most(mib * MIB);
    assert!(most >= mib * MIB && most <= mib * MIB * 65 / 64 + MIB, "{most}");
    let may_take = disks.may_take(&disk, mib * MIB).await.unwrap();
    assert_eq!(may_take, most - usage.allocated, "what is taken counts as there");
    assert!(disks.may_take(&disk, 256 * MIB).await.unwrap() >= may_take);

    assert!(disks.grow(&disk, size(256)).await.unwrap());
    assert_eq!(disks.measure(&disk).await.unwrap().size, 256 * MIB);
    assert!(!disks.grow(&disk, size(256)).await.unwrap());
    match disks.grow(&disk, size(128)).await {
        Err(DiskError::Shrink { current, requested, .. }) => {
            assert_eq!((current, requested), (256 * MIB, 128 * MIB));
        }
        other => panic!("shrinking gave {other:?}"),
    }
    // Near the largest file that ext4 allows.
    assert!(disks.grow(&disk, size(8 << 20)).await.unwrap());

    assert!(disks.remove(&disk).await.unwrap());
    assert!(!disks.remove(&disk).await.unwrap(), "removing what is gone succeeds and says false");
    assert!(place.left_behind().is_empty());
    assert!(disks.measure(&disk).await.is_err());
    assert!(disks.grow(&disk, size(512)).await.is_err());
    assert_eq!(place.base_state(), before);
}

async fn refuses_bad_input_and_leaves_nothing(disks: &dyn RootDisk, place: &Place) {
    let empty = place.bases.join("empty");
    File::create(&empty).unwrap();
    let odd = place.bases.join("odd");
    std::fs::write(&odd, [1; 700]).unwrap();
    for (base, mib) in [
        (place.base.clone(), 65),           // smaller than the base
        (place.bases.join("missing"), 128), // no such file
        (place.bases.clone(), 128),         // a directory
        (PathBuf::from("/dev/null"), 128),  // no file
        (empty, 128),
        (odd, 128),
    ] {
        let outcome = disks.create(&base, &place.disks, "root", size(mib)).await;
        assert!(outcome.is_err(), "{} was taken", base.display());
        assert!(place.left_behind().is_empty(), "{}", base.display());
    }
    let nowhere = place.disks.join("no-such-directory");
    assert!(disks.create(&place.base, &nowhere, "root", size(128)).await.is_err());
    assert!(place.left_behind().is_empty());
}

async fn never_replaces_what_is_there(disks: &dyn RootDisk, place: &Place) {
    let disk = make(disks, place).await.unwrap();
    let inode = std::fs::metadata(&disk.path).unwrap().ino();
    assert!(make(disks, place).await.is_err());
    assert_eq!(std::fs::metadata(&disk.path).unwrap().ino(), inode);
    assert_eq!(place.left_behind(), std::slice::from_ref(&disk.path));
    disks.remove(&disk).await.unwrap();

    // A link is not followed either, even one that leads nowhere.
    let DiskImage { path, .. } = disk;
    std::os::unix::fs::symlink(place.bases.join("target"), &path).unwrap();
    assert!(make(disks, place).await.is_err());
    assert!(!place.bases.join("target").exists());
    std::fs::remove_file(&path).unwrap();
    assert!(place.left_behind().is_empty());
}

async fn drops_what_a_killed_daemon_left(disks: &dyn RootDisk, place: &Place) {
    let disk = make(disks, place).await.unwrap();
    let mut partial = disk.path.clone().into_os_string();
    partial.push(".partial");
    disks.remove(&disk).await.unwrap();
    std::fs::write(&partial, "half a disk").unwrap();
    let disk = make(disks, place).await.unwrap();
    assert_eq!(place.left_behind(), std::slice::from_ref(&disk.path));
    disks.remove(&disk).await.unwrap();
}
