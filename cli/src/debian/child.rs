//! A tool that streams: its output is read here, its complaints by a thread, its end awaited.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::StageReport;
use super::apt::tail;
use super::error::DebianError;

const MOST_LINES: usize = 40;
const LONGEST_LINE: u64 = 4096;
/// How long a tool may take to remove its own files after it was asked to end.
const GRACE: Duration = Duration::from_secs(20);

/// A temporary directory for a tool that may leave files of other (subordinate) owners in it.
#[derive(Debug)]
pub struct Workplace {
    path: PathBuf,
    helper: PathBuf,
}

impl Workplace {
    /// Makes the directory below `$TMPDIR`, else `/var/tmp` (which is a disk, not memory).
    pub fn create(helper: &Path) -> Result<Self, DebianError> {
        let parent = std::env::var_os("TMPDIR")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .unwrap_or_else(|| PathBuf::from("/var/tmp"));
        let failed = |source| DebianError::File {
            action: "create a temporary directory in",
            path: parent.clone(),
            source,
        };
        let made = tempfile::Builder::new()
            .prefix("banger-debian-")
            // The subordinate ids must be able to pass through.
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir_in(&parent)
            .map_err(failed)?;
        Ok(Self { path: made.keep(), helper: helper.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if fs::remove_dir_all(&self.path).is_ok() || !self.path.exists() {
            return;
        }
        // Files of subordinate ids can only be removed inside of their namespace; mmdebstrap has
        // a helper for that, where it did not do it itself.
        let leftovers = fs::read_dir(&self.path).into_iter().flatten().filter_map(Result::ok);
        for entry in leftovers {
            let _ = Command::new(&self.helper)
                .args(["--unshare-helper", "rm", "-rf", "--one-file-system"])
                .arg(entry.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}

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
    /// Starts `command` in a process group of its own; `report` gets what it says it is doing.
    pub fn start(
        tool: &'static str,
        mut command: Command,
        mut report: StageReport,
    ) -> Result<Self, DebianError> {
        let failed = |source| DebianError::Run { tool, source };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
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
        let status = self.child.wait().map_err(|source| DebianError::Run { tool, source })?;
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

    /// Asks the tool to end, which makes it remove its files; kills it if it does not.
    fn stop(&mut self) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        // It is our child and not yet waited for, so the id is still its own.
        if self.child.try_wait().ok().flatten().is_none() {
            // As Ctrl-C at a terminal would: all of them at once, and the first one tidies up.
            let _ = killpg(group, Signal::SIGTERM);
        }
        let deadline = Instant::now() + GRACE;
        while self.child.try_wait().ok().flatten().is_none() {
            if Instant::now() >= deadline {
                let _ = killpg(group, Signal::SIGKILL);
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
    tail(&shown.join("\n"))
}
