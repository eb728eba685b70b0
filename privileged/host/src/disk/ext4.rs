//! Files in ext4 images, and their check.
//!
//! Reading follows the links of the image between a path's folders, which all lie inside; writing
//! takes no link at all. An image that is written to is in nobody's use as far as can be known: no
//! loop device stands on it, nobody has the snapshot open, it has one name, no machine that was
//! launched and is not cleaned up has it as a disk, and its journal is empty, which it is not while
//! it is mounted anywhere, in a guest too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use banger_gates::request::{GuestFile, ReadFile, Volume, WriteFiles};
use banger_gates::{DmDevice, GuestPath, Name, Refusal};
use rustix::fs::FileType;
use rustix::rand::GetRandomFlags;

use super::debugfs::{Image, Inode, MOST};
use super::loops::{check_loops, identity};
use crate::{During, Host, HostError, Result};

const IMAGE: &str = "image_path";
const PATH: &str = "guest_path";
const NEW_FOLDER: Inode = Inode { kind: FileType::Directory, size: 0, has_attribute_block: false };

/// The folders on the way to a file, the shallowest first.
fn folders(path: &GuestPath) -> impl Iterator<Item = &str> {
    let path = path.as_str();
    path.match_indices('/').skip(1).map(move |(at, _)| &path[..at])
}

fn refused(parameter: Name, path: &str, what: &str) -> HostError {
    Refusal::new(parameter, format!("{path:?} is {what}")).into()
}

/// What something is called that is not the kind of file that it should be.
fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::RegularFile => "a regular file",
        _ => "a device, a pipe or a socket",
    }
}

/// A file or device that one request has for itself.
pub(super) struct Claim<'a> {
    host: &'a Host,
    file: (u64, u64),
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.host.changing.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.file);
    }
}

/// What is in an image at the paths of a request.
type Found<'a> = BTreeMap<&'a str, Inode>;

/// Looks at everything on the way to a request's files; nothing but folders may be on it, and
/// nothing but a regular file at its end.
fn survey<'a>(image: &Image, files: &'a [GuestFile]) -> Result<Found<'a>> {
    let ends: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let ways: BTreeSet<&str> = files.iter().flat_map(|file| folders(&file.path)).collect();
    let paths: Vec<&str> = ways.union(&ends).copied().collect();
    let mut found = Found::new();
    for (path, inode) in paths.iter().zip(image.inodes(&paths)?) {
        let Some(inode) = inode else { continue };
        let wanted = if ends.contains(path) { FileType::RegularFile } else { FileType::Directory };
        if inode.kind != wanted {
            return Err(refused(PATH, path, kind_name(inode.kind)));
        }
        found.insert(path, inode);
    }
    Ok(found)
}

/// A path in the same folder that nobody can have thought of.
fn beside(path: &str) -> Result<String> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, GetRandomFlags::empty()).during("name", "a new file")?;
    let folder = path.rsplit_once('/').unwrap_or_default().0;
    Ok(format!("{folder}/.banger-{:016x}", u64::from_ne_bytes(random)))
}

/// Writes one file. If that fails, what was there before is there still, and nothing else.
fn write(image: &Image, file: &GuestFile, found: &mut Found<'_>) -> Result<()> {
    let path = file.path.as_str();
    let missing: Vec<&str> =
        folders(&file.path).filter(|folder| !found.contains_key(folder)).collect();
    // What is replaced stays until all of the new file is there.
    let is_there = found.contains_key(path);
    let staged = if is_there { beside(path)? } else { path.to_owned() };
    image.place("content", &file.data)?;
    let mut script: Vec<String> =
        missing.iter().map(|folder| format!("mkdir \"{folder}\"")).collect();
    script.push(format!("write content \"{staged}\""));
    script.push(format!("set_inode_field \"{staged}\" mode 0{:o}", 0o100_000 | file.mode));
    if let Err(error) = image.edit(path, &script) {
        let mut undo = vec![format!("rm \"{staged}\"")];
        undo.extend(missing.iter().rev().map(|folder| format!("rmdir \"{folder}\"")));
        // It complains of what was not made.
        let _ = image.edit(path, &undo);
        return Err(error);
    }
    if !is_there {
        return Ok(());
    }
    let rename = [
        format!("rm \"{path}\""),
        format!("ln \"{staged}\" \"{path}\""),
        format!("unlink \"{staged}\""),
    ];
    image.edit(path, &rename)
}

impl Host {
    /// Claims a file or device for a change, or for a snapshot's changes, until the claim is
    /// dropped. A launch that looks who uses what comes before it or after.
    pub(super) fn claim(&self, parameter: Name, file: (u64, u64)) -> Result<Claim<'_>> {
        let _machines = self.machines();
        self.check_unused(parameter, (file, false), &[])?;
        let mut changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        Refusal::when(!changing.insert(file), parameter, "another request has it")?;
        Ok(Claim { host: self, file })
    }

    fn open_to_read(&self, image: &Volume) -> Result<Image> {
        let image = match image {
            Volume::Device(device) => {
                Image::device(self, self.device_number(IMAGE, device, false)?)?
            }
            Volume::File(path) => Image::file(self, self.state.open_file(IMAGE, path, false)?)?,
        };
        image.is_dirty(IMAGE).map(|_| image)
    }

    fn open_to_write(&self, image: &Volume) -> Result<(Claim<'_>, Image)> {
        let (claim, image) = match image {
            Volume::Device(device) => self.open_idle(IMAGE, device)?,
            Volume::File(path) => {
                let file = self.state.open_file(IMAGE, path, true)?;
                let claim = self.claim(IMAGE, identity(&file)?)?;
                check_loops(&[(IMAGE, (identity(&file)?, false))], None)?;
                (claim, Image::file(self, file)?)
            }
        };
        let rule = "mounted, or not unmounted cleanly: it has to be checked first";
        Refusal::when(image.is_dirty(IMAGE)?, IMAGE, rule)?;
        Ok((claim, image))
    }

    fn open_idle(&self, parameter: Name, device: &DmDevice) -> Result<(Claim<'_>, Image)> {
        let number = self.device_number(parameter, device, true)?;
        let claim = self.claim(parameter, (number, 0))?;
        // Nobody has opened it meanwhile.
        self.device_number(parameter, device, true)?;
        Ok((claim, Image::device(self, number)?))
    }

    /// `priv.read_ext4_file`: a regular file's content, at most 16 MiB.
    ///
    /// # Errors
    /// Refused: no ext4 file system, no such file, no regular file, one that is too long. An image
    /// that is damaged, or in use and just changing.
    pub fn read_ext4_file(&self, grant: &ReadFile) -> Result<Vec<u8>> {
        let image = self.open_to_read(&grant.image)?;
        let path = grant.path.as_str();
        let inode = image.inodes(&[path])?.into_iter().flatten().next();
        let inode = inode.ok_or_else(|| refused(PATH, path, "not in the image"))?;
        if inode.kind != FileType::RegularFile {
            return Err(refused(PATH, path, kind_name(inode.kind)));
        }
        if inode.size > MOST {
            return Err(refused(PATH, path, "longer than 16 MiB"));
        }
        let mut content = image.read(path)?;
        // Content inside an inode comes with the rest of the inode.
        let size = usize::try_from(inode.size).unwrap_or(usize::MAX);
        content.truncate(size);
        if content.len() != size {
            let cause = format!("{} of {size} bytes could be read", content.len());
            return Err(HostError::of("read", path)(cause));
        }
        Ok(content)
    }

    /// `priv.write_ext4_files`: files of owner 0:0 in place of those that are there, folders that
    /// are missing made with mode 0755. The first failure ends it; that file is then as it was, and
    /// the ones before it are written.
    ///
    /// # Errors
    /// Refused, before anything is written: an image in use, a path over a link or a file, at whose
    /// end there is something else than a regular file. No space.
    pub fn write_ext4_files(&self, grant: &WriteFiles) -> Result<()> {
        let (_claim, image) = self.open_to_write(&grant.image)?;
        let mut found = survey(&image, &grant.files)?;
        let mut leaves_blocks = false;
        let mut write_all = || {
            for file in &grant.files {
                leaves_blocks |=
                    found.get(file.path.as_str()).is_some_and(|old| old.has_attribute_block);
                write(&image, file, &mut found)?;
                for folder in folders(&file.path) {
                    found.entry(folder).or_insert(NEW_FOLDER);
                }
            }
            Ok(())
        };
        let written = write_all();
        // debugfs removes a file without its block of extended attributes.
        if leaves_blocks { written.and(image.check()) } else { written }
    }

    /// `priv.fsck_snapshot`: `e2fsck -fy` on a snapshot that nobody has open.
    ///
    /// # Errors
    /// Refused: no such snapshot, one in use. What e2fsck could not repair.
    pub fn fsck_snapshot(&self, device: &DmDevice) -> Result<()> {
        let (_claim, image) = self.open_idle("dm_dev", device)?;
        image.check()
    }
}
