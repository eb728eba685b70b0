//! The real agent in this process, for the tests in `tests/`: owner/ and guest/ know each other only
//! through wire/, so a test that needs both lives here.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test's helper fails it where it stands, and a skip must be seen"
)]

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use banger_agent::serve::{Server, serve_pipe};
use banger_guest_client::{GuestChannel, SerialChannel};

/// Longer than any test takes.
const LONGEST: Duration = Duration::from_secs(150);

/// Starts an agent on a thread of its own, which ends with the channel.
///
/// # Panics
/// There are no sockets or threads left, or no runtime of tokio's is running.
#[must_use]
pub fn start() -> Arc<SerialChannel> {
    let (near, far) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async move {
            far.set_nonblocking(true).unwrap();
            let far = tokio::net::UnixStream::from_std(far).unwrap();
            let pipe = serve_pipe(Rc::new(Server::without_cgroups()), far);
            let _ = tokio::time::timeout(LONGEST, pipe).await;
        });
    });
    near.set_nonblocking(true).unwrap();
    Arc::new(SerialChannel::over(tokio::net::UnixStream::from_std(near).unwrap()))
}

/// As [`start`], for tests that run commands; `None`, and said so, for anyone but root.
///
/// # Panics
/// As [`start`], and the agent does not answer.
pub async fn start_as_root() -> Option<Arc<SerialChannel>> {
    if std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() != 0) {
        eprintln!("SKIP: root: the agent sets the groups of the commands it runs");
        return None;
    }
    let channel = start();
    channel.wait_ready().await.unwrap();
    Some(channel)
}
