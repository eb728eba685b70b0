//! The QEMU Machine Protocol over a unix socket: JSON, one message a line
//! (QEMU `docs/interop/qmp-spec.txt`).
//!
//! A [`Monitor`] is one connection, served by a task of its own for as long as the VM lives: it
//! carries the few commands banger uses and notes why the guest stopped. QEMU is trusted only a
//! little (a guest may have taken it over): a line has a greatest length, every command a deadline,
//! and a flood of events is read no faster than [`LINES_PER_SECOND`].
//!
//! Where the host's disk is full, QEMU stops the guest at the write that did not fit
//! (`werror=enospc`) and says so in a `BLOCK_IO_ERROR` event; nothing is lost. The monitor lets it
//! try again every [`RETRY`] until there is room, and says meanwhile that it is stalled.

use std::time::Duration;

use bytes::BytesMut;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::version::QemuVersion;

/// The longest line taken. QEMU's answers to our commands are below 1 KiB.
const LINE_LIMIT: usize = 64 * 1024;
/// How many lines a second are read; a few a day are usual.
const LINES_PER_SECOND: u32 = 200;

/// How often a guest that waits for room on the host's disk may try again.
const RETRY: Duration = Duration::from_secs(2);
/// The id of commands that the monitor gives by itself; askers' begin at 1.
const OWN_ID: u64 = 0;

/// A command banger uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Leaves negotiation mode; must be the first.
    Capabilities,
    /// Lets the guest's CPUs run.
    Continue,
    /// Asks whether the guest runs, and if not, why.
    Status,
}

impl Command {
    /// Returns the protocol's name of the command.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Capabilities => "qmp_capabilities",
            Self::Continue => "cont",
            Self::Status => "query-status",
        }
    }
}

/// Why the guest stopped, mostly as QEMU's `SHUTDOWN` event says (`qapi/run-state.json`,
/// `ShutdownCause`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shutdown {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest restarted itself, which ends the VMM (`-no-reboot`): a reboot or, because of the
    /// kernel argument `panic=-1`, a panic.
    Restarted,
    /// The guest's kernel said that it panicked.
    Panicked,
    /// QEMU was told to end, by a signal or a monitor command.
    Told,
    /// We killed it (no event says so).
    Killed,
}

/// Why a command got no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    /// QEMU closed the connection or broke the protocol.
    #[error("the monitor connection is closed")]
    Closed,
    /// A system call on the socket failed.
    #[error("using the monitor socket")]
    Io(#[source] std::io::Error),
    /// QEMU sent something that is not its protocol.
    #[error("QEMU's monitor sent {0}")]
    Protocol(&'static str),
    /// QEMU refused the command.
    #[error("refused: {0}")]
    Refused(String),
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    #[serde(rename = "return")]
    answer: Option<serde_json::Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: serde_json::Value,
    id: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Greeting {
    version: Version,
}

#[derive(Debug, Deserialize)]
struct Version {
    qemu: QemuVersion,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

struct Pending {
    command: Command,
    answer: oneshot::Sender<Result<serde_json::Value, QmpError>>,
}

/// A connection to one QEMU's monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    version: QemuVersion,
    commands: mpsc::Sender<Pending>,
    shutdown: watch::Receiver<Option<Shutdown>>,
    stalled: watch::Receiver<bool>,
}

impl Monitor {
    /// Takes over a fresh connection: reads the greeting and leaves negotiation mode. The caller
    /// sets the deadline.
    pub(crate) async fn negotiate(stream: UnixStream) -> Result<Self, QmpError> {
        let mut lines = Lines::new(stream);
        // Written before the greeting is read: the answers come in order, and one wait is saved.
        write_command(&mut lines.stream, Command::Capabilities, 0).await?;
        let greeting = lines.next_message().await?.greeting;
        let version = greeting.ok_or(QmpError::Protocol("no greeting"))?.version.qemu;
        loop {
            let message = lines.next_message().await?;
            if let Some(refusal) = message.error {
                return Err(QmpError::Refused(refusal.desc));
            }
            if message.answer.is_some() {
                break;
            }
        }
        let (commands, requests) = mpsc::channel(4);
        let (shutdown_writer, shutdown) = watch::channel(None);
        let (stalled_writer, stalled) = watch::channel(false);
        tokio::spawn(serve(lines, requests, shutdown_writer, stalled_writer));
        Ok(Self { version, commands, shutdown, stalled })
    }

    /// Returns QEMU's version.
    pub(crate) fn version(&self) -> QemuVersion {
        self.version
    }

    /// Returns why the guest stopped, once QEMU has said so.
    pub(crate) fn shutdown(&self) -> Option<Shutdown> {
        *self.shutdown.borrow()
    }

    /// Returns whether the guest is held because a write found no room on the host's disk.
    pub(crate) fn is_stalled(&self) -> bool {
        *self.stalled.borrow()
    }

    /// Waits until QEMU has closed the connection, after which [`Self::shutdown`] is final.
    pub(crate) async fn closed(&self) {
        let mut shutdown = self.shutdown.clone();
        while shutdown.changed().await.is_ok() {}
    }

    /// Runs a command. The caller sets the deadline.
    pub(crate) async fn run(&self, command: Command) -> Result<serde_json::Value, QmpError> {
        let (answer, answered) = oneshot::channel();
        let pending = Pending { command, answer };
        self.commands.send(pending).await.map_err(|_| QmpError::Closed)?;
        answered.await.map_err(|_| QmpError::Closed)?
    }
}

/// Serves one connection until QEMU closes it or every [`Monitor`] handle is gone.
async fn serve(
    mut lines: Lines,
    mut requests: mpsc::Receiver<Pending>,
    shutdown: watch::Sender<Option<Shutdown>>,
    stalled: watch::Sender<bool>,
) {
    let mut next_id = OWN_ID + 1;
    let mut waiting: Vec<(u64, Pending)> = Vec::new();
    // An earlier daemon may have got the event.
    if write_command(&mut lines.stream, Command::Status, OWN_ID).await.is_err() {
        return;
    }
    let mut stopped_again = false;
    let mut retry = tokio::time::interval(RETRY);
    retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = retry.tick(), if *stalled.borrow() => {
                if stopped_again {
                    stopped_again = false;
                    if write_command(&mut lines.stream, Command::Continue, OWN_ID).await.is_err() {
                        return;
                    }
                } else {
                    tracing::info!("the host's disk has room again; the guest goes on");
                    stalled.send_replace(false);
                }
            }
            request = requests.recv() => {
                let Some(pending) = request else { return };
                // An answer nobody waits for any more (its deadline passed) is dropped when it comes.
                if write_command(&mut lines.stream, pending.command, next_id).await.is_err() {
                    return;
                }
                waiting.push((next_id, pending));
                next_id += 1;
            }
            message = lines.next_message() => {
                let Ok(message) = message else { return };
                let is_stop = message.event.as_deref().is_some_and(|event| {
                    is_stop_for_want_of_room(event, &message.data)
                });
                let was_stopped = message.answer.as_ref().is_some_and(says_io_error);
                if is_stop || was_stopped {
                    stopped_again = true;
                    if !stalled.send_replace(true) {
                        retry.reset();
                        tracing::warn!("the host's disk is full: the guest waits for room");
                    }
                }
                if let Some(event) = &message.event {
                    if let Some(cause) = shutdown_cause(event, &message.data) {
                        shutdown.send_modify(|known| {
                            // The first cause stands: a panic is followed by a restart.
                            known.get_or_insert(cause);
                        });
                    }
                    continue;
                }
                let Some(at) = waiting.iter().position(|(id, _)| Some(*id) == message.id) else {
                    continue;
                };
                let (_, pending) = waiting.swap_remove(at);
                let result = match message.error {
                    Some(refusal) => Err(QmpError::Refused(refusal.desc)),
                    None => Ok(message.answer.unwrap_or_default()),
                };
                // The asker may have given up; that is its right.
                drop(pending.answer.send(result));
            }
        }
    }
}

fn shutdown_cause(event: &str, data: &serde_json::Value) -> Option<Shutdown> {
    match event {
        "GUEST_PANICKED" => Some(Shutdown::Panicked),
        "SHUTDOWN" => Some(match data.get("reason").and_then(serde_json::Value::as_str) {
            Some("guest-shutdown") => Shutdown::PoweredOff,
            Some("guest-reset") => Shutdown::Restarted,
            Some("guest-panic") => Shutdown::Panicked,
            _ => Shutdown::Told,
        }),
        _ => None,
    }
}

/// Recognises `BLOCK_IO_ERROR` (`qapi/block-core.json`) for a full disk.
fn is_stop_for_want_of_room(event: &str, data: &serde_json::Value) -> bool {
    event == "BLOCK_IO_ERROR" && data["nospace"] == true && data["action"] == "stop"
}

/// Recognises the answer to `query-status` of a guest that an I/O error stopped; with
/// `werror=enospc` only a full disk does (`qapi/run-state.json`, `RunState`).
fn says_io_error(answer: &serde_json::Value) -> bool {
    answer["status"] == "io-error"
}

async fn write_command(stream: &mut UnixStream, command: Command, id: u64) -> Result<(), QmpError> {
    let line = format!("{{\"execute\":\"{}\",\"id\":{id}}}\n", command.name());
    stream.write_all(line.as_bytes()).await.map_err(QmpError::Io)
}

/// Reads bounded lines at a bounded rate.
struct Lines {
    stream: UnixStream,
    buffer: BytesMut,
    window_start: Instant,
    window_lines: u32,
}

impl Lines {
    fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: BytesMut::new(), window_start: Instant::now(), window_lines: 0 }
    }

    /// Returns the next message. Cancel safe: what was read stays in the buffer.
    async fn next_message(&mut self) -> Result<Message, QmpError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                self.keep_to_the_rate().await;
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line)
                    .map_err(|_| QmpError::Protocol("a line that is not a QMP message"));
            }
            if self.buffer.len() > LINE_LIMIT {
                return Err(QmpError::Protocol("a line without end"));
            }
            self.buffer.reserve(4096);
            if self.stream.read_buf(&mut self.buffer).await.map_err(QmpError::Io)? == 0 {
                return Err(QmpError::Closed);
            }
        }
    }

    async fn keep_to_the_rate(&mut self) {
        let second = Duration::from_secs(1);
        if self.window_start.elapsed() >= second {
            self.window_start = Instant::now();
            self.window_lines = 0;
        }
        if self.window_lines >= LINES_PER_SECOND {
            sleep_until(self.window_start + second).await;
            self.window_start = Instant::now();
            self.window_lines = 0;
        }
        self.window_lines += 1;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncBufReadExt;

    use super::*;

    const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":""},"capabilities":["oob"]}}"#;

    /// Plays QEMU with fixed lines and lets `Monitor` meet them.
    async fn meet(script: impl AsRef<[u8]>) -> Result<Monitor, QmpError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let script = script.as_ref().to_vec();
        tokio::spawn(async move {
            // A reader that gave up closes its end, which is an error here and none of the test.
            drop(theirs.write_all(&script).await);
            drop(theirs.shutdown().await);
            drop(theirs.read_to_end(&mut Vec::new()).await);
        });
        Monitor::negotiate(ours).await
    }

    #[tokio::test]
    async fn what_is_not_the_protocol_is_refused() {
        for (script, name) in [
            (String::new(), "nothing"),
            ("\n".to_owned(), "an empty line"),
            ("{}\n".to_owned(), "no greeting"),
            ("SSH-2.0-OpenSSH\r\n".to_owned(), "another protocol"),
            (GREETING.to_owned(), "a greeting without end"),
            (format!("{GREETING}\n"), "a greeting and no answer"),
            (format!("{GREETING}\n{{\"return\":"), "half an answer"),
            (format!("{GREETING}\n{}", "x".repeat(LINE_LIMIT + 1)), "a line without end"),
            (format!("{GREETING}\n{}\n", "[".repeat(10_000)), "deep nesting"),
            (r#"{"QMP":{"version":{"qemu":{"major":-1}}}}"#.to_owned() + "\n", "a bad version"),
        ] {
            assert!(meet(&script).await.is_err(), "{name}");
        }
        let refused = format!("{GREETING}\n{{\"error\":{{\"class\":\"X\",\"desc\":\"no\"}}}}\n");
        assert!(matches!(meet(&refused).await, Err(QmpError::Refused(words)) if words == "no"));
    }

    #[tokio::test]
    async fn the_first_cause_of_an_end_stands() {
        for (events, cause) in [
            (&[r#"{"event":"RESUME","timestamp":{}}"#][..], None),
            (
                &[r#"{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}}"#],
                Some(Shutdown::PoweredOff),
            ),
            (
                &[
                    r#"{"event":"GUEST_PANICKED","data":{}}"#,
                    r#"{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-reset"}}"#,
                ],
                Some(Shutdown::Panicked),
            ),
            (&[r#"{"event":"SHUTDOWN","data":7}"#], Some(Shutdown::Told)),
            (&[r#"{"event":"SHUTDOWN"}"#], Some(Shutdown::Told)),
        ] {
            let script =
                format!("{GREETING}\n{{\"return\":{{}},\"id\":0}}\n{}\n", events.join("\n"));
            let monitor = meet(&script).await.unwrap();
            assert_eq!(monitor.version().to_string(), "7.2.22");
            monitor.closed().await;
            assert_eq!(monitor.shutdown(), cause, "{events:?}");
            assert!(matches!(monitor.run(Command::Continue).await, Err(QmpError::Closed)));
        }
    }

    #[tokio::test]
    async fn answers_find_their_commands_among_events_and_strays() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut lines = tokio::io::BufReader::new(reader).lines();
            writer.write_all(GREETING.as_bytes()).await.unwrap();
            writer.write_all(b"\n").await.unwrap();
            while let Some(line) = lines.next_line().await.unwrap() {
                let command: serde_json::Value = serde_json::from_str(&line).unwrap();
                let id = &command["id"];
                let answer = match command["execute"].as_str().unwrap() {
                    "qmp_capabilities" => format!("{{\"return\":{{}},\"id\":{id}}}\n"),
                    "cont" => format!(
                        "{{\"event\":\"RESUME\"}}\n{{\"return\":1,\"id\":99}}\n{{\"return\":2}}\n\
                         {{\"error\":{{\"desc\":\"not now\"}},\"id\":{id}}}\n"
                    ),
                    "query-status" => continue,
                    other => panic!("{other}"),
                };
                writer.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let monitor = Monitor::negotiate(ours).await.unwrap();
        for _ in 0..3 {
            let refusal = monitor.run(Command::Continue).await.unwrap_err();
            assert!(matches!(refusal, QmpError::Refused(words) if words == "not now"));
        }
        assert!(!monitor.is_stalled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_waits_for_room_tries_again_until_there_is_some() {
        const FULL: &str = r#"{"event":"BLOCK_IO_ERROR","data":{"nospace":true,"action":"stop"}}"#;
        for adopted in [false, true] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (told, mut tries) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(async move {
                let (reader, mut writer) = theirs.into_split();
                let mut lines = tokio::io::BufReader::new(reader).lines();
                writer.write_all(format!("{GREETING}\n").as_bytes()).await.unwrap();
                let mut full_for = 3;
                while let Ok(Some(line)) = lines.next_line().await {
                    let answer = if line.contains("qmp_capabilities") {
                        "{\"return\":{},\"id\":0}".to_owned()
                    } else if line.contains("query-status") {
                        let status = if adopted { "io-error" } else { "running" };
                        let event = if adopted { "" } else { FULL };
                        format!("{{\"return\":{{\"status\":\"{status}\"}},\"id\":0}}\n{event}")
                    } else {
                        full_for -= 1;
                        told.send(full_for).unwrap();
                        let event = if full_for > 0 { FULL } else { "" };
                        format!("{{\"return\":{{}},\"id\":0}}\n{event}")
                    };
                    writer.write_all(answer.trim_end().as_bytes()).await.unwrap();
                    writer.write_all(b"\n").await.unwrap();
                }
            });
            let monitor = Monitor::negotiate(ours).await.unwrap();
            let mut stalled = monitor.stalled.clone();
            stalled.wait_for(|stalled| *stalled).await.unwrap();
            for left in [2, 1, 0] {
                assert_eq!(tries.recv().await, Some(left));
            }
            stalled.wait_for(|stalled| !*stalled).await.unwrap();
            assert!(!monitor.is_stalled());
        }
    }
}
