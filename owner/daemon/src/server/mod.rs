//! The daemon's socket: who may connect, how many, and how HTTP is spoken.
//!
//! ```text
//! accept -> SO_PEERCRED: own uid or root, else 403 and close
//!        -> at most CONNECTIONS_MOST, else 503 and close
//!        -> HTTP/1.1 with header caps and deadline -> request::handle -> api/*
//! ```

mod extract;
mod failure;
mod peer;
mod refusal;
mod request;
mod upgrade;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_helper_client::HelperClient;
use banger_store::StateLock;
use banger_vmm::firecracker::FirecrackerVmm;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Api};
use crate::arguments::Arguments;
use crate::directories::Directories;
use crate::idle::{self, Connections};
use crate::process::Identity;
use crate::readiness::Readiness;
use crate::services::Services;
use crate::start_error::StartError;

pub use extract::{JsonBody, OpId, OptionalJsonBody, PathPart, Query};
pub use failure::{Answer, Failure};
pub use peer::Peer;
pub use upgrade::Upgrade;

/// The most connections at a time, those of leases and of the guest agent included.
const CONNECTIONS_MOST: usize = 512;

/// The most refused peers that are being answered at a time; more are cut without a word.
const REFUSALS_MOST: usize = 16;

/// How long a request's headers may take, and how long a connection may idle between requests.
const HEADER_DEADLINE: Duration = Duration::from_secs(30);

/// The state directory of root's daemon where none is named.
const DIRECT_STATE: &str = "/var/lib/banger-direct";

/// How long open connections may take to finish when the daemon ends.
const END_GRACE: Duration = Duration::from_secs(5);

/// Starts the services, serves the socket until told to end, and ends in order.
pub async fn run(
    arguments: &Arguments,
    identity: Identity,
    directories: &Directories,
    lock: StateLock,
    readiness: &mut Readiness,
) -> Result<(), StartError> {
    let end = CancellationToken::new();
    watch_signals(&end)?;
    let firecracker = arguments.helper_socket.as_ref().zip(arguments.jail_dir.as_ref());
    let firecracker = firecracker.map(|(socket, jails)| {
        let helper = HelperClient::new(socket.clone());
        let marks = directories.state.join("jails");
        let choice = arguments.accel;
        // Any KVM will do for a guest that does nothing.
        #[cfg(feature = "fault-hooks")]
        let choice = match crate::held_guests::wanted(&directories.state) {
            true => banger_vmm::probe::AccelerationChoice::Kvm,
            false => choice,
        };
        let bridge = bridge_name(arguments, identity.uid, directories);
        FirecrackerVmm::new(helper, jails.clone(), choice, marks, arguments.system, bridge)
    });
    let helper = arguments.helper_socket.clone().map(HelperClient::new);
    let helper = helper.map(|helper| (helper, bridge_name(arguments, identity.uid, directories)));
    let services = Services::start(directories, lock, arguments.accel, firecracker, helper).await?;
    let listener = bind(&directories.socket())?;
    let connections = Connections::default();
    let api = Arc::new(Api::new(arguments, identity, directories, services, end.clone()));
    if arguments.idle_timeout > 0 {
        let (api, connections) = (Arc::clone(&api), connections.clone());
        let busy =
            move || connections.count() > 0 || !api.sessions.is_empty() || api.services.is_busy();
        tokio::spawn(idle::watch(Duration::from_secs(arguments.idle_timeout), end.clone(), busy));
    }
    let router = api::router(Arc::clone(&api)).layer(axum::middleware::from_fn(request::handle));
    readiness.ready();
    tracing::info!(socket = %directories.socket().display(), "ready");

    let tracker = TaskTracker::new();
    accept_until(&end, &listener, identity.uid, &router, &connections, &tracker).await;

    tracing::info!("ending; VMs keep running");
    drop(listener);
    remove_socket(&directories.socket());
    tracker.close();
    api.sessions.close();
    let all = async {
        tracker.wait().await;
        api.sessions.wait().await;
    };
    if tokio::time::timeout(END_GRACE, all).await.is_err() {
        tracing::warn!(open = connections.count(), "connections are cut");
    }
    api.services.end().await;
    Ok(())
}

/// Returns the name of the daemon's bridge: of the installed service, of a user's own daemon, or of
/// one in a place of its own, each another.
fn bridge_name(arguments: &Arguments, uid: u32, directories: &Directories) -> String {
    if arguments.system {
        return "br-fc".to_owned();
    }
    if directories.state == Path::new(DIRECT_STATE) && uid < 1_000_000_000 {
        return format!("br-fc-{uid}");
    }
    // FNV-1a: the same for a directory with every build.
    let bytes = directories.state.as_os_str().as_bytes();
    let hash = bytes
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("br-fc-{hash:08x}")
}

/// SIGTERM and SIGINT end the daemon; SIGHUP, which a closing terminal sends, does not.
fn watch_signals(end: &CancellationToken) -> Result<(), StartError> {
    use tokio::signal::unix::{SignalKind, signal};
    let handler = |kind| {
        signal(kind).map_err(|source| StartError::Io {
            act: "installing a signal handler".to_owned(),
            source,
        })
    };
    let mut terminate = handler(SignalKind::terminate())?;
    let mut interrupt = handler(SignalKind::interrupt())?;
    let mut hangup = handler(SignalKind::hangup())?;
    let end = end.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM"),
                _ = interrupt.recv() => tracing::info!("SIGINT"),
                _ = hangup.recv() => continue,
            }
            end.cancel();
        }
    });
    Ok(())
}

/// Binds the socket. What is there was left by a daemon that died: the lock says so.
fn bind(path: &Path) -> Result<UnixListener, StartError> {
    let io = |act: &str| {
        let act = format!("{act} {}", path.display());
        move |source| StartError::Io { act, source }
    };
    match std::fs::remove_file(path) {
        Ok(()) => tracing::info!("removed the socket of a daemon that died"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("removing the stale socket")(error)),
    }
    let listener = UnixListener::bind(path).map_err(io("listening on"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(io("setting the mode of"))?;
    Ok(listener)
}

fn remove_socket(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(%error, "removing the socket");
    }
}

async fn accept_until(
    end: &CancellationToken,
    listener: &UnixListener,
    own_uid: u32,
    router: &Router,
    connections: &Connections,
    tracker: &TaskTracker,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MOST));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MOST));
    loop {
        let accepted = tokio::select! {
            () = end.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: give those that end a moment.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let refuse = |stream: UnixStream, error: ApiError| {
            if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                tokio::spawn(async move {
                    refusal::refuse(stream, error).await;
                    drop(permit);
                });
            }
        };
        let peer = match Peer::of(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "asking for the peer's credentials");
                continue;
            }
        };
        if !peer.may_use(own_uid) {
            tracing::warn!(peer_uid = peer.uid, peer_pid = peer.pid, "refused a stranger");
            let message = format!("uid {} may not use this daemon", peer.uid);
            refuse(stream, ApiError::new(ErrorCode::Unauthorized, message));
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(peer_pid = peer.pid, "refused a connection: too many");
            let message = format!("{CONNECTIONS_MOST} connections are open, the most there may be");
            refuse(
                stream,
                ApiError::new(ErrorCode::Unavailable, message)
                    .hint("end some `banger` commands that run, or other clients of its socket"),
            );
            continue;
        };
        let open = connections.open();
        let serving = serve(stream, peer, router.clone(), end.clone());
        tracker.spawn(async move {
            serving.await;
            drop((open, slot));
        });
    }
}

async fn serve(stream: UnixStream, peer: Peer, router: Router, end: CancellationToken) {
    let (stream, routed) = refusal::ExplainedRefusals::new(stream);
    let router = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<_>| {
        routed.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(peer);
        hyper::service::Service::call(&router, request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_headers(64)
        .max_buf_size(256 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = end.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(peer_pid = peer.pid, %error, "connection");
    }
}
