//! Files below a root, opened and never compared: `openat2(2)` refuses every link on the way, and
//! what is done is done to what was opened, so that a swap after the check changes nothing.

use std::ffi::OsStr;
use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_gates::{ManagedPath, Name, Policy, Refusal, Root};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::{BENEATH, During, HostError, LOOK, Result, descriptor_path, kind};

/// One of the two directories that belong to the owner, held open.
#[derive(Debug)]
pub struct Directory<R> {
    descriptor: OwnedFd,
    owner: u32,
    root: PhantomData<R>,
}

impl<R: Root> Directory<R> {
    /// Opens the root of a policy.
    ///
    /// # Errors
    /// No directory, a link on the way, another's directory.
    pub fn open(policy: &Policy) -> Result<Self> {
        let path = R::path(policy);
        let flags = LOOK | OFlags::DIRECTORY;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let descriptor = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve);
        let descriptor = descriptor.during("open", path.display())?;
        let owner = policy.owner.uid();
        let found = rustix::fs::fstat(&descriptor).during("open", path.display())?.st_uid;
        if found != owner {
            let cause = format!("it belongs to uid {found}, not to {owner}");
            return Err(HostError::of("use", path.display())(cause));
        }
        Ok(Self { descriptor, owner, root: PhantomData })
    }

    /// Opens what a path names without touching it (O_PATH); none if there is nothing.
    ///
    /// # Errors
    /// A link on the way or at the end (refused), anything else that hinders opening.
    pub fn look(&self, parameter: Name, path: &ManagedPath<R>) -> Result<Option<(OwnedFd, Stat)>> {
        let failed = |errno| Self::failed(parameter, path.relative(), errno);
        let descriptor = match self.resolve(path.relative(), LOOK) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let stat = rustix::fs::fstat(&descriptor).map_err(failed)?;
        // NO_SYMLINKS lets a link at the very end be opened as itself.
        let rule = "a symbolic link";
        Refusal::when(kind(&stat) == FileType::Symlink, parameter, rule)?;
        // Of a file outside that had a second name here for a moment, the count of names is right
        // again. That name's end is told of what was opened by it, and it comes after the count.
        let name =
            rustix::fs::readlink(descriptor_path(&descriptor), Vec::new()).map_err(failed)?;
        let is_gone = name.as_bytes().ends_with(b" (deleted)");
        Ok((!is_gone).then_some((descriptor, stat)))
    }

    /// Opens the owner's regular file for reading; for writing too if it `writes`, and then it must
    /// have this one name only: under another it could be a file outside.
    ///
    /// # Errors
    /// Nothing there, a link, no regular file, another's file, a file with more names (refused).
    pub fn open_file(&self, parameter: Name, path: &ManagedPath<R>, writes: bool) -> Result<File> {
        let found = self.look(parameter, path)?;
        let (descriptor, stat) = found.ok_or_else(|| Refusal::new(parameter, "no such file"))?;
        let is_broken = kind(&stat) != FileType::RegularFile;
        Refusal::when(is_broken, parameter, "not a regular file")?;
        Refusal::when(stat.st_uid != self.owner, parameter, "a file of another user")?;
        Refusal::when(writes && stat.st_nlink != 1, parameter, "a file with more than one name")?;
        let opened = File::options().read(true).write(writes).open(descriptor_path(&descriptor));
        let file = opened.during("open", path.relative().display())?;
        // Another name may have come between the two.
        let metadata = file.metadata().during("look at", path.relative().display())?;
        let rule = "a file with more than one name";
        Refusal::when(writes && metadata.nlink() != 1, parameter, rule)?;
        Ok(file)
    }

    /// Opens the directory that a path is to lie in, and returns the path's last part with it.
    ///
    /// # Errors
    /// No such directory, a link on the way, a directory of another user (refused).
    pub fn open_parent<'a>(
        &self,
        parameter: Name,
        path: &'a ManagedPath<R>,
    ) -> Result<(OwnedFd, &'a OsStr)> {
        let relative = path.relative();
        let leaf = relative.file_name().ok_or_else(|| Refusal::new(parameter, "no file name"))?;
        let parent = match relative.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => self.resolve(parent, LOOK | OFlags::DIRECTORY),
            None => self.descriptor.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE),
        };
        let failed = |errno| Self::failed(parameter, relative, errno);
        let parent = parent.map_err(failed)?;
        let stat = rustix::fs::fstat(&parent).map_err(failed)?;
        Refusal::when(stat.st_uid != self.owner, parameter, "in a directory of another user")?;
        Ok((parent, leaf))
    }

    fn resolve(&self, relative: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        // EAGAIN: a rename somewhere made the kernel give up proving that nothing leads out.
        for _ in 0..128 {
            match rustix::fs::openat2(&self.descriptor, relative, flags, Mode::empty(), BENEATH) {
                Err(Errno::AGAIN) => {}
                done => return done,
            }
        }
        Err(Errno::AGAIN)
    }

    fn failed(parameter: Name, path: &Path, errno: Errno) -> HostError {
        match errno {
            Errno::LOOP | Errno::XDEV => {
                Refusal::new(parameter, "a link on the way, or a way out of the root").into()
            }
            Errno::NOENT | Errno::NOTDIR => Refusal::new(parameter, "no such directory").into(),
            errno => HostError::of("open", path.display())(errno),
        }
    }
}
