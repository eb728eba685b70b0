//! A QEMU that runs: held by pidfd, talked to through its monitor.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use banger_engine::seams::{VmmError, VmmIdentity, VmmKind, VmmProcess, VmmState};
use banger_guest_client::{BoxedStream, GuestChannel, SerialChannel};
use rustix::process::Signal;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::console;
use super::files::RuntimeFiles;
use super::last_words::LastWords;
use super::qmp::{Command, Monitor, QmpError, Shutdown};
use super::version::QemuVersion;
use crate::HELD_FOR_ROOM;
use crate::console_port::ConsolePort;
use crate::held::{self, HeldProcess};
use crate::task::Task;

/// How long a QEMU that we have started may take to its monitor's first answer. Usually below 0.1 s;
/// a loaded machine is given much more. One that runs already is waited for until it ends: a second
/// connection would only stand behind the first.
const MONITOR_DEADLINE: Duration = Duration::from_secs(30);
/// How long a running QEMU may take to answer a command.
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);
/// How long to wait for the last lines of a QEMU that has ended; they are in our sockets already.
const LAST_LINES_DEADLINE: Duration = Duration::from_secs(1);

/// A QEMU, running or ended.
pub(crate) struct QemuProcess {
    identity: VmmIdentity,
    held: Arc<HeldProcess>,
    monitor: Monitor,
    channel: Arc<dyn GuestChannel>,
    words: LastWords,
    /// Copies the console to its log until QEMU ends.
    console: Task,
    console_port: ConsolePort,
    /// We killed it, so that its death by signal 9 is no surprise.
    killed: AtomicBool,
    /// The exit status, where QEMU is our own child; `None` inside until it has ended.
    exit: Option<watch::Receiver<Option<ExitStatus>>>,
}

impl QemuProcess {
    /// Connects to a QEMU's sockets. `exit` is how the exit status of our own child will be learnt;
    /// one of an earlier daemon is waited for as long as it runs.
    pub(crate) async fn connect(
        identity: VmmIdentity,
        held: Arc<HeldProcess>,
        files: &RuntimeFiles,
        console_log: &Path,
        words: LastWords,
        exit: Option<watch::Receiver<Option<ExitStatus>>>,
    ) -> Result<Self, VmmError> {
        let negotiated = match exit {
            Some(_) => timeout(MONITOR_DEADLINE, negotiate(files)).await,
            None => tokio::select! {
                negotiated = negotiate(files) => Ok(negotiated),
                () = held.ended() => Ok(Err(QmpError::Closed)),
            },
        };
        let monitor = match negotiated {
            Ok(Ok(monitor)) => monitor,
            Ok(Err(QmpError::Refused(message))) => {
                let command = Command::Capabilities.name().to_owned();
                return Err(VmmError::Refused { vmm: "QEMU", command, message });
            }
            Ok(Err(error)) => {
                // A closed monitor is most often a QEMU that is ending; then its own words count.
                if timeout(LAST_LINES_DEADLINE, held.ended()).await.is_ok() {
                    let reason = reason(&words, exit.as_ref(), None).await;
                    let reason = reason.unwrap_or_else(|| "it gave no reason".to_owned());
                    return Err(VmmError::Ended { vmm: "QEMU", act: "starting", reason });
                }
                let act = format!("connecting to QEMU's monitor {}", files.monitor.display());
                return Err(VmmError::Io { act, source: io_error(error) });
            }
            Err(_) => {
                return Err(VmmError::Timeout {
                    act: "QEMU's first answer".to_owned(),
                    seconds: MONITOR_DEADLINE.as_secs(),
                });
            }
        };
        let console = connect(&files.console, "the guest's console").await?;
        let (console_port, guest) = ConsolePort::new();
        let console = Task::spawn(console::follow(console, console_log.to_owned(), guest));
        let agent = connect(&files.agent, "the agent's port").await?;
        let channel = Arc::new(SerialChannel::over(agent));
        let killed = AtomicBool::new(false);
        Ok(Self { identity, held, monitor, channel, words, console, console_port, killed, exit })
    }

    /// Returns QEMU's version.
    pub(crate) fn version(&self) -> QemuVersion {
        self.monitor.version()
    }

    async fn run(&self, command: Command, act: &'static str) -> Result<(), VmmError> {
        let answered = tokio::select! {
            answered = timeout(COMMAND_DEADLINE, self.monitor.run(command)) => answered,
            () = self.held.ended() => Ok(Err(QmpError::Closed)),
        };
        match answered {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(QmpError::Refused(message))) => {
                let command = command.name().to_owned();
                Err(VmmError::Refused { vmm: "QEMU", command, message })
            }
            Ok(Err(error)) => {
                if timeout(LAST_LINES_DEADLINE, self.held.ended()).await.is_ok() {
                    let reason = self.final_reason().await;
                    let reason = reason.unwrap_or_else(|| "it was told to end".to_owned());
                    return Err(VmmError::Ended { vmm: "QEMU", act, reason });
                }
                let act = format!("sending {} to QEMU's monitor", command.name());
                Err(VmmError::Io { act, source: io_error(error) })
            }
            Err(_) => Err(VmmError::Timeout {
                act: format!("QEMU's answer to {}", command.name()),
                seconds: COMMAND_DEADLINE.as_secs(),
            }),
        }
    }

    /// Returns why a QEMU that has ended did so, after its last lines have been read.
    async fn final_reason(&self) -> Option<String> {
        // Both are closed by QEMU's end; where they hang, what is known by then must do.
        let _ = timeout(LAST_LINES_DEADLINE, self.monitor.closed()).await;
        let _ = timeout(LAST_LINES_DEADLINE, self.console.finished()).await;
        reason(&self.words, self.exit.as_ref(), self.shutdown()).await
    }

    fn shutdown(&self) -> Option<Shutdown> {
        let killed = self.killed.load(Ordering::Acquire).then_some(Shutdown::Killed);
        self.monitor.shutdown().or(killed)
    }
}

#[async_trait]
impl VmmProcess for QemuProcess {
    fn identity(&self) -> &VmmIdentity {
        &self.identity
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.run(Command::Continue, "letting the guest run").await
    }

    fn channel(&self) -> Arc<dyn GuestChannel> {
        Arc::clone(&self.channel)
    }

    async fn console(&self) -> Result<BoxedStream, VmmError> {
        self.console_port.attach().ok_or_else(|| VmmError::Ended {
            vmm: "QEMU",
            act: "attaching to its console",
            reason: self.words.reason().unwrap_or_else(|| "it was told to end".to_owned()),
        })
    }

    fn state(&self) -> VmmState {
        if !self.held.has_ended() {
            return VmmState::Alive;
        }
        let exit = self.exit.as_ref().and_then(|exit| *exit.borrow());
        VmmState::Dead { reason: explain(self.shutdown(), exit, self.words.reason()) }
    }

    fn stall(&self) -> Option<&'static str> {
        self.monitor.is_stalled().then_some(HELD_FOR_ROOM)
    }

    async fn wait(&self) -> VmmState {
        self.held.ended().await;
        VmmState::Dead { reason: self.final_reason().await }
    }

    fn signal(&self, signal: Signal) -> Result<bool, VmmError> {
        self.held.signal(signal).map_err(|source| VmmError::Io {
            act: format!("sending a signal to QEMU, process {}", self.identity.pid),
            source,
        })
    }

    async fn kill(&self) -> Result<(), VmmError> {
        if !self.held.has_ended() {
            self.killed.store(true, Ordering::Release);
        }
        held::kill(&self.held, self.identity.pid, VmmKind::Qemu).await.map(drop)
    }
}

async fn negotiate(files: &RuntimeFiles) -> Result<Monitor, QmpError> {
    let stream = UnixStream::connect(&files.monitor).await.map_err(QmpError::Io)?;
    Monitor::negotiate(stream).await
}

async fn connect(path: &Path, what: &str) -> Result<UnixStream, VmmError> {
    UnixStream::connect(path).await.map_err(|source| VmmError::Io {
        act: format!("connecting to {what} at {}", path.display()),
        source,
    })
}

fn io_error(error: QmpError) -> std::io::Error {
    match error {
        QmpError::Io(source) => source,
        other => std::io::Error::other(other),
    }
}

/// Collects what is known of an ended QEMU and puts it into words.
async fn reason(
    words: &LastWords,
    exit: Option<&watch::Receiver<Option<ExitStatus>>>,
    shutdown: Option<Shutdown>,
) -> Option<String> {
    let _ = timeout(LAST_LINES_DEADLINE, words.complete()).await;
    let mut status = None;
    if let Some(exit) = exit {
        let mut exit = exit.clone();
        if let Ok(Ok(known)) = timeout(LAST_LINES_DEADLINE, exit.wait_for(Option::is_some)).await {
            status = *known;
        }
    }
    explain(shutdown, status, words.reason())
}

/// Says in one line why QEMU ended; `None` for the good ends.
fn explain(
    shutdown: Option<Shutdown>,
    status: Option<ExitStatus>,
    words: Option<String>,
) -> Option<String> {
    match shutdown {
        Some(Shutdown::PoweredOff | Shutdown::Killed) => return None,
        Some(Shutdown::Restarted) => {
            return Some(
                "the guest restarted itself (a reboot or a kernel panic), which ends it here"
                    .to_owned(),
            );
        }
        Some(Shutdown::Panicked) => return Some("the guest's kernel panicked".to_owned()),
        Some(Shutdown::Told) | None => {}
    }
    let how = match status {
        Some(status) if status.success() => return None,
        Some(status) => match (status.signal(), status.code()) {
            // Nobody but a person or the kernel's out-of-memory killer sends it uninvited.
            (Some(9), _) => "QEMU was killed (signal 9), by hand or for want of memory".to_owned(),
            (Some(signal), _) => format!("QEMU died of signal {signal}"),
            // QEMU explains its own failures, so its words alone will do.
            (None, Some(code)) => match words {
                Some(words) => return Some(words),
                None => format!("QEMU ended with exit code {code}"),
            },
            (None, None) => "QEMU ended".to_owned(),
        },
        None if shutdown == Some(Shutdown::Told) => return None,
        None => "QEMU ended without saying why".to_owned(),
    };
    Some(match words {
        Some(words) => format!("{how}; it last said: {words}"),
        None => how,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ends_have_no_reason_and_bad_ones_say_what_is_known() {
        let clean = ExitStatus::from_raw(0);
        let failed = ExitStatus::from_raw(1 << 8);
        let killed = ExitStatus::from_raw(9);
        let words = || Some("no such disk".to_owned());
        assert_eq!(explain(Some(Shutdown::PoweredOff), Some(clean), words()), None);
        assert_eq!(explain(Some(Shutdown::Told), None, None), None);
        assert_eq!(explain(None, Some(clean), words()), None);
        assert_eq!(explain(None, Some(failed), words()), words());
        assert!(explain(None, Some(failed), None).unwrap().contains("exit code 1"));
        let reason = explain(None, Some(killed), words()).unwrap();
        assert!(reason.contains("signal 9") && reason.contains("no such disk"), "{reason}");
        assert!(explain(Some(Shutdown::Restarted), Some(clean), None).is_some());
        assert!(explain(None, None, None).is_some());
    }
}
