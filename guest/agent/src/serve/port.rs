//! The virtio-serial port as an asynchronous stream.
//!
//! The port reports a hang-up for as long as no host is connected. Tokio treats that as final, and
//! level-triggered polling would spin on it. So the port sits in an epoll instance of its own,
//! edge-triggered, and tokio watches that instance: an edge (bytes, room, the host coming or going)
//! makes it readable once.
//!
//! The kernel handles bytes and the coming and going of hosts on different paths, so what it says
//! about a host may be older than the bytes just read: a new host's first bytes may come before
//! its arrival, or before the departure of the old one. So a hang-up counts only if it stands for
//! a while, a long one where the arrival has not been seen yet.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How long a hang-up must stand, under a load that may hold up a virtual processor.
const HANG_UP_DELAY: Duration = Duration::from_millis(100);

/// The same, before the kernel has reported the host's arrival.
const UNSEEN_HANG_UP_DELAY: Duration = Duration::from_secs(3);

/// Finds the device of the port called `name` (virtio-ports in sysfs).
pub(super) fn find(class: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(class).ok()?;
    entries
        .flatten()
        .find(|entry| {
            std::fs::read_to_string(entry.path().join("name")).is_ok_and(|n| n.trim_end() == name)
        })
        .map(|entry| Path::new("/dev").join(entry.file_name()))
}

/// An open port. Reading zero bytes means that the host has gone; reading goes on afterwards.
#[derive(Debug)]
pub(super) struct Port {
    file: OwnedFd,
    edges: AsyncFd<OwnedFd>,
    /// A read or write may succeed: it has not said otherwise since the last edge.
    readable: bool,
    writable: bool,
    /// The last read said that the host has gone, and that was passed on.
    away: bool,
    /// The kernel has said that a host is connected, since it last hung up.
    seen: bool,
    /// Since the last read of zero bytes, until it is known what that meant.
    hang_up: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Port {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        Self::new(rustix::fs::open(path, flags, Mode::empty())?)
    }

    fn new(file: OwnedFd) -> io::Result<Self> {
        let instance = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&instance, &file, epoll::EventData::new_u64(0), events)?;
        let edges = banger_guest_sys::watch(instance, tokio::io::Interest::READABLE)?;
        Ok(Self {
            file,
            edges,
            readable: true,
            writable: true,
            away: false,
            seen: false,
            hang_up: None,
        })
    }

    /// Notes an edge if there was one; otherwise the task is woken by the next.
    fn poll_edge(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = std::task::ready!(self.edges.poll_read_ready(context))?;
            let mut events = [const {
                epoll::Event {
                    flags: epoll::EventFlags::empty(),
                    data: epoll::EventData::new_u64(0),
                }
            }];
            let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let count = epoll::wait(self.edges.get_ref(), &mut events[..], Some(&timeout))?;
            if count > 0 {
                self.readable = true;
                self.writable = true;
                return Poll::Ready(Ok(()));
            }
            guard.clear_ready();
        }
    }
}

impl Port {
    /// Whether the port reports at this moment that no host is connected.
    fn hung_up(&self) -> bool {
        use rustix::event::{PollFd, PollFlags};
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok()
            && fds[0].revents().contains(PollFlags::HUP)
    }
}

impl AsyncRead for Port {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.readable {
                match rustix::io::read(&self.file, buffer.initialize_unfilled()) {
                    Ok(0) => {
                        self.readable = false;
                        if !self.away && self.hang_up.is_none() {
                            let delay =
                                if self.seen { HANG_UP_DELAY } else { UNSEEN_HANG_UP_DELAY };
                            self.hang_up = Some(Box::pin(tokio::time::sleep(delay)));
                        }
                    }
                    Ok(count) => {
                        self.away = false;
                        self.hang_up = None;
                        buffer.advance(count);
                        return Poll::Ready(Ok(()));
                    }
                    Err(rustix::io::Errno::AGAIN) => {
                        // The host is there and has nothing to say.
                        self.away = false;
                        self.seen = true;
                        self.hang_up = None;
                        self.readable = false;
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
                continue;
            }
            if let Some(delay) = &mut self.hang_up
                && delay.as_mut().poll(context).is_ready()
            {
                self.hang_up = None;
                if self.hung_up() {
                    self.away = true;
                    self.seen = false;
                    return Poll::Ready(Ok(()));
                }
                self.readable = true;
                continue;
            }
            std::task::ready!(self.poll_edge(context))?;
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.writable {
                match rustix::io::write(&self.file, bytes) {
                    Ok(count) if count > 0 => return Poll::Ready(Ok(count)),
                    // While no host is connected the port takes nothing.
                    Ok(_) | Err(rustix::io::Errno::AGAIN) => self.writable = false,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
                continue;
            }
            std::task::ready!(self.poll_edge(context))?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn a_port_is_found_by_its_name() {
        let class = tempfile::tempdir().unwrap();
        for (device, name) in [("vport0p1", "other\n"), ("vport0p2", "org.banger.agent.0\n")] {
            std::fs::create_dir(class.path().join(device)).unwrap();
            std::fs::write(class.path().join(device).join("name"), name).unwrap();
        }
        let found = find(class.path(), "org.banger.agent.0");
        assert_eq!(found.as_deref(), Some(Path::new("/dev/vport0p2")));
        assert_eq!(find(class.path(), "org.banger"), None);
    }

    #[tokio::test]
    async fn bytes_cross_both_ways_and_an_end_is_told_once() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut port = Port::new(near.into()).unwrap();
        let mut far = tokio::net::UnixStream::from_std(far).unwrap();
        far.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(port.read(&mut buffer).await.unwrap(), 4);
        let sender = tokio::spawn(async move {
            port.write_all(&vec![7; 1 << 20]).await.unwrap();
            port
        });
        let mut received = vec![0; 1 << 20];
        far.read_exact(&mut received).await.unwrap();
        let mut port = sender.await.unwrap();
        drop(far);
        assert_eq!(port.read(&mut buffer).await.unwrap(), 0);
        let again =
            tokio::time::timeout(std::time::Duration::from_millis(20), port.read(&mut buffer));
        assert!(again.await.is_err(), "a host that is gone must not be reported again and again");
    }
}
