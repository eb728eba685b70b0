//! Calls and their answers, the JSON part of the protocol.
//!
//! Requests come from a host that is never older than the guest's agent plus one upgrade, answers
//! from an agent that may be older or hostile: both tolerate unknown fields, and every optional
//! field has a default.

use serde::{Deserialize, Serialize};

use crate::PROTOCOL_VERSION;
use crate::bytes_text::{Argument, EnvironmentEntry, GuestPath, Hex, UserSpec, printable_excerpt};
use crate::console::ConsoleCall;
use crate::detached::DetachedOutputCall;
use crate::frame::WindowSize;
use crate::main_process::{AttachMainCall, ConfigureCall};
use crate::ssh::SshCall;
use banger_types::{PortProtocol, VmName};

/// Hello and request in one: the first message on a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The host's protocol version.
    pub version: u16,
    /// What to do.
    #[serde(flatten)]
    pub call: Call,
}

impl Request {
    /// Makes a request in this build's version.
    #[must_use]
    pub fn new(call: Call) -> Self {
        Self { version: PROTOCOL_VERSION, call }
    }
}

/// What the agent can do. The comment names the answer and what follows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Call {
    /// [`HealthReply`].
    Health,
    /// [`Empty`], then data frames come back as they were sent, until data end.
    Echo,
    /// [`ExecStarted`], then stdin, resize and signal frames in, stdout, stderr and exit frames out.
    Exec(ExecCall),
    /// [`Empty`], then data frames of a tar in, data end; an error frame, or a data frame holding
    /// a JSON [`PutTreeReply`] and data end, come back.
    PutTree(PutTreeCall),
    /// [`Empty`], then data frames of a tar out, and data end or an error frame.
    GetTree(GetTreeCall),
    /// [`StatReply`].
    Stat(StatCall),
    /// [`ListTreeReply`], then data frames of [`crate::Listed`] records out, and data end or an error
    /// frame.
    ListTree(ListTreeCall),
    /// [`Empty`], then data frames of names in, each ended by a NUL, data end; then data frames of a
    /// tar of those that are there out, and data end or an error frame.
    GetEntries(GetEntriesCall),
    /// [`ListTreeReply`], then names in as for [`Call::GetEntries`], then data frames of
    /// [`crate::Listed`] records of those that are there out, and data end or an error frame.
    ListEntries(ListEntriesCall),
    /// [`PortsReply`].
    Ports,
    /// [`Empty`], then both ways: of TCP its bytes as data frames and, for each direction, data end;
    /// of UDP datagram frames.
    Connect(ConnectCall),
    /// [`SshReply`](crate::SshReply), then bytes both ways as of a TCP connection.
    Ssh(SshCall),
    /// [`Empty`] once everything written is on the disks.
    Sync,
    /// [`Empty`], then the machine powers off.
    PowerOff(PowerOffCall),
    /// [`StatsReply`].
    Stats,
    /// [`Empty`].
    SetIdentity(SetIdentityCall),
    /// [`Empty`] once the main process, if one is given, is known to be startable as asked.
    Configure(ConfigureCall),
    /// [`ExecStarted`], then frames as after [`Call::Exec`]. A client that goes away leaves the main
    /// process running.
    AttachMain(AttachMainCall),
    /// [`Empty`], then an exit frame once the main process has ended. The agent ends the machine when
    /// it has been taken, or when nobody takes it.
    WaitMain,
    /// [`DetachReply`](crate::DetachReply): as [`Call::Exec`] on pipes without input, and it goes on
    /// whoever goes away.
    Detach(ExecCall),
    /// [`DetachedReply`](crate::DetachedReply).
    Detached,
    /// [`Empty`], then stdout and stderr frames out, and an exit frame, or data end where the command
    /// runs and is not followed.
    DetachedOutput(DetachedOutputCall),
    /// [`ConsoleReply`](crate::ConsoleReply).
    Console(ConsoleCall),
    /// [`SpawnBenchReply`]: the guest's own cost of running a command, without any channel.
    SpawnBench(SpawnBenchCall),
    /// A call that this build does not know.
    #[serde(other)]
    Unknown,
}

/// Runs a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecCall {
    /// The command and its arguments; the command is looked up in the guest's PATH unless it holds a slash.
    pub argv: Vec<Argument>,
    /// Environment on top of the user's default one; later entries win.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvironmentEntry>,
    /// Working directory; the user's home where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<GuestPath>,
    /// Who runs it; root where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserSpec>,
    /// Run on a new terminal instead of pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<PtyCall>,
    /// Whether stdin frames will come; without, the command reads `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
}

/// The terminal of an exec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtyCall {
    /// Its size.
    pub size: WindowSize,
    /// The value of TERM; `xterm` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Argument>,
}

/// Unpacks a tar stream below a directory, which is created where missing. Entries of type
/// [`crate::TAR_REMOVAL`] remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutTreeCall {
    /// The directory.
    pub path: GuestPath,
    /// Owner of everything unpacked; root where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<UserSpec>,
}

/// Packs a file or directory as a tar stream; entries are relative to its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetTreeCall {
    /// The file or directory; a symbolic link is packed as itself.
    pub path: GuestPath,
}

/// Asks what a path leads to, through links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatCall {
    /// The path.
    pub path: GuestPath,
}

/// Lists a directory and what is below it; no link is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTreeCall {
    /// The directory.
    pub path: GuestPath,
    /// Directories of these names are listed, but not what is in them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<Argument>,
}

/// The listing begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTreeReply {
    /// The guest's clock before the first directory was read, nanoseconds since 1970 UTC: what was
    /// changed shortly before or after may change again without its times telling.
    pub now_nanos: i64,
}

/// Packs some files and links below a directory as a tar stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetEntriesCall {
    /// The directory that the names are relative to.
    pub path: GuestPath,
}

/// Lists some names below a directory, of directories the name only; no link is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEntriesCall {
    /// The directory that the names are relative to.
    pub path: GuestPath,
}

/// Connects to a port of the guest, on its loopback address or its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectCall {
    /// TCP or UDP.
    pub protocol: PortProtocol,
    /// The port.
    pub port: std::num::NonZeroU16,
}

/// Powers the machine off: execs first, then what the image's init wants, then by force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerOffCall {
    /// How long the image's init may take before the agent syncs, kills and powers off itself.
    pub grace_seconds: u32,
}

/// Tells the guest who and when it is; every field is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetIdentityCall {
    /// The host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<VmName>,
    /// The wall clock, nanoseconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_nanos: Option<u64>,
    /// Random bytes to mix into the kernel's pool and credit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Hex>,
}

/// Runs a command `rounds` times, one after the other, and times each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnBenchCall {
    /// The command and its arguments.
    pub argv: Vec<Argument>,
    /// How often, 1 to 1000.
    pub rounds: u32,
}

/// The answer to every call: the agent's version, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response<T> {
    /// The agent's protocol version.
    pub version: u16,
    /// Success or failure.
    pub outcome: Outcome<T>,
}

impl<T> Response<T> {
    /// Makes an answer in this build's version.
    #[must_use]
    pub fn new(outcome: Outcome<T>) -> Self {
        Self { version: PROTOCOL_VERSION, outcome }
    }
}

/// Success or failure of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome<T> {
    /// The answer.
    Ok(T),
    /// Why there is none.
    Error(AgentError),
}

/// A failure as the agent reports it. Its text comes from the guest: show it by `Display` only,
/// which cuts it and takes control characters out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentError {
    /// For programs.
    pub code: ErrorCode,
    message: String,
}

impl AgentError {
    /// Makes an error; the message is cut at 1024 characters.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl AsRef<str>) -> Self {
        Self { code, message: printable_excerpt(message.as_ref(), 1024) }
    }
}

impl std::fmt::Display for AgentError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&printable_excerpt(&self.message, 1024))
    }
}

impl std::error::Error for AgentError {}

/// Stable codes of [`AgentError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request cannot be read.
    BadRequest,
    /// The agent is older than this call.
    UnsupportedCall,
    /// No such user or group in the guest.
    NoSuchUser,
    /// No such file or directory in the guest.
    NotFound,
    /// A tar entry that is not acceptable.
    BadArchive,
    /// Nobody in the guest listens there.
    Refused,
    /// The machine has no main process.
    NoMainProcess,
    /// The image lacks a program that the call needs.
    NoSuchProgram,
    /// The guest's disk is full.
    DiskFull,
    /// Anything else that went wrong in the guest.
    Failed,
    /// A code that this build does not know.
    #[serde(other)]
    Unknown,
}

/// An answer without content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Who the guest is and how it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReply {
    /// The agent's build.
    pub agent_version: String,
    /// The kernel's boot id; it changes with every boot.
    pub boot_id: String,
    /// The kernel's release, as `uname -r`.
    pub kernel: String,
    /// The host name.
    pub hostname: String,
    /// Milliseconds since the kernel started.
    pub uptime_millis: u64,
    /// Who is PID 1.
    pub init: InitKind,
    /// Whether the configured network is up.
    pub network: NetworkState,
    /// `banger.session` of the kernel command line.
    #[serde(default)]
    pub session: Option<String>,
    /// Execs that run now.
    #[serde(default)]
    pub execs: u32,
}

/// Who is PID 1 in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitKind {
    /// systemd.
    Systemd,
    /// The agent, because the image has none or was told to run without.
    Agent,
    /// Any other.
    #[serde(other)]
    Other,
}

/// Whether the network that the kernel command line describes is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkState {
    /// None was asked for.
    None,
    /// Not yet.
    Pending,
    /// It is up.
    Up,
    /// It could not be configured; the console says why.
    #[serde(other)]
    Failed,
}

/// The command runs, or has already ended: its exit frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStarted {
    /// Its process id in the guest; 0 where it could not be started and an exit frame follows.
    pub pid: u32,
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutTreeReply {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatReply {
    /// What is there.
    pub kind: FileKind,
    /// The path without links.
    pub real_path: GuestPath,
}

/// What a path can lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A device, a fifo or a socket.
    #[serde(other)]
    Other,
}

/// Listening sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsReply {
    /// One per listening socket, at most 4096.
    pub ports: Vec<ListeningPort>,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListeningPort {
    /// TCP or UDP.
    pub protocol: PortProtocol,
    /// The local address.
    pub address: std::net::IpAddr,
    /// The port.
    pub port: u16,
    /// The owning process's command name, where it can be told.
    #[serde(default)]
    pub process: Option<String>,
}

/// Resource use in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsReply {
    /// Resident memory of all agent processes, KiB.
    pub agent_rss_kib: u64,
    /// Load average over one minute, in thousandths.
    pub load_milli: u64,
    /// The guest's memory, KiB.
    pub memory_total_kib: u64,
    /// Memory that could be used without swapping, KiB.
    pub memory_available_kib: u64,
    /// Size of the root file system, bytes.
    pub root_total_bytes: u64,
    /// Free on the root file system, bytes.
    pub root_free_bytes: u64,
    /// Size of the file system at `/root`, bytes.
    #[serde(default)]
    pub work_total_bytes: u64,
    /// Free on the file system at `/root`, bytes.
    #[serde(default)]
    pub work_free_bytes: u64,
    /// Processes and kernel threads.
    #[serde(default)]
    pub processes: u64,
}

/// Times of a [`Call::SpawnBench`], nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnBenchReply {
    /// How many were run.
    pub rounds: u32,
    /// Fastest.
    pub minimum_nanos: u64,
    /// Middle.
    pub median_nanos: u64,
    /// Average.
    pub mean_nanos: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_call_is_recognised_as_such() {
        let request: Request =
            serde_json::from_str(r#"{"version":9,"call":"levitate","height":3}"#).unwrap();
        assert_eq!(request, Request { version: 9, call: Call::Unknown });
    }

    #[test]
    fn unknown_fields_and_codes_of_a_newer_agent_are_tolerated() {
        let json = r#"{"version":2,"extra":1,"outcome":{"ok":{"pid":7,"color":"red"}}}"#;
        let response: Response<ExecStarted> = serde_json::from_str(json).unwrap();
        assert_eq!(response.outcome, Outcome::Ok(ExecStarted { pid: 7 }));
        let json = r#"{"version":2,"outcome":{"error":{"code":"melted","message":"x"}}}"#;
        let response: Response<Empty> = serde_json::from_str(json).unwrap();
        assert_eq!(response.outcome, Outcome::Error(AgentError::new(ErrorCode::Unknown, "x")));
    }

    #[test]
    fn requests_round_trip() {
        let call = Call::Exec(ExecCall {
            argv: vec![Argument::new("sh").unwrap(), Argument::new(vec![0xff]).unwrap()],
            env: vec![EnvironmentEntry::new("A=b").unwrap()],
            cwd: Some(GuestPath::new("/root/repo").unwrap()),
            user: Some("nobody:adm".parse().unwrap()),
            pty: Some(PtyCall { size: WindowSize { columns: 80, rows: 24 }, term: None }),
            stdin: true,
        });
        for call in [call, Call::Health, Call::PowerOff(PowerOffCall { grace_seconds: 3 })] {
            let request = Request::new(call);
            let json = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&json).unwrap(), request, "{json}");
        }
    }

    #[test]
    fn bad_values_inside_a_request_are_refused() {
        for json in [
            r#"{"version":1,"call":"exec"}"#,
            r#"{"version":1,"call":"exec","argv":["a\u0000"]}"#,
            r#"{"version":1,"call":"exec","argv":["a"],"cwd":"relative"}"#,
            r#"{"version":1,"call":"exec","argv":["a"],"user":"a b"}"#,
            r#"{"version":1,"call":"put_tree","path":"/a/../b"}"#,
            r#"{"version":1,"call":"set_identity","hostname":"A_b"}"#,
            r#"{"call":"health"}"#,
            "[]",
        ] {
            assert!(serde_json::from_str::<Request>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_hostile_message_is_harmless_to_show() {
        let json = format!(r#"{{"code":"failed","message":"\u001b[2J{}"}}"#, "x".repeat(9000));
        let error: AgentError = serde_json::from_str(&json).unwrap();
        assert!(!error.to_string().contains('\x1b') && error.to_string().len() < 1100);
    }
}
