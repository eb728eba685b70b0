//! One run of a program with a deadline, its input and its whole output.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::processes::Process;

/// A command that has not been started.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    input: Option<Vec<u8>>,
    deadline: Duration,
    closed_input: bool,
}

impl Invocation {
    /// Takes a command; without [`Self::input`] its standard input is empty.
    #[must_use]
    pub fn new(command: Command) -> Self {
        Self { command, input: None, deadline: crate::GUEST_DEADLINE, closed_input: true }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in a folder.
    #[must_use]
    pub fn folder(mut self, folder: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Gives it these bytes and then the end of file.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Keeps its standard input open, with nothing to read.
    #[must_use]
    pub fn open_input(mut self) -> Self {
        self.closed_input = false;
        self
    }

    /// Kills it and fails after this long instead of [`crate::GUEST_DEADLINE`].
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The command itself, for what this type has no method for.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Starts it.
    #[must_use]
    pub fn spawn(mut self) -> Running {
        let shown = format!("{:?}", self.command);
        let pipe = self.input.is_some() || !self.closed_input;
        self.command.stdin(if pipe { Stdio::piped() } else { Stdio::null() });
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            self.command.spawn().unwrap_or_else(|error| panic!("start {shown}: {error}"));
        let mut stdin = child.stdin.take();
        let feeder = self.input.take().map(|input| {
            let stdin = stdin.take();
            std::thread::spawn(move || {
                // A program that ends without reading all of it is no fault.
                if let Some(mut stdin) = stdin {
                    let _ = stdin.write_all(&input);
                }
            })
        });
        let stdout = Collector::start(child.stdout.take().expect("standard output is a pipe"));
        let stderr = Collector::start(child.stderr.take().expect("standard error is a pipe"));
        Running {
            shown,
            child,
            stdin,
            feeder,
            stdout,
            stderr,
            end: Instant::now() + self.deadline,
            waited: false,
        }
    }

    /// Starts it and waits for its end.
    #[must_use]
    pub fn run(self) -> Finished {
        self.spawn().finish()
    }

    /// Runs it and fails unless it ends with 0.
    pub fn ok(self) -> Finished {
        self.run().code(0)
    }
}

/// Reads a pipe to its end in the background.
#[derive(Debug)]
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn start(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count) = pipe.read(&mut buffer)
                && count > 0
            {
                kept.lock().expect("no reader panics").extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, thread: Some(thread) }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().expect("no reader panics").clone()
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    stdin: Option<std::process::ChildStdin>,
    feeder: Option<JoinHandle<()>>,
    stdout: Collector,
    stderr: Collector,
    end: Instant,
    waited: bool,
}

impl Running {
    /// Its process.
    #[must_use]
    pub fn process(&self) -> Process {
        Process { pid: self.child.id(), command: self.shown.clone() }
    }

    /// Writes to its standard input, which was kept open.
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("the input was kept open");
        stdin.write_all(bytes).expect("the program reads its input");
        stdin.flush().expect("the program reads its input");
    }

    /// Ends its standard input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// What it has written to standard output until now.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.so_far()).into_owned()
    }

    /// What it has written to standard error until now.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    /// Waits until its standard output contains `text`.
    pub fn wait_for_output(&mut self, text: &str) {
        while !self.stdout().contains(text) {
            let ended = self.child.try_wait().expect("a child can be waited for").is_some();
            let out_of_time = Instant::now() > self.end;
            if (ended && self.stdout.has_ended() && !self.stdout().contains(text)) || out_of_time {
                let _ = self.child.kill();
                panic!("{} never wrote {text:?}\n{}", self.shown, self.transcript());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until its standard error contains `text`.
    pub fn wait_for_error(&mut self, text: &str) {
        while !self.stderr().contains(text) {
            let ended = self.child.try_wait().expect("a child can be waited for").is_some();
            if (ended && self.stderr.has_ended() && !self.stderr().contains(text))
                || Instant::now() > self.end
            {
                let _ = self.child.kill();
                panic!("{} never wrote {text:?}\n{}", self.shown, self.transcript());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        self.process().signal(signal);
    }

    fn transcript(&self) -> String {
        transcript(&self.stdout.so_far(), &self.stderr.so_far())
    }

    /// Waits for its end; kills it and fails after the deadline.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        self.close_input();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if Instant::now() > self.end {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!("{} did not end in time\n{}", self.shown, self.transcript());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.waited = true;
        // A grandchild that holds the pipes would keep the readers busy.
        let grace = Instant::now() + Duration::from_secs(10);
        while !(self.stdout.has_ended() && self.stderr.has_ended()) {
            assert!(
                Instant::now() < grace,
                "{} ended, but something holds its output open",
                self.shown
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
        Finished {
            shown: self.shown.clone(),
            status,
            stdout: self.stdout.so_far(),
            stderr: self.stderr.so_far(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.waited {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A command that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    shown: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All that it wrote to standard output.
    pub stdout: Vec<u8>,
    /// All that it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Fails unless it ended with this exit code.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert!(self.status.code() == Some(expected), "expected exit code {expected}\n{self}");
        self
    }

    /// Its exit code, if no signal ended it.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails unless this signal ended it.
    #[track_caller]
    pub fn signal(self, expected: i32) -> Self {
        assert!(
            self.status.signal() == Some(expected),
            "expected death by signal {expected}\n{self}"
        );
        self
    }

    /// Standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}) from\n{self}"))
    }

    /// Fails unless standard error contains each of these.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        let text = self.err();
        for word in words {
            assert!(text.contains(word), "expected {word:?} in the error\n{self}");
        }
        self
    }

    /// Fails if it was a crash or shows one of our own debugging forms.
    #[track_caller]
    pub fn is_a_clear_error(self) -> Self {
        let text = self.err();
        assert!(self.status.code().is_some_and(|code| code != 0), "expected a failure\n{self}");
        assert!(
            text.starts_with("banger: ") || text.contains("\nbanger: ") || text.contains("error: "),
            "an error says who speaks\n{self}"
        );
        for word in ["panicked", "RUST_BACKTRACE", "Os {", "Some(", "Err("] {
            assert!(!text.contains(word), "an error for people has no {word:?}\n{self}");
        }
        self
    }
}

fn transcript(stdout: &[u8], stderr: &[u8]) -> String {
    let mut text = String::new();
    for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(8192)]);
        let _ = writeln!(text, "--- {name} ({} bytes)\n{}", bytes.len(), shown.trim_end());
    }
    text
}

impl std::fmt::Display for Finished {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(out, "{}\nended with {}", self.shown, self.status)?;
        out.write_str(&transcript(&self.stdout, &self.stderr))
    }
}
