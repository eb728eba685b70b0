//! Grants of the methods on disks.

use banger_helper_api::{
    CreateDmSnapshotParams, FsckSnapshotParams, ReadExt4FileParams, RemoveDmSnapshotParams,
    SnapshotHandles, WriteExt4FilesParams,
};

use crate::{
    DmDevice, DmName, GuestPath, ManagedPath, Name, Policy, Refusal, Result, SnapshotParts, State,
};

/// A snapshot to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The image that is read.
    pub image: ManagedPath<State>,
    /// The file that takes what is written.
    pub cow: ManagedPath<State>,
    /// The device's name.
    pub name: DmName,
}

/// What a disk or an ext4 file system lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Volume {
    /// A file.
    File(ManagedPath<State>),
    /// A snapshot.
    Device(DmDevice),
}

/// A file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadFile {
    /// Where it lies.
    pub image: Volume,
    /// Its path there.
    pub path: GuestPath,
}

/// Files to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteFiles {
    /// Where they are to lie.
    pub image: Volume,
    /// The files, in this order.
    pub files: Vec<GuestFile>,
}

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFile {
    /// Its path.
    pub path: GuestPath,
    /// Its content.
    pub data: Vec<u8>,
    /// Its permission bits, 1 to 0o7777.
    pub mode: u32,
}

/// The most files of one request.
pub const MOST_FILES: usize = 1024;
/// The most bytes of all its files.
const MOST_BYTES: usize = 16 << 20;

impl Volume {
    pub(super) fn parse(parameter: Name, text: &str, policy: &Policy) -> Result<Self> {
        if text.starts_with("/dev/") {
            return DmDevice::parse(parameter, text).map(Self::Device);
        }
        ManagedPath::parse(parameter, text, policy).map(Self::File)
    }
}

/// The gate of `priv.create_dm_snapshot`.
///
/// # Errors
/// The rules of the types; twice the same file.
pub fn create_dm_snapshot(params: &CreateDmSnapshotParams, policy: &Policy) -> Result<Snapshot> {
    let image = ManagedPath::parse("rootfs_path", &params.rootfs_path, policy)?;
    let cow = ManagedPath::parse("cow_path", &params.cow_path, policy)?;
    Refusal::when(image == cow, "cow_path", "the same file as rootfs_path")?;
    Ok(Snapshot { image, cow, name: DmName::parse("dm_name", &params.dm_name)? })
}

/// The gate of `priv.cleanup_dm_snapshot`.
///
/// # Errors
/// The rules of [`SnapshotParts`].
pub fn cleanup_dm_snapshot(params: &SnapshotHandles) -> Result<SnapshotParts> {
    SnapshotParts::parse(params)
}

/// The gate of `priv.remove_dm_snapshot`.
///
/// # Errors
/// A text that is neither a snapshot's name nor its path.
pub fn remove_dm_snapshot(params: &RemoveDmSnapshotParams) -> Result<DmName> {
    if params.target.starts_with('/') {
        return DmDevice::parse("target", &params.target).map(|device| device.name().clone());
    }
    DmName::parse("target", &params.target)
}

/// The gate of `priv.fsck_snapshot`.
///
/// # Errors
/// The rule of [`DmDevice`].
pub fn fsck_snapshot(params: &FsckSnapshotParams) -> Result<DmDevice> {
    DmDevice::parse("dm_dev", &params.dm_dev)
}

/// The gate of `priv.read_ext4_file`.
///
/// # Errors
/// The rules of the types.
pub fn read_ext4_file(params: &ReadExt4FileParams, policy: &Policy) -> Result<ReadFile> {
    let image = Volume::parse("image_path", &params.image_path, policy)?;
    Ok(ReadFile { image, path: GuestPath::parse("guest_path", &params.guest_path)? })
}

/// The gate of `priv.write_ext4_files`.
///
/// # Errors
/// The rules of the types; too many files or bytes; a mode with more than permission bits; a file
/// that is named twice, or is the folder of another.
pub fn write_ext4_files(params: WriteExt4FilesParams, policy: &Policy) -> Result<WriteFiles> {
    let image = Volume::parse("image_path", &params.image_path, policy)?;
    Refusal::when(
        params.files.len() > MOST_FILES,
        "files",
        format!("more than {MOST_FILES} files"),
    )?;
    let files = params.files.into_iter().map(|file| {
        let path = GuestPath::parse("guest_path", &file.guest_path)?;
        Refusal::when(file.mode > 0o7777, "mode", "more than permission bits")?;
        let mode = if file.mode == 0 { 0o644 } else { file.mode };
        Ok(GuestFile { path, data: file.data.0, mode })
    });
    let files: Vec<GuestFile> = files.collect::<Result<_, _>>()?;
    let is_broken = files.iter().map(|file| file.data.len()).sum::<usize>() > MOST_BYTES;
    Refusal::when(is_broken, "files", "more than 16 MiB")?;
    let mut paths: Vec<Vec<&str>> =
        files.iter().map(|file| file.path.as_str().split('/').collect()).collect();
    // By component, so that what lies below a path comes right after it.
    paths.sort_unstable();
    let rule = "a file that is named twice, or is another's folder";
    Refusal::when(paths.windows(2).any(|pair| pair[1].starts_with(&pair[0])), "files", rule)?;
    Ok(WriteFiles { image, files })
}
