//! A Firecracker that runs: held by pidfd. It is the helper's child, or nobody's, and never ours; it
//! has our uid, so that signals reach it without the helper.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use banger_engine::seams::{NetLimits, VmmError, VmmIdentity, VmmKind, VmmProcess, VmmState};
use banger_guest_client::{BoxedStream, ChannelError, GuestChannel, VsockUdsChannel};
use rustix::process::Signal;

use super::api::Api;
use super::console;
use super::files::RuntimeFiles;
use super::last_words::{self, End};
use super::room::Room;
use crate::HELD_FOR_ROOM;
use crate::held::{self, HeldProcess};
use crate::task::Task;

/// A Firecracker, running or ended.
pub(super) struct FirecrackerProcess {
    identity: VmmIdentity,
    held: Arc<HeldProcess>,
    channel: Arc<Channel>,
    api: Api,
    log: PathBuf,
    /// The link to its API's socket, which lies in its jail.
    socket: PathBuf,
    /// We killed it, so that its silent end is no surprise.
    killed: AtomicBool,
    room: Room,
    /// Keeps the log small.
    _console: Task,
}

/// The vsock of a Firecracker, which is closed when that ends.
#[derive(Debug)]
struct Channel {
    vsock: VsockUdsChannel,
    held: Arc<HeldProcess>,
}

impl FirecrackerProcess {
    /// Takes charge of a running one, `is_paused` or not. Its disks lie beside its log.
    pub(super) fn new(
        identity: VmmIdentity,
        held: Arc<HeldProcess>,
        files: &RuntimeFiles,
        console_log: &Path,
        is_paused: bool,
    ) -> Self {
        let disks = console_log.parent().unwrap_or(Path::new("/")).to_owned();
        let vsock = VsockUdsChannel::new(&files.vsock);
        Self {
            identity,
            channel: Arc::new(Channel { vsock, held: Arc::clone(&held) }),
            held,
            api: Api::at(&files.api),
            log: console_log.to_owned(),
            socket: files.api.clone(),
            killed: AtomicBool::new(false),
            room: Room::keep(Api::at(&files.api), disks, is_paused),
            _console: Task::spawn(console::follow(console_log.to_owned())),
        }
    }

    fn reason(&self) -> Option<String> {
        if self.killed.load(Ordering::Acquire) {
            return None;
        }
        match last_words::read(&self.log) {
            End::Good => None,
            End::Explained(words) => Some(words),
            // Nobody but a person or the kernel's out-of-memory killer ends it uninvited.
            End::Silent => {
                Some("Firecracker was killed (signal 9), by hand or for want of memory".to_owned())
            }
        }
    }
}

#[async_trait]
impl VmmProcess for FirecrackerProcess {
    fn identity(&self) -> &VmmIdentity {
        &self.identity
    }

    /// It was begun by its launch.
    async fn resume(&self) -> Result<(), VmmError> {
        if !self.held.has_ended() {
            return Ok(());
        }
        let reason = self.reason().unwrap_or_else(|| "it was told to end".to_owned());
        Err(VmmError::Ended { vmm: "Firecracker", act: "letting the guest run", reason })
    }

    fn channel(&self) -> Arc<dyn GuestChannel> {
        Arc::clone(&self.channel) as Arc<dyn GuestChannel>
    }

    async fn console(&self) -> Result<BoxedStream, VmmError> {
        let attached = console::attach(&self.log, &self.socket, Arc::clone(&self.held));
        attached.map_err(|source| VmmError::Io {
            act: format!("attaching to the console of Firecracker, process {}", self.identity.pid),
            source,
        })
    }

    fn state(&self) -> VmmState {
        if self.held.has_ended() {
            VmmState::Dead { reason: self.reason() }
        } else {
            VmmState::Alive
        }
    }

    fn stall(&self) -> Option<&'static str> {
        self.room.holds().then_some(HELD_FOR_ROOM)
    }

    async fn limit_network(&self, limits: &NetLimits) -> Result<(), VmmError> {
        self.api.limit_network(limits).await
    }

    async fn wait(&self) -> VmmState {
        self.held.ended().await;
        VmmState::Dead { reason: self.reason() }
    }

    fn signal(&self, signal: Signal) -> Result<bool, VmmError> {
        self.held.signal(signal).map_err(|source| VmmError::Io {
            act: format!("sending a signal to Firecracker, process {}", self.identity.pid),
            source,
        })
    }

    async fn kill(&self) -> Result<(), VmmError> {
        if !self.held.has_ended() {
            self.killed.store(true, Ordering::Release);
        }
        held::kill(&self.held, self.identity.pid, VmmKind::Firecracker).await.map(drop)
    }
}

#[async_trait]
impl GuestChannel for Channel {
    async fn open(&self) -> Result<BoxedStream, ChannelError> {
        if self.held.has_ended() {
            return Err(ChannelError::Closed);
        }
        self.vsock.open().await
    }

    async fn wait_ready(&self) -> Result<(), ChannelError> {
        tokio::select! {
            ready = self.vsock.wait_ready() => match ready {
                Err(_) if self.held.has_ended() => Err(ChannelError::Closed),
                other => other,
            },
            () = self.held.ended() => Err(ChannelError::Closed),
        }
    }

    async fn closed(&self) {
        self.held.ended().await;
    }
}
