//! What is put into a jail before the jailer runs. All of it is checked before the first is made;
//! while it is made nobody but root can reach the jail.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use banger_gates::request::{Disk, Launch, Volume};
use banger_gates::{Name, Owner, Refusal};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::executable::Executable;
use super::{CONSOLE, config, record};
use crate::disk::identity;
use crate::{During, Host, Result, descriptor_path};

/// Where the dynamic loader and its libraries lie, links among them on most systems.
const LIBRARIES: [&str; 4] = ["usr/lib", "usr/lib64", "lib", "lib64"];
/// The parameter of a disk.
const DRIVE: Name = "drives.path";
/// What is done, for errors.
const PUT: &str = "put into the jail";
const OWNERS_ONLY: Mode = Mode::RUSR.union(Mode::WUSR);

/// What a machine is made of, opened.
#[derive(Debug)]
pub(super) struct Sources<'a> {
    kernel: File,
    initrd: Option<File>,
    disks: Vec<(&'a Disk, Source)>,
    /// Whether the libraries are needed.
    pub(super) is_dynamic: bool,
}

#[derive(Debug)]
enum Source {
    File(File),
    Device(u64),
}

impl Sources<'_> {
    /// The files and devices that the machine is made of, by their parameters.
    pub(super) fn uses(&self) -> Result<Vec<(Name, record::Use)>> {
        let kernel = std::iter::once(("kernel_image_path", &self.kernel));
        let read = kernel.chain(self.initrd.iter().map(|it| ("initrd_path", it)));
        let read = read.map(|(parameter, file)| Ok((parameter, (identity(file)?, true))));
        let disk = |(disk, source): &(&Disk, Source)| match source {
            Source::File(file) => Ok((DRIVE, (identity(file)?, disk.is_read_only))),
            Source::Device(number) => Ok((DRIVE, ((*number, 0), disk.is_read_only))),
        };
        read.chain(self.disks.iter().map(disk)).collect()
    }
}

impl Host {
    /// Opens what a machine is made of.
    pub(super) fn open_sources<'a>(
        &self,
        launch: &'a Launch,
        firecracker: &Executable,
    ) -> Result<Sources<'a>> {
        let kernel = self.state.open_file("kernel_image_path", &launch.kernel, false)?;
        let initrd = launch.initrd.as_ref();
        let initrd = initrd.map(|path| self.state.open_file("initrd_path", path, false));
        let open = |disk: &'a Disk| {
            let writes = !disk.is_read_only;
            let source = match &disk.source {
                Volume::File(path) => Source::File(self.state.open_file(DRIVE, path, writes)?),
                Volume::Device(it) => Source::Device(self.device_number(DRIVE, it, false)?),
            };
            Ok((disk, source))
        };
        let disks = launch.disks.iter().map(open).collect::<Result<_>>()?;
        let is_dynamic = firecracker.is_dynamic();
        let is_dynamic =
            is_dynamic.map_err(|error| Refusal::new("binary_path", error.to_string()))?;
        Ok(Sources { kernel, initrd: initrd.transpose()?, disks, is_dynamic })
    }

    /// Puts it into the root of a jail.
    pub(super) fn stage(&self, root: &OwnedFd, launch: &Launch, from: &Sources<'_>) -> Result<()> {
        let owner = self.policy.owner;
        let (user, group) = (Some(Uid::from_raw(owner.uid())), Some(Gid::from_raw(owner.gid())));
        mount_file(&from.kernel, root, config::KERNEL, true).during(PUT, config::KERNEL)?;
        if let Some(initrd) = &from.initrd {
            mount_file(initrd, root, config::INITRD, true).during(PUT, config::INITRD)?;
        }
        for (disk, source) in &from.disks {
            let name = config::disk_name(disk);
            let put = || match source {
                Source::File(file) if disk.is_read_only => mount_file(file, root, &name, true),
                Source::File(file) => link_or_mount(file, root, &name),
                // Root's, and by the group: who owned it could change its mode.
                Source::Device(device) => {
                    let write = if disk.is_read_only { Mode::empty() } else { Mode::WGRP };
                    let (node, mode) = (FileType::BlockDevice, Mode::RGRP | write);
                    rustix::fs::mknodat(root, &name, node, Mode::empty(), *device)?;
                    rustix::fs::chownat(root, &name, None, group, AtFlags::SYMLINK_NOFOLLOW)?;
                    Ok(rustix::fs::chmodat(root, &name, mode, AtFlags::empty())?)
                }
            };
            put().during(PUT, &name)?;
        }
        let write = || -> io::Result<()> {
            let mut file = create(root, config::CONFIG, Mode::RUSR)?;
            file.write_all(&config::of(launch))?;
            Ok(rustix::fs::fchown(&file, user, group)?)
        };
        write().during(PUT, config::CONFIG)?;
        if from.is_dynamic {
            mount_libraries(root).during(PUT, "the libraries")?;
        }
        Ok(())
    }
}

/// Makes the pipe that is Firecracker's standard input, in a root that is nobody's but root's yet. It
/// is open for writing too, so that it never ends, and is not waited for: Firecracker also reads where
/// there is nothing.
pub(super) fn make_console(root: &OwnedFd, owner: Owner) -> io::Result<OwnedFd> {
    rustix::fs::mknodat(root, CONSOLE, FileType::Fifo, OWNERS_ONLY, 0)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pipe = rustix::fs::openat(root, CONSOLE, flags, Mode::empty())?;
    let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    rustix::fs::fchown(&pipe, Some(user), Some(group))?;
    Ok(pipe)
}

fn create(root: &OwnedFd, name: &str, mode: Mode) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(root, name, flags, OWNERS_ONLY)?;
    rustix::fs::fchmod(&file, mode)?;
    Ok(File::from(file))
}

/// Gives what is written to another name, by `/proc/self/fd` because AT_EMPTY_PATH needs
/// CAP_DAC_READ_SEARCH; it must stay the same file, and is mounted where it cannot be linked.
fn link_or_mount(file: &File, root: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::linkat(CWD, descriptor_path(file), root, name, AtFlags::SYMLINK_FOLLOW) {
        Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => {
            mount_file(file, root, name, false)
        }
        linked => Ok(linked?),
    }
}

/// Shows an open file in the jail. What others share is shown read-only and never linked: a link
/// would be a file of the VMM's own uid, which a VMM that broke out could change.
fn mount_file(file: &File, root: &OwnedFd, name: &str, is_read_only: bool) -> io::Result<()> {
    drop(create(root, name, OWNERS_ONLY)?);
    mount(&descriptor_path(file), &descriptor_path(root).join(name), is_read_only)
}

fn mount(source: &Path, place: &Path, is_read_only: bool) -> io::Result<()> {
    rustix::mount::mount_bind(source, place)?;
    let hardened = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    let flags = if is_read_only { hardened | MountFlags::RDONLY } else { hardened };
    Ok(rustix::mount::mount_remount(place, flags, "")?)
}

/// Shows the host's libraries in the jail, read-only.
fn mount_libraries(root: &OwnedFd) -> io::Result<()> {
    let make = |name: &str| -> io::Result<()> {
        rustix::fs::mkdirat(root, name, Mode::RWXU)?;
        let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
        Ok(rustix::fs::chmod(descriptor_path(root).join(name), mode)?)
    };
    make("usr")?;
    for name in LIBRARIES {
        let source = Path::new("/").join(name);
        match source.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => {
                rustix::fs::symlinkat(std::fs::read_link(&source)?, root, name)?;
            }
            Ok(metadata) if metadata.is_dir() => {
                make(name)?;
                mount(&source, &descriptor_path(root).join(name), true)?;
            }
            _ => {}
        }
    }
    Ok(())
}
