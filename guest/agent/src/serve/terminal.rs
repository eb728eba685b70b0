//! A pseudo-terminal pair for an exec.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use banger_agent_api::WindowSize;
use banger_guest_sys::Identity;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;

/// The master's side, which the agent keeps.
#[derive(Debug)]
pub(super) struct Terminal {
    master: AsyncFd<OwnedFd>,
}

impl Terminal {
    /// Opens a pair of `size` for `identity`; the second value is the side of the command.
    pub fn open(size: WindowSize, identity: &Identity) -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        // By ioctl, because /dev/pts of an image may be anything.
        let peer = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        let owner = rustix::fs::Uid::from_raw(identity.uid);
        // The group stays what devpts gave it (gid=5, tty), as login(1) leaves it.
        rustix::fs::fchown(&peer, Some(owner), None)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let terminal = Self {
            master: banger_guest_sys::watch(
                master,
                tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE,
            )?,
        };
        terminal.resize(size)?;
        Ok((terminal, peer))
    }

    /// Changes the size; the kernel tells the foreground processes.
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.master.get_ref(), size)?)
    }

    /// Reads what the command wrote; zero bytes once nobody has the other side open.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self
            .master
            .async_io(tokio::io::Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?))
            .await;
        match result {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Ok(0)
            }
            other => other,
        }
    }

    /// Types `bytes`; returns how many were taken.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.master
            .async_io(tokio::io::Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?))
            .await
    }

    /// Returns the process group in the foreground of the terminal.
    pub fn foreground(&self) -> Option<rustix::process::Pid> {
        rustix::termios::tcgetpgrp(self.master.get_ref()).ok()
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.get_ref().as_fd()
    }
}
