//! Waiting: for the kernel's word where it gives one, else by looking again.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

/// Between two looks at what has no events.
const PAUSE: Duration = Duration::from_millis(50);
/// The group of netlink(7)'s NETLINK_KOBJECT_UEVENT that the kernel itself sends to.
const FROM_THE_KERNEL: u32 = 1;

/// Looks again and again until it holds. For what nobody is told of:
///
/// - a socket that is listened on: its name is an event of its folder, listen(2) is none;
/// - a guest's network: its agent tells it when it is asked;
/// - what resolved does with a link's carrier: `ScopesMask` of its D-Bus links has no signal;
/// - a service's new process, and that it answers again: systemd sends its signals to those only who
///   have subscribed over D-Bus, and these tests do not link a client of that;
/// - a machine's state as `banger` tells it.
///
/// # Panics
/// With `what`, when it has not held for so long.
pub(crate) fn look_until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(PAUSE);
    }
}

/// The same in asynchronous work, until there is a value; the caller bounds the time.
pub(crate) async fn look_for<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = look().await {
            return value;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks whenever something comes into a folder or leaves it (inotify(7)), until it holds; false if
/// it has not for so long.
pub(crate) fn holds_in_folder(
    folder: &Path,
    patience: Duration,
    holds: impl FnMut() -> bool,
) -> bool {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let events = inotify::init(flags).expect("an inotify");
    let of = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&events, folder, of).expect("watch a folder");
    holds_at_events(&events, patience, holds, |events| {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(events, &mut buffer);
        while reader.next().is_ok() {}
    })
}

/// Looks whenever a device of the kernel's comes, goes or changes, until it holds; false if it has
/// not for so long.
pub(crate) fn holds_of_devices(patience: Duration, holds: impl FnMut() -> bool) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = (AddressFamily::NETLINK, SocketType::DGRAM);
    let events = rustix::net::socket_with(kind.0, kind.1, flags, Some(KOBJECT_UEVENT));
    let events = events.expect("a socket for uevents");
    rustix::net::bind(&events, &SocketAddrNetlink::new(0, FROM_THE_KERNEL)).expect("uevents");
    holds_at_events(&events, patience, holds, |events| {
        let mut buffer = [0; 8192];
        // More of them than the socket holds is an error that is an event, too.
        while matches!(
            rustix::net::recv(events, &mut buffer[..], RecvFlags::empty()),
            Ok(_) | Err(rustix::io::Errno::NOBUFS)
        ) {}
    })
}

/// Looks once, and again after each event, which `take` then takes.
fn holds_at_events(
    events: &OwnedFd,
    patience: Duration,
    mut holds: impl FnMut() -> bool,
    take: impl Fn(&OwnedFd),
) -> bool {
    let end = Instant::now() + patience;
    loop {
        if holds() {
            return true;
        }
        let rest = end.saturating_duration_since(Instant::now());
        let rest = Timespec::try_from(rest).expect("a time");
        let mut ready = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN)];
        match poll(&mut ready, Some(&rest)) {
            Ok(0) => return holds(),
            Ok(_) | Err(rustix::io::Errno::INTR) => take(events),
            Err(error) => panic!("wait for events: {error}"),
        }
    }
}
