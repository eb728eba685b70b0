//! The server: streams from the host, one call each.
//!
//! One thread. Long blocking work (unpacking a tree, sync) goes to a second one for its time.

mod calls;
mod cgroup;
mod command;
mod connect;
mod console_log;
mod console_shell;
mod detached;
mod detached_output;
mod environment;
mod exec;
mod identity;
mod input;
mod main_process;
mod output;
mod port;
mod ports;
mod power_off;
mod ssh;
mod stats;
mod terminal;
mod tree;
mod tree_get;
mod tree_list;
mod tree_put;
mod tree_stream;
mod tree_walk;
mod users;

use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use banger_agent_api::mux::{Multiplexer, SessionConfig};
use banger_agent_api::{SERIAL_PORT_NAME, VSOCK_PORT};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::LocalSet;

pub use calls::Server;

use crate::console;

/// Limits of the guest's end: what the agent's memory bears.
pub const GUEST_SESSION: SessionConfig = SessionConfig { window: 128 * 1024, max_streams: 256 };

/// Between two looks for a port or a vsock device that is not there yet.
const DEVICE_PAUSE: Duration = Duration::from_millis(50);

/// A vsock module is loaded late; a machine without the device is given up on.
const VSOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Serves until the machine ends. Ends on a failure; the supervisor starts another.
pub(crate) fn run() -> ExitCode {
    // The kernel should kill anything else first when memory runs out; children set it back.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(Duration::from_secs(1))
        .thread_stack_size(256 * 1024)
        .build();
    let result = runtime.and_then(|runtime| {
        let server = Rc::new(Server::new());
        LocalSet::new().block_on(&runtime, async {
            tokio::task::spawn_local(Rc::clone(&server).watch_network());
            tokio::task::spawn_local(serve_vsock(Rc::clone(&server)));
            serve_port(server).await
        })
    });
    if let Err(error) = result {
        console::error(&format!("the agent's server failed: {error}"));
    }
    ExitCode::FAILURE
}

async fn serve_port(server: Rc<Server>) -> std::io::Result<()> {
    let path = loop {
        match port::find(Path::new("/sys/class/virtio-ports"), SERIAL_PORT_NAME) {
            Some(path) => break path,
            // A machine with vsock has no port; looking costs nothing.
            None => tokio::time::sleep(DEVICE_PAUSE).await,
        }
    };
    serve_pipe(server, port::Port::open(&path)?).await
}

/// Serves a host at the other end of a byte pipe, through the multiplexer.
pub async fn serve_pipe<T>(server: Rc<Server>, transport: T) -> std::io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (multiplexer, driver) = Multiplexer::guest(transport, GUEST_SESSION);
    let accept = async {
        while let Some(stream) = multiplexer.accept().await {
            tokio::task::spawn_local(Rc::clone(&server).serve(stream));
        }
    };
    tokio::select! {
        result = driver => result,
        () = accept => Ok(()),
    }
}

/// Serves hosts that connect by vsock, one stream per connection.
async fn serve_vsock(server: Rc<Server>) {
    let deadline = tokio::time::Instant::now() + VSOCK_PATIENCE;
    let listener = loop {
        // A device, not just the protocol: without one, only this guest could connect.
        if Path::new("/dev/vsock").exists()
            && let Ok(listener) = banger_guest_sys::listen_vsock(VSOCK_PORT)
        {
            break listener;
        }
        if tokio::time::Instant::now() >= deadline {
            return;
        }
        tokio::time::sleep(DEVICE_PAUSE * 10).await;
    };
    let result = accept_vsock(server, listener).await;
    if let Err(error) = result {
        console::error(&format!("the agent's vsock listener failed: {error}"));
    }
}

async fn accept_vsock(server: Rc<Server>, listener: std::os::fd::OwnedFd) -> std::io::Result<()> {
    use std::os::fd::AsFd;
    let listener = banger_guest_sys::watch(listener, tokio::io::Interest::READABLE)?;
    loop {
        let (socket, peer) = listener
            .async_io(tokio::io::Interest::READABLE, |fd| {
                banger_guest_sys::accept_vsock(fd.as_fd())
            })
            .await?;
        // An unprivileged process of this guest could reach the agent over the loopback address.
        if peer != banger_guest_sys::VMADDR_CID_HOST {
            continue;
        }
        // To tokio a stream socket is a stream socket; the address family shows in no call it makes.
        let stream = std::os::unix::net::UnixStream::from(socket);
        tokio::task::spawn_local(
            Rc::clone(&server).serve(tokio::net::UnixStream::from_std(stream)?),
        );
    }
}
