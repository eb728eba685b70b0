//! The socket: passed by systemd or made, given to the owner, and everyone asked who they are.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banger_gates::Owner;
use banger_helper_api::ErrorCode;
use banger_host::Host;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::{audit, connection};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The most connections at one time.
const MOST_CONNECTIONS: usize = 32;
/// A connection's thread needs no more.
const STACK: usize = 512 << 10;

/// Takes the socket that systemd passed, or makes one that only root and the owner can open.
pub(crate) fn open(path: &Path, owner: Owner) -> Result<UnixListener, Failure> {
    let mut passed = banger_privileged_sys::listen_fds::take()?;
    if passed.len() > 1 {
        return Err("more than one socket was passed".into());
    }
    if let Some(descriptor) = passed.pop() {
        check_listener(&descriptor)?;
        return Ok(UnixListener::from(descriptor));
    }
    let named = |error: std::io::Error| format!("listen at {}: {error}", path.display());
    if UnixStream::connect(path).is_ok() {
        return Err(format!("another bangerd-root listens at {}", path.display()).into());
    }
    // One that cannot be removed is in the way of the next line, which says so.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(named)?;
    std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid())).map_err(named)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(named)?;
    Ok(listener)
}

/// A socket of another kind has no peers whose user the kernel knows.
fn check_listener(descriptor: &OwnedFd) -> Result<(), Failure> {
    let is_unix = sockopt::socket_domain(descriptor)? == AddressFamily::UNIX
        && sockopt::socket_type(descriptor)? == SocketType::STREAM
        && sockopt::socket_acceptconn(descriptor)?;
    if is_unix { Ok(()) } else { Err("the passed socket is no listening unix stream".into()) }
}

/// Serves until `parent`, where there is one to watch, has ended.
pub(crate) fn accept(
    listener: &UnixListener,
    host: &Arc<Host>,
    parent: Option<&OwnedFd>,
) -> Result<(), Failure> {
    // One for each connection, and this one.
    let places = Arc::new(());
    loop {
        if let Some(parent) = parent {
            let input = PollFlags::IN;
            // The parent is readable when it has ended (pidfd_open(2)).
            let mut events = [PollFd::new(listener, input), PollFd::new(parent, input)];
            match rustix::event::poll(&mut events, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => drop(polled?),
            }
            if !events[1].revents().is_empty() {
                return Ok(());
            }
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                audit::say("warn", error.to_string());
                // Out of descriptors or memory: others will end.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let place = Arc::clone(&places);
        let is_free = Arc::strong_count(&places) <= MOST_CONNECTIONS + 1;
        let host = Arc::clone(host);
        let spawned = std::thread::Builder::new().stack_size(STACK).spawn(move || {
            let _place = place;
            let Some(peer) = connection::Peer::of(&stream, host.policy().owner) else {
                let why = "neither root nor the owner";
                return connection::refuse(&stream, ErrorCode::Unauthorized, why);
            };
            if !is_free {
                return connection::refuse(&stream, ErrorCode::BadRequest, "too many connections");
            }
            connection::serve(&stream, peer, &host);
        });
        if let Err(error) = spawned {
            audit::say("warn", error.to_string());
        }
    }
}
