//! The host's routes: the kernel tells everybody when one changes (rtnetlink(7)).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout};

/// `RTMGRP_IPV4_ROUTE` of `<linux/rtnetlink.h>`
const IPV4_ROUTES: u32 = 0x40;
/// Routes change together: a lease of DHCP, or a VPN, brings some. They are one change when so
/// long no other follows,
const QUIET: Duration = Duration::from_millis(250);
/// or at the latest after this.
const LONGEST: Duration = Duration::from_secs(2);

/// A subscription to changes of the IPv4 routes, in the network namespace of who made it.
#[derive(Debug)]
pub(crate) struct RouteChanges(AsyncFd<OwnedFd>);

impl RouteChanges {
    /// Subscribes.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, IPV4_ROUTES))?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe because a type could change its descriptor; OwnedFd \
                      keeps one and the same until it is dropped"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Self(socket))
    }

    /// Waits until routes have changed and rest again.
    pub(crate) async fn next(&self) -> io::Result<()> {
        self.one().await?;
        let end = Instant::now() + LONGEST;
        while let Ok(another) = timeout(QUIET, self.one()).await {
            another?;
            if Instant::now() > end {
                break;
            }
        }
        Ok(())
    }

    /// Takes one message; what it says is for the helper to find out.
    async fn one(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let taken = ready.try_io(|socket| {
                match rustix::net::recv(socket, &mut [0_u8; 16], RecvFlags::empty()) {
                    // More came than had room: routes have changed all the same.
                    Ok(_) | Err(Errno::NOBUFS) => Ok(()),
                    Err(errno) => Err(errno.into()),
                }
            });
            if let Ok(taken) = taken {
                return taken;
            }
        }
    }
}
