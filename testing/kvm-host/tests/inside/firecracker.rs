//! Firecracker for tests: its configuration, its process, its guest's agent.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{Argument, BootConfig, ExecCall, InitChoice, NetworkState, StaticNetwork};
use banger_guest_client::{AgentClient, ChannelError, Deadlines, GuestChannel, VsockUdsChannel};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::patience::look_for;

/// How long a nested guest may take to its first word; the runner's limit is beyond it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);
/// The guest's root file system.
pub(crate) const ROOT_UUID: &str = "6b2f0d3e-52a1-4b0c-9f0e-3d5a6c7b8e91";

/// What one guest is made of; paths as Firecracker sees them.
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) initrd: &'a str,
    pub(crate) disk: &'a str,
    pub(crate) vsock: &'a str,
    pub(crate) tap: Option<(&'a str, StaticNetwork)>,
    /// Arguments of the kernel's, beside those that every guest has.
    pub(crate) arguments: &'a str,
}

impl Guest<'_> {
    /// The kernel's command line.
    pub(crate) fn command_line(&self) -> String {
        let mut boot = BootConfig::new(ROOT_UUID.parse().expect("a UUID"));
        boot.hostname = Some("nested".parse().expect("a name"));
        boot.init = InitChoice::None;
        boot.network = self.tap.as_ref().map(|(_, network)| network.clone());
        let boot = boot.to_kernel_args().expect("kernel arguments");
        // Two translators: what checks timers against each other only loses time.
        format!(
            "console=ttyS0 quiet reboot=k panic=-1 nokaslr mitigations=off no_timer_check \
             tsc=reliable {} {boot}",
            self.arguments
        )
    }

    /// Firecracker's own form of it (`--config-file`).
    pub(crate) fn configuration(&self) -> Value {
        let interfaces: Vec<Value> = self
            .tap
            .iter()
            .map(|(tap, _)| {
                json!({
                    "iface_id": "eth0", "guest_mac": "06:00:ac:1e:09:02", "host_dev_name": tap,
                })
            })
            .collect();
        json!({
            "boot-source": {
                "kernel_image_path": self.kernel,
                "initrd_path": self.initrd,
                "boot_args": self.command_line(),
            },
            "drives": [{
                "drive_id": "root", "path_on_host": self.disk,
                "is_root_device": false, "is_read_only": false,
            }],
            "network-interfaces": interfaces,
            "vsock": { "guest_cid": 3, "uds_path": self.vsock },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 256 },
        })
    }
}

/// A started program, with its output in a file; ended when dropped.
pub(crate) struct Started {
    child: Child,
    log: PathBuf,
}

impl Started {
    pub(crate) fn new(mut command: Command, log: PathBuf) -> Self {
        let file = std::fs::File::create(&log).expect("a log");
        let errors = file.try_clone().expect("share the log");
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log }
    }

    pub(crate) fn words(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Ends it, and returns when it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the guest's agent behind Firecracker's vsock socket.
    pub(crate) async fn agent(&self, socket: &Path) -> AgentClient {
        agent(socket, || self.words()).await
    }
}

/// Waits for the guest's agent behind Firecracker's vsock socket; a failure shows these words.
pub(crate) async fn agent(socket: &Path, words: impl Fn() -> String) -> AgentClient {
    let channel = Arc::new(VsockUdsChannel::new(socket));
    let made = async {
        // The socket has its name a moment before Firecracker listens on it.
        look_for(async || match channel.wait_ready().await {
            Err(ChannelError::Connect { .. }) => None,
            result => Some(result),
        })
        .await
    };
    let ready = tokio::time::timeout(PATIENCE, made).await;
    match ready {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:?}\n{}", words()),
        Err(_) => panic!("the guest said nothing\n{}", words()),
    }
    let deadlines = Deadlines { answer: Duration::from_secs(60), ..Deadlines::default() };
    AgentClient::with_deadlines(channel, deadlines)
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A process that is not this one's child; ended when dropped.
pub(crate) struct Stranger {
    pub(crate) id: i32,
    handle: OwnedFd,
}

impl Stranger {
    /// Holds a process that runs.
    pub(crate) fn hold(id: i32) -> Self {
        let pid = Pid::from_raw(id).expect("a process id");
        let handle = pidfd_open(pid, PidfdFlags::empty()).expect("it runs");
        Self { id, handle }
    }

    /// Waits until it has ended; false if it has not for 30 s.
    pub(crate) fn ends(&self) -> bool {
        let mut ended = [PollFd::new(&self.handle, PollFlags::IN)];
        matches!(poll(&mut ended, Some(&Timespec { tv_sec: 30, tv_nsec: 0 })), Ok(1))
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let mut ended = [PollFd::new(&self.handle, PollFlags::IN)];
        matches!(poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1))
    }

    /// Takes over the process that `starter` leaves behind and names in a file.
    pub(crate) fn of_pid_file(starter: &mut Started, file: &Path) -> Self {
        let status = starter.child.wait().expect("wait for the starter");
        assert!(status.success(), "{status}\n{}", starter.words());
        let text = std::fs::read_to_string(file).expect("a process id");
        let id: i32 = text.trim().parse().expect("a process id");
        let pid = Pid::from_raw(id).expect("a process id");
        let handle = pidfd_open(pid, PidfdFlags::empty())
            .unwrap_or_else(|error| panic!("process {id} has ended: {error}\n{}", starter.words()));
        Self { id, handle }
    }
}

impl Drop for Stranger {
    /// Returns when the process is gone.
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
        self.ends();
    }
}

/// Waits until the guest has its network: its agent may answer before that.
pub(crate) async fn network(agent: &AgentClient) {
    let is_up = async || {
        let health = agent.health().await.expect("the guest's health");
        (health.network != NetworkState::Pending).then_some(())
    };
    tokio::time::timeout(PATIENCE, look_for(is_up)).await.expect("the guest's network");
}

/// Does asynchronous work in this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

/// Runs a command in the guest and returns what it wrote.
pub(crate) async fn exec(agent: &AgentClient, words: &[&str]) -> String {
    let argv = words.iter().map(|word| Argument::new(*word).expect("a word")).collect();
    let call = ExecCall { argv, ..ExecCall::default() };
    let stream = agent.exec(call).await.expect("start a command in the guest");
    let (output, errors, status) = stream.collect(1 << 20).await.expect("its output");
    let errors = String::from_utf8_lossy(&errors);
    assert_eq!(status.shell_code(), 0, "{words:?}: {errors}");
    String::from_utf8_lossy(&output).into_owned()
}
