//! The sockets that the owner reaches a machine by: links in the runtime directory, because the path
//! of a socket has 107 bytes (unix(7)) and a jail's is longer.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_gates::request::Launch;
use banger_gates::{JailId, JailRoot, ManagedPath, Name, Refusal, Socket};
use banger_helper_api::ErrorCode;
use banger_privileged_sys::as_file_user;
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::record::{Launched, Link};
use super::{API_SOCKET, VSOCK_SOCKET, jail};
use crate::{During, Host, HostError, LOOK, Result, descriptor_path, kind, unlink};

/// How long a socket may take to appear.
const PATIENCE: Duration = Duration::from_secs(2);

/// Connects to what was opened by O_PATH, and does not wait for a listener that has no time.
pub(super) fn connect(socket: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let client = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&client, &SocketAddrUnix::new(descriptor_path(socket))?)?;
    Ok(client)
}

/// Whether a socket has no listener any more.
fn is_stale(directory: &OwnedFd, leaf: &OsStr) -> bool {
    let opened = rustix::fs::openat(directory, leaf, LOOK, Mode::empty());
    opened.is_ok_and(|socket| connect(&socket).is_err_and(|errno| errno == Errno::CONNREFUSED))
}

/// The links of a launch: parameter, place, and what they lead to.
fn links(launch: &Launch) -> Vec<(&'static str, &Socket, &'static str)> {
    let vsock = launch.vsock.iter().map(|(_, path)| ("vsock_path", path, VSOCK_SOCKET));
    std::iter::once(("socket_path", &launch.api_socket, API_SOCKET)).chain(vsock).collect()
}

impl Host {
    fn target(&self, id: &JailId, socket: &str) -> PathBuf {
        let root = jail::path(&self.policy, id).join("root");
        root.join(socket.trim_start_matches('/'))
    }

    /// What is to be remembered of the links of a launch.
    pub(super) fn links_of(&self, launch: &Launch) -> Vec<Link> {
        let link = |at: &Socket, socket| Link {
            at: at.relative().to_owned(),
            target: self.target(&launch.id, socket),
        };
        links(launch).into_iter().map(|(_, at, socket)| link(at, socket)).collect()
    }

    /// Refuses places for links that are taken by anything but a link or a stale socket.
    pub(super) fn check_links(&self, launch: &Launch) -> Result<()> {
        for (parameter, at, _) in links(launch) {
            let (directory, leaf) = self.runtime.open_parent(parameter, at)?;
            let found = match rustix::fs::statat(&directory, leaf, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => None,
                found => Some(kind(&found.during("look at", at.relative().display())?)),
            };
            let is_free = match found {
                None | Some(FileType::Symlink) => true,
                Some(FileType::Socket) => is_stale(&directory, leaf),
                Some(_) => false,
            };
            Refusal::when(!is_free, parameter, "neither a link nor a stale socket")?;
        }
        Ok(())
    }

    /// Makes the links, in place of what was found to be stale. The directories are the owner's, who
    /// can swap what lies there at any time and gains nothing by it; so are the links, because root
    /// would trust its own elsewhere.
    pub(super) fn make_links(&self, launch: &Launch) -> Result<()> {
        for (parameter, at, socket) in links(launch) {
            let (directory, leaf) = self.runtime.open_parent(parameter, at)?;
            let make = || {
                let staged = format!(".{}.{}", launch.id.as_str(), socket.len());
                unlink(&directory, &staged)?;
                rustix::fs::symlinkat(self.target(&launch.id, socket), &directory, &staged)?;
                let renamed = rustix::fs::renameat(&directory, &staged, &directory, leaf);
                if renamed.is_err() {
                    let _ = unlink(&directory, &staged);
                }
                renamed
            };
            let made = as_file_user(self.policy.owner.uid(), self.policy.owner.gid(), make);
            made.during("link", at.relative().display())?;
        }
        Ok(())
    }

    /// Removes the links of a launch that still lead to its jail.
    pub(super) fn remove_links(&self, launched: &Launched) -> Result<()> {
        for link in &launched.links {
            let at = self.policy.runtime.join(&link.at);
            let at = ManagedPath::parse("record", at.to_str().unwrap_or_default(), &self.policy)?;
            // Where the owner took the directory away, the link is gone with it.
            let Ok((directory, leaf)) = self.runtime.open_parent("record", &at) else { continue };
            let target = rustix::fs::readlinkat(&directory, leaf, Vec::new());
            if target.is_ok_and(|target| target.as_bytes() == link.target.as_os_str().as_bytes()) {
                match unlink(&directory, leaf) {
                    // The owner has put a folder there meanwhile.
                    Err(Errno::ISDIR) => {}
                    done => done.during("remove", link.at.display())?,
                }
            }
        }
        Ok(())
    }

    /// The jail that the link at a path leads to, if it is one of ours.
    pub(super) fn jail_behind(&self, parameter: Name, socket: &Socket) -> Result<Option<JailId>> {
        let (directory, leaf) = self.runtime.open_parent(parameter, socket)?;
        let target = rustix::fs::readlinkat(&directory, leaf, Vec::new());
        let Ok(target) = target else { return Ok(None) };
        let root = target.to_str().ok().and_then(|target| target.strip_suffix(API_SOCKET));
        let root = root.map(|root| JailRoot::parse(parameter, root, &self.policy));
        Ok(root.and_then(Result::ok).map(|root| root.id().clone()))
    }

    /// Gives a socket in the runtime directory to the owner alone (mode 0600). One that is not there
    /// yet is waited for, 2 s at most.
    ///
    /// # Errors
    /// No socket, a link to one or on the way, a socket with more names than one or of another user
    /// than root or the owner (all refused with `invalid_path`); none appears.
    pub fn ensure_socket_access(&self, path: &Socket) -> Result<()> {
        let socket = self.wait_for_socket(path).map_err(|error| match error {
            HostError::Refused(refusal) => refusal.with_code(ErrorCode::InvalidPath).into(),
            failed => failed,
        })?;
        let (owner, name) = (self.policy.owner, path.relative().display());
        let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
        let chown = rustix::fs::chownat(&socket, "", Some(user), Some(group), AtFlags::EMPTY_PATH);
        chown.during("change the owner of", &name)?;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::chmod(descriptor_path(&socket), mode).during("change the mode of", name)
    }

    fn wait_for_socket(&self, path: &Socket) -> Result<OwnedFd> {
        let end = Instant::now() + PATIENCE;
        let parameter = "socket_path";
        let (socket, stat) = loop {
            if let Some(found) = self.runtime.look(parameter, path)? {
                break found;
            }
            if Instant::now() > end {
                let name = path.relative().display();
                return Err(HostError::of("wait for the socket", name)("it does not appear"));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Refusal::when(kind(&stat) != FileType::Socket, parameter, "not a socket")?;
        // A socket elsewhere could have been given a name here.
        Refusal::when(stat.st_nlink != 1, parameter, "a socket with more than one name")?;
        let is_anothers = stat.st_uid != 0 && stat.st_uid != self.policy.owner.uid();
        Refusal::when(is_anothers, parameter, "a socket of another user")?;
        Ok(socket)
    }
}

/// A socket of a jail, not through a link that the VMM put there.
pub(super) fn in_root(root: &OwnedFd, socket: &str) -> Option<OwnedFd> {
    let path = Path::new(socket.trim_start_matches('/'));
    let opened = jail::look(root, path.as_os_str()).ok()?;
    let stat = rustix::fs::fstat(&opened).ok()?;
    (kind(&stat) == FileType::Socket).then_some(opened)
}
