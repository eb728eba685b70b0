//! A tool that streams: its output is read here, its complaints by a thread, its end awaited.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::StageReport;
use super::apt::tail;
use super::error::DebianError;

const MOST_LINES: usize = 40;
const LONGEST_LINE: u64 = 4096;
/// How long the supervisor may take to end the tool and remove its files.
const GRACE: Duration = Duration::from_secs(40);

/// A running tool whose standard output is the product.
#[derive(Debug)]
pub struct Streaming {
    tool: &'static str,
    child: Child,
    output: ChildStdout,
    complaints: Option<JoinHandle<VecDeque<String>>>,
    status: Option<ExitStatus>,
}

impl Streaming {
    /// Starts `command` under a supervisor that removes `directory` at its end; `report` gets what
    /// the tool says it is doing.
    pub fn start(
        tool: &'static str,
        command: &Command,
        directory: &Path,
        mut report: StageReport,
    ) -> Result<Self, DebianError> {
        let failed = |source| DebianError::Run { tool, source };
        let mut supervisor = Command::new("/proc/self/exe");
        supervisor.args(["internal", "supervise", "--directory"]).arg(directory).arg("--");
        supervisor.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => supervisor.env(name, value),
                None => supervisor.env_remove(name),
            };
        }
        let mut child = supervisor
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for banger, which then says what is to end.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
            unreachable!("both streams were asked for as pipes");
        };
        let complaints = std::thread::Builder::new()
            .name("mmdebstrap-stderr".into())
            .spawn(move || collect(errors, &mut report))
            .map_err(failed)?;
        Ok(Self { tool, child, output, complaints: Some(complaints), status: None })
    }

    pub fn output(&mut self) -> &mut ChildStdout {
        &mut self.output
    }

    /// Returns the product's pipe, to wait for it with a deadline.
    pub fn output_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    /// Waits for the end and returns an error with the tool's last words unless it is a good one.
    pub fn finish(mut self) -> Result<(), DebianError> {
        let tool = self.tool;
        // Not `wait`, which would close the supervisor's lifeline first.
        let lifeline = self.child.stdin.take();
        let status = self.child.wait().map_err(|source| DebianError::Run { tool, source })?;
        drop(lifeline);
        self.status = Some(status);
        let lines = self.join();
        if status.success() {
            return Ok(());
        }
        Err(DebianError::Failed { tool, status, output: last_words(&lines) })
    }

    fn join(&mut self) -> VecDeque<String> {
        // A panic of that thread only costs its lines.
        self.complaints.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }

    /// Tells the supervisor to end the tool, and waits until it has.
    fn stop(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + GRACE;
        while self.child.try_wait().ok().flatten().is_none() {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.join();
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.stop();
        }
    }
}

/// Reads lines to the end, reports those that name a stage and keeps the last ones.
fn collect(errors: impl Read, report: &mut StageReport) -> VecDeque<String> {
    let mut reader = BufReader::new(errors);
    let mut lines = VecDeque::new();
    loop {
        let mut bytes = Vec::new();
        match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return lines,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if let Some(stage) = line.strip_prefix("I: ").and_then(stage) {
            report(stage);
        }
        if lines.len() == MOST_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// The part of a line that tells people something: not where files are, not a script's text.
fn stage(line: &str) -> Option<&str> {
    const QUIET: [&str; 6] =
        ["using ", "chroot ", "finding ", "running --", "removing tempdir", "success in"];
    let shown = !QUIET.iter().any(|start| line.starts_with(start))
        && line != "done"
        && !line.contains(" received signal ");
    shown.then(|| line.trim_end_matches("..."))
}

/// Errors and warnings where there are any, else the last lines.
fn last_words(lines: &VecDeque<String>) -> String {
    let errors: Vec<&str> = lines
        .iter()
        .map(String::as_str)
        .filter(|line| {
            line.starts_with("E: ") || line.starts_with("W: ") || line.starts_with("Err:")
        })
        .collect();
    let shown = if errors.is_empty() {
        lines.iter().rev().take(10).rev().map(String::as_str).collect()
    } else {
        errors
    };
    tail(&shown.join("; "))
}
