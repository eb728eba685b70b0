//! The directory of a jail: `JAILS/firecracker/ID/root`.
//!
//! JAILS and `firecracker` are root's alone, so the jailer may walk there by name (CVE-2026-1386).
//! ID is closed to everybody but root while root works in it; it is opened to the owner when
//! Firecracker runs. Below `root` the VMM, and who has its uid, can put anything: it is emptied by
//! what is opened, no link is followed and no mount crossed.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_gates::{JailId, Policy, Refusal};
use banger_helper_api::ErrorCode;
use rustix::fs::{AtFlags, FileType, FlockOperation, Gid, Mode, RenameFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::mounts;
use crate::{
    BENEATH, During, HostError, LIST, LOOK, Result, check_room, descriptor_path, kind,
    open_guarded, unlink,
};

/// The jailer's folder has the name of the file that it runs.
const FOLDER: &str = "firecracker";
const ROOT: &str = "root";
/// How many an owner may have, of machines that run and of those that are not cleaned up.
const MOST: usize = 256;
/// Everybody may pass, and see nothing.
pub(super) const PASS: Mode = Mode::RWXU.union(Mode::XGRP).union(Mode::XOTH);
/// How long the emptying of a jail may take while another process fills it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many names are held in memory at once: a hostile VMM may have made millions of files.
const BATCH: usize = 1024;

/// A jail that nobody else works on: the directory is locked (flock(2)) as long as this lives.
#[derive(Debug)]
pub(super) struct Jail {
    /// `JAILS/firecracker/ID`.
    pub(super) path: PathBuf,
    folder: OwnedFd,
    directory: OwnedFd,
}

/// Where the jail of an id is.
pub(super) fn path(policy: &Policy, id: &JailId) -> PathBuf {
    policy.jails.join(FOLDER).join(id.as_str())
}

/// Opens what lies in a directory, O_PATH, through no link and out of no mount.
pub(super) fn look(directory: impl AsFd, path: &OsStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(directory, path, LOOK, Mode::empty(), BENEATH | ResolveFlags::NO_XDEV)
}

impl Drop for Jail {
    fn drop(&mut self) {
        // A child that is about to execute something else may still hold a copy of the descriptor.
        let _ = rustix::fs::flock(&self.directory, FlockOperation::Unlock);
    }
}

fn open_folder(folder: &Path) -> Result<Option<OwnedFd>> {
    let opened = open_guarded(folder, true).during("use", folder.display())?;
    Ok(opened.map(|(descriptor, _)| descriptor))
}

fn no(reason: &str) -> HostError {
    Refusal::new("chroot_root", reason).with_code(ErrorCode::InvalidPath).into()
}

impl Jail {
    /// Makes a jail with an empty root, closed to all but root.
    ///
    /// # Errors
    /// There is one of this id, or one too many (refused); a base that is not root's alone.
    pub(super) fn create(policy: &Policy, id: &JailId) -> Result<Self> {
        let (path, folder) = (path(policy, id), policy.jails.join(FOLDER));
        let jails = policy.jails.display();
        let base = open_guarded(&policy.jails, true).during("use", &jails)?;
        let (base, _) = base.ok_or_else(|| HostError::of("use", &jails)("it is not there"))?;
        match rustix::fs::mkdirat(&base, FOLDER, PASS) {
            Err(Errno::EXIST) => {}
            made => {
                made.during("make", path.display())?;
                lchown(&folder, None, Some(policy.owner.gid())).during("make", path.display())?;
                rustix::fs::chmod(&folder, Mode::from(0o750)).during("make", path.display())?;
            }
        }
        let folder = open_folder(&folder)?.ok_or(Errno::NOENT).during("make", path.display())?;
        let jails = std::fs::read_dir(descriptor_path(&folder)).during("list", &jails)?;
        check_room("vm_id", jails.count(), MOST, "machines")?;
        match rustix::fs::mkdirat(&folder, id.as_str(), Mode::RWXU) {
            Err(Errno::EXIST) => {
                let rule = "there is a jail of this id, which must be cleaned up first";
                return Err(Refusal::new("vm_id", rule).into());
            }
            made => made.during("make", path.display())?,
        }
        let make = || -> rustix::io::Result<OwnedFd> {
            // A clean-up that comes between these calls takes the directory away, and this fails.
            let directory = rustix::fs::openat(&folder, id.as_str(), LIST, Mode::empty())?;
            rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
            rustix::fs::mkdirat(&directory, ROOT, Mode::RWXU)?;
            Ok(directory)
        };
        let made = make().inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&folder, id.as_str(), AtFlags::REMOVEDIR);
        });
        let directory = made.during("make", path.display())?;
        Ok(Self { path, folder, directory })
    }

    /// Opens the jail of an id, if there is one.
    ///
    /// # Errors
    /// Another works on it; a link, or what is not root's, in place of its directories (refused).
    pub(super) fn open(policy: &Policy, id: &JailId) -> Result<Option<Self>> {
        Self::open_in(&policy.jails.join(FOLDER), id)
    }

    /// Takes away what a jailer made for this id in another folder: where a link comes in place of
    /// the file that it runs, the folder has the name of what the link leads to.
    pub(super) fn remove_strays(policy: &Policy, id: &JailId) -> Result<()> {
        let folders = std::fs::read_dir(&policy.jails).into_iter().flatten().flatten();
        for folder in folders.filter(|it| it.file_name() != FOLDER).map(|it| it.path()) {
            if let Some(stray) = Self::open_in(&folder, id)? {
                stray.remove(policy.owner.uid())?;
                // Another id's may be there.
                let _ = std::fs::remove_dir(&folder);
            }
        }
        Ok(())
    }

    fn open_in(folder: &Path, id: &JailId) -> Result<Option<Self>> {
        let path = folder.join(id.as_str());
        let Some(folder) = open_folder(folder)? else { return Ok(None) };
        let directory = match rustix::fs::openat(&folder, id.as_str(), LIST, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(no("not a directory")),
            opened => opened.during("open", path.display())?,
        };
        let stat = rustix::fs::fstat(&directory).during("open", path.display())?;
        if stat.st_uid != 0 || stat.st_mode & 0o022 != 0 {
            return Err(no("not root's alone"));
        }
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(no("another request works on it")),
            locked => locked.during("open", path.display())?,
        }
        match rustix::fs::statat(&directory, ROOT, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if kind(&stat) != FileType::Directory => {
                return Err(no("root is not a directory"));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(HostError::of("open", path.display())(errno)),
        }
        Ok(Some(Self { path, folder, directory }))
    }

    /// The device and inode of the Firecracker that lies in the jail of an id.
    pub(super) fn executable(policy: &Policy, id: &JailId) -> Option<(u64, u64)> {
        let folder = open_folder(&policy.jails.join(FOLDER)).ok()??;
        let path = Path::new(id.as_str()).join(ROOT).join(FOLDER);
        let stat = rustix::fs::fstat(look(folder, path.as_os_str()).ok()?).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }

    /// Its root (O_PATH).
    pub(super) fn root(&self) -> Result<OwnedFd> {
        look(&self.directory, OsStr::new(ROOT)).during("open", self.path.join(ROOT).display())
    }

    /// Lets the owner pass to its root, or nobody any more.
    pub(super) fn set_open(&self, is_open: bool) -> Result<()> {
        let mode = if is_open { PASS } else { Mode::RWXU };
        rustix::fs::fchmod(&self.directory, mode).during("change the mode of", self.path.display())
    }

    /// Makes its root root's, for others to pass through, so that what root has put there stays there.
    /// Firecracker passes all the time; who has its uid may change the mode before it is root's.
    pub(super) fn take_root(&self, root: &OwnedFd) -> Result<()> {
        let take = || {
            rustix::fs::chmod(descriptor_path(root), PASS)?;
            rustix::fs::chownat(root, "", Some(Uid::ROOT), None, AtFlags::EMPTY_PATH)?;
            rustix::fs::chmod(descriptor_path(root), PASS)
        };
        take().during("take", self.path.join(ROOT).display())
    }

    /// Takes it away with all that is in it, where that is the owner's.
    pub(super) fn remove(self, owner: u32) -> Result<()> {
        self.set_open(false)?;
        // Still the owner's, where the launch failed.
        let root = rustix::fs::openat(&self.directory, ROOT, LOOK, Mode::empty());
        root.as_ref().map_or(Ok(()), |root| self.take_root(root))?;
        self.unmount().during("unmount all below", self.path.display())?;
        self.empty(owner).during("empty", self.path.display())?;
        let name = self.path.file_name().unwrap_or_default();
        rustix::fs::unlinkat(&self.folder, name, AtFlags::REMOVEDIR)
            .during("remove", self.path.display())
    }

    /// Unmounts what is mounted below, the deepest first. What others have mounted in a directory of
    /// the owner's stays so, wherever that was moved to, and the jail with it.
    fn unmount(&self) -> Result<(), String> {
        let points = || mounts::below(&self.path).map_err(|error| error.to_string());
        for point in points()? {
            let (parent, leaf) = (point.parent().unwrap_or(&point), point.file_name());
            let fault = |fault| format!("{} is mounted: {fault}", point.display());
            if let Some((parent, _)) = open_guarded(parent, true).map_err(fault)? {
                let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                let point = descriptor_path(&parent).join(leaf.unwrap_or_default());
                rustix::mount::unmount(point, flags).map_err(|errno| errno.to_string())?;
            }
        }
        // Gone with what it lay in, or moved here meanwhile.
        points()?.first().map_or(Ok(()), |left| Err(format!("{} is mounted", left.display())))
    }

    /// Removes everything in it. A directory that is not empty is moved up to here, which only root
    /// can enter, so that neither a deep tree nor one that moves meanwhile costs more than two open
    /// files; it is made root's first, so that nobody adds to it. What is not empty and another's
    /// stays where it is, and the jail with it: the owner may have moved here, but never emptied,
    /// what lay in a directory of the owner's.
    fn empty(&self, owner: u32) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut moved = 0_u64;
        loop {
            let names = names(&self.directory)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                if remove(&self.directory, &name)? {
                    continue;
                }
                let flags = BENEATH | ResolveFlags::NO_XDEV;
                let sub = rustix::fs::openat2(&self.directory, &name, LIST, Mode::empty(), flags)?;
                rustix::fs::fchown(&sub, Some(Uid::ROOT), Some(Gid::ROOT))?;
                rustix::fs::fchmod(&sub, Mode::RWXU)?;
                for entry in self::names(&sub)? {
                    while !remove(&sub, &entry)? {
                        let uid =
                            rustix::fs::statat(&sub, &entry, AtFlags::SYMLINK_NOFOLLOW)?.st_uid;
                        if uid == 0 && name.to_bytes() == ROOT.as_bytes() && hide(&sub, &entry)? {
                            continue;
                        }
                        if uid != owner {
                            let fault =
                                format!("{entry:?} in {name:?} is of uid {uid}: move it out");
                            return Err(io::Error::other(fault));
                        }
                        moved += 1;
                        let place = format!("moved-{moved}");
                        let flags = RenameFlags::NOREPLACE;
                        match rustix::fs::renameat_with(&sub, &entry, &self.directory, place, flags)
                        {
                            // Left there by a clean-up that was cut off.
                            Err(Errno::EXIST) => {}
                            done => done?,
                        }
                    }
                }
                if Instant::now() > end {
                    return Err(io::Error::other("it takes too long"));
                }
            }
        }
    }
}

/// Removes what the libraries were shown in from a directory of root's in the jail's root; false where
/// there is none. Its name is the owner's to change, but not its place: to move a directory is to write
/// into it (rename(2), EACCES).
fn hide(root: &OwnedFd, name: &CStr) -> rustix::io::Result<bool> {
    let shown = look(root, OsStr::from_bytes(name.to_bytes()))?;
    let is_gone = |it| rustix::fs::unlinkat(&shown, it, AtFlags::REMOVEDIR).is_ok();
    Ok(["lib", "lib64"].into_iter().filter(|it| is_gone(*it)).count() > 0)
}

/// Removes a file or an empty directory; false for a directory that is not empty.
fn remove(directory: &OwnedFd, name: &CStr) -> rustix::io::Result<bool> {
    match unlink(directory, name) {
        Err(Errno::ISDIR) => {}
        done => return done.map(|()| true),
    }
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        done => done.map(|()| true),
    }
}

/// The entries of a directory, or so many of them that there are more.
fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let names = rustix::fs::Dir::read_from(directory)?.map(|it| Ok(it?.file_name().to_owned()));
    let is_above = |name: &CStr| matches!(name.to_bytes(), b"." | b"..");
    let is_below = |it: &rustix::io::Result<CString>| !it.as_ref().is_ok_and(|it| is_above(it));
    names.filter(is_below).take(BATCH).collect()
}
