//! Reading a request and dispatching it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use banger_agent_api::{
    AgentError, BootConfig, Call, Empty, EnvironmentEntry, ErrorCode, Frame, FrameReader,
    FrameWriter, HealthReply, InitKind, MAX_REQUEST, MAX_RESPONSE, NetworkState, Outcome, Request,
    Response, WireError, read_message, write_message,
};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::{
    connect, console_shell, detached, exec, identity, main_process, ports, power_off, ssh, stats,
    tree, tree_get, tree_list, tree_put,
};
use crate::console;

/// A peer that opens a stream and says nothing holds it no longer than this.
const REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// How long the first command waits for the network; the late loader gives up on a card after less.
pub(super) const NETWORK_PATIENCE: Duration = Duration::from_secs(10);

/// What the calls share.
#[derive(Debug)]
pub struct Server {
    pub(super) config: Option<BootConfig>,
    pub(super) network: watch::Sender<NetworkState>,
    pub(super) cgroups: super::cgroup::Cgroups,
    pub(super) execs: Cell<u32>,
    pub(super) main: main_process::Main,
    pub(super) detached: detached::Detached,
    /// The image's environment.
    pub(super) environment: RefCell<Vec<EnvironmentEntry>>,
    /// Held while the machine's host key is made.
    pub(super) ssh_key: tokio::sync::Mutex<()>,
    /// Whether the console's shell is one that this agent started.
    pub(super) has_console_shell: Cell<bool>,
    /// How many SSH connections there have been.
    pub(super) ssh_connections: Cell<u64>,
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

impl Server {
    /// Reads what the kernel was told.
    #[must_use]
    pub fn new() -> Self {
        Self::with(super::cgroup::Cgroups::open())
    }

    fn with(cgroups: super::cgroup::Cgroups) -> Self {
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let config = BootConfig::parse(&line).ok();
        let network = match config.as_ref().map(|config| config.network.is_some()) {
            Some(true) => NetworkState::Pending,
            _ => NetworkState::None,
        };
        Self {
            config,
            network: watch::Sender::new(network),
            cgroups,
            execs: Cell::new(0),
            main: main_process::Main::default(),
            detached: detached::Detached::default(),
            environment: RefCell::default(),
            ssh_key: tokio::sync::Mutex::new(()),
            has_console_shell: Cell::new(false),
            ssh_connections: Cell::new(0),
        }
    }

    /// As [`Server::new`], for a machine whose cgroups are not the agent's to use.
    #[must_use]
    pub fn without_cgroups() -> Self {
        Self::with(super::cgroup::Cgroups::none())
    }

    /// Waits for the late loader's report on standard input.
    pub(super) async fn watch_network(self: Rc<Self>) {
        use std::os::fd::AsFd;
        if *self.network.borrow() != NetworkState::Pending {
            return;
        }
        let input = std::io::stdin().as_fd().try_clone_to_owned();
        let pipe = input.and_then(tokio::net::unix::pipe::Receiver::from_owned_fd);
        let mut state = [b'u'];
        // Without a byte the loader has ended under an earlier server: what it did is done.
        if let Ok(mut pipe) = pipe {
            let _ = pipe.read(&mut state).await;
        }
        let is_up = state != *b"f";
        self.network.send_replace(if is_up { NetworkState::Up } else { NetworkState::Failed });
    }

    /// Waits until the network is up, or is known not to come: the first command may need it, and the
    /// agent's first word does not wait for it.
    pub(super) async fn network_settled(&self, patience: Duration) {
        let mut state = self.network.subscribe();
        let settled = state.wait_for(|state| *state != NetworkState::Pending);
        let _ = tokio::time::timeout(patience, settled).await;
    }

    /// Serves one stream: one call.
    pub async fn serve<S>(self: Rc<Self>, mut stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let request = tokio::time::timeout(
            REQUEST_PATIENCE,
            read_message::<Request>(&mut stream, MAX_REQUEST),
        );
        let result = match request.await {
            Ok(Ok(request)) => self.dispatch(request, stream).await,
            Ok(Err(error @ (WireError::Json(_) | WireError::TooLong { .. }))) => {
                let error = AgentError::new(ErrorCode::BadRequest, console::chain(&error));
                refuse(&mut stream, error).await
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(()),
        };
        if let Err(error) = result {
            // Clients come and go; this is for the kernel's log of a verbose guest.
            console::info(&format!("a call ended early: {}", console::chain(&error)));
        }
    }

    async fn dispatch<S>(self: Rc<Self>, request: Request, mut stream: S) -> Result<(), WireError>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        match request.call {
            Call::Health => answer(&mut stream, Ok(self.health())).await,
            Call::Echo => echo(stream).await,
            Call::Exec(call) => {
                self.network_settled(NETWORK_PATIENCE).await;
                exec::run(&self, call, stream).await
            }
            Call::SpawnBench(call) => {
                answer(&mut stream, exec::spawn_bench(&self, call).await).await
            }
            Call::PutTree(call) => tree_put::run(call, stream).await,
            Call::GetTree(call) => tree_get::run(call, stream).await,
            Call::Stat(call) => answer(&mut stream, tree::stat(&call)).await,
            Call::ListTree(call) => tree_list::run(call, stream).await,
            Call::GetEntries(call) => tree_get::run_entries(call, stream).await,
            Call::ListEntries(call) => tree_list::run_entries(call, stream).await,
            Call::Connect(call) => connect::run(&call, stream).await,
            Call::Ssh(call) => ssh::run(&self, call, stream).await,
            Call::Ports => answer(&mut stream, Ok(ports::listening())).await,
            Call::Sync => {
                let done = tokio::task::spawn_blocking(rustix::fs::sync).await;
                let result = done
                    .map(|()| Empty {})
                    .map_err(|error| AgentError::new(ErrorCode::Failed, error.to_string()));
                answer(&mut stream, result).await
            }
            Call::PowerOff(call) => {
                answer(&mut stream, Ok(Empty {})).await?;
                drop(stream);
                power_off::run(&self, call).await;
                Ok(())
            }
            Call::Stats => answer(&mut stream, Ok(stats::collect())).await,
            Call::SetIdentity(call) => answer(&mut stream, identity::set(call)).await,
            Call::Configure(call) => {
                answer(&mut stream, main_process::configure(&self, call)).await
            }
            Call::AttachMain(call) => main_process::attach(&self, call, stream).await,
            Call::Detach(call) => {
                self.network_settled(NETWORK_PATIENCE).await;
                answer(&mut stream, detached::start(&self, &call)).await
            }
            Call::Detached => answer(&mut stream, Ok(self.detached.list())).await,
            Call::DetachedOutput(call) => detached::output(&self, &call, stream).await,
            Call::Console(call) => answer(&mut stream, console_shell::ensure(&self, call)).await,
            Call::WaitMain => main_process::wait(&self, stream).await,
            Call::Unknown => {
                let error = AgentError::new(
                    ErrorCode::UnsupportedCall,
                    "this agent is older than the call; restart the VM to get a newer one",
                );
                refuse(&mut stream, error).await
            }
        }
    }

    fn health(&self) -> HealthReply {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let system = rustix::system::uname();
        let uptime = read("/proc/uptime");
        let seconds: f64 = uptime.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or(0.0);
        HealthReply {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: system.release().to_string_lossy().into_owned(),
            hostname: system.nodename().to_string_lossy().into_owned(),
            uptime_millis: u64::try_from(Duration::from_secs_f64(seconds.max(0.0)).as_millis())
                .unwrap_or(u64::MAX),
            init: init_kind(),
            network: *self.network.borrow(),
            session: self
                .config
                .as_ref()
                .and_then(|config| config.session)
                .map(|token| token.to_string()),
            execs: self.execs.get(),
        }
    }
}

/// Tells who is PID 1 by its program; its name changes while it starts.
pub(super) fn init_kind() -> InitKind {
    let program = std::fs::read_link("/proc/1/exe").unwrap_or_default();
    if program.file_name().is_some_and(|name| name == "systemd") {
        InitKind::Systemd
    } else if agent_is_init() {
        InitKind::Agent
    } else {
        InitKind::Other
    }
}

/// Whether PID 1 runs the same program as this process.
fn agent_is_init() -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    identity("/proc/1/exe").is_some_and(|init| Some(init) == identity("/proc/self/exe"))
}

/// Writes the answer, success or failure, and ends the stream's sending side.
pub(super) async fn answer<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    result: Result<T, AgentError>,
) -> Result<(), WireError> {
    let outcome = result.map_or_else(Outcome::Error, Outcome::Ok);
    write_message(stream, &Response::new(outcome), MAX_RESPONSE).await?;
    end(stream).await
}

/// Writes the first answer of a call that goes on with frames.
pub(super) async fn begin<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    reply: T,
) -> Result<(), WireError> {
    write_message(stream, &Response::new(Outcome::Ok(reply)), MAX_RESPONSE).await
}

pub(super) async fn refuse(
    stream: &mut (impl AsyncWrite + Unpin),
    error: AgentError,
) -> Result<(), WireError> {
    answer::<Empty>(stream, Err(error)).await
}

async fn end(stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), WireError> {
    stream.shutdown().await.map_err(|source| WireError::Io { operation: "ending a stream", source })
}

/// Sends data frames back until they end.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<(), WireError> {
    begin(&mut stream, Empty {}).await?;
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    while let Some(frame) = reader.next().await? {
        match frame {
            Frame::Data(_) => writer.send(&frame).await?,
            Frame::DataEnd => break,
            _ => {}
        }
    }
    writer.send(&Frame::DataEnd).await?;
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_waits_for_the_network_and_not_for_ever() {
        let mut server = Server::without_cgroups();
        server.network = watch::Sender::new(NetworkState::Pending);
        server.network_settled(Duration::from_millis(1)).await;
        assert_eq!(*server.network.borrow(), NetworkState::Pending, "a card that never comes");
        let comes = async {
            // The other one is waiting by now.
            tokio::task::yield_now().await;
            server.network.send_replace(NetworkState::Failed);
        };
        let waits = async {
            server.network_settled(Duration::MAX).await;
            *server.network.borrow()
        };
        assert_eq!(tokio::join!(waits, comes).0, NetworkState::Failed);
    }
}
