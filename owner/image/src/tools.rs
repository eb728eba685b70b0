//! Runs the system's own tools: by absolute path, with an empty environment, a time limit and a
//! limit on what is kept of their output.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::progress::{CancelFlag, Cancelled};

/// Where tools are looked for; `$PATH` is never searched.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
const MOST_OUTPUT: u64 = 64 << 10;
const POLL: Duration = Duration::from_millis(5);

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{tool} is not installed; it is in the Debian package {package}")]
    Missing {
        /// Its name.
        tool: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// It could not be run.
    #[error("run {tool}")]
    Run {
        /// Its path.
        tool: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It took too long and was killed.
    #[error("{tool} was killed after {seconds} seconds")]
    TimedOut {
        /// Its name.
        tool: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// It reported a failure.
    #[error("{tool} failed ({status})")]
    Failed {
        /// Its name.
        tool: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote, if it wrote anything.
        #[source]
        output: Option<ToolOutput>,
    },
    /// It was killed because the work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// How many lines of a failed tool's output are shown; `e2fsck` sums up in its last ones what a
/// damaged file system makes it say thousands of times.
const SHOWN_LINES: usize = 4;
/// The most characters of such a line.
const SHOWN_LINE: usize = 200;

/// A line of what a tool wrote, and those below it: a chain, since errors are shown one to a line.
#[derive(Debug, thiserror::Error)]
#[error("{line}")]
pub struct ToolOutput {
    line: String,
    #[source]
    next: Option<Box<ToolOutput>>,
}

impl ToolOutput {
    /// Takes the last lines.
    fn last_of(output: &str) -> Option<Self> {
        let lines = output.lines().rev().map(str::trim).filter(|line| !line.is_empty());
        lines.take(SHOWN_LINES).fold(None, |next, line| {
            let line = line.chars().take(SHOWN_LINE).collect();
            Some(Self { line, next: next.map(Box::new) })
        })
    }
}

/// A tool and the package that brings it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
}

/// Checks ext2, 3 and 4 file systems.
pub(crate) const E2FSCK: Tool = Tool { name: "e2fsck", package: "e2fsprogs" };

impl Tool {
    fn find(self) -> Result<PathBuf, ToolError> {
        DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join(self.name))
            .find(|path| path.is_file())
            .ok_or(ToolError::Missing { tool: self.name, package: self.package })
    }

    /// Runs the tool to its successful end and returns its output, both streams together.
    pub(crate) fn run(
        self,
        arguments: &[&std::ffi::OsStr],
        limit: Duration,
        cancel: &CancelFlag,
    ) -> Result<String, ToolError> {
        let path = self.find()?;
        let failed = |source| ToolError::Run { tool: path.clone(), source };
        // A file, not a pipe: a tool that writes much is never blocked, and nothing has to read.
        let mut output = anonymous_file().map_err(failed)?;
        let mut child = Command::new(&path)
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::from(output.try_clone().map_err(failed)?))
            .stderr(Stdio::from(output.try_clone().map_err(failed)?))
            .spawn()
            .map_err(failed)?;
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            let stop = if Instant::now() >= deadline {
                Some(ToolError::TimedOut { tool: self.name, seconds: limit.as_secs() })
            } else {
                cancel.check().err().map(ToolError::from)
            };
            if let Some(error) = stop {
                // Both fail only if it has ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
            std::thread::sleep(POLL);
        };
        let text = tail(&mut output).map_err(failed)?;
        if status.success() {
            return Ok(text);
        }
        let output = ToolOutput::last_of(&text);
        Err(ToolError::Failed { tool: self.name, status, output })
    }
}

/// A file in memory without a name.
fn anonymous_file() -> io::Result<File> {
    let descriptor = rustix::fs::memfd_create("tool-output", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(File::from(descriptor))
}

/// The end of what was written, without control characters.
fn tail(output: &mut File) -> io::Result<String> {
    let length = output.metadata()?.len();
    output.seek(SeekFrom::Start(length.saturating_sub(MOST_OUTPUT)))?;
    let mut bytes = Vec::new();
    output.take(MOST_OUTPUT).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let clean: String =
        text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    Ok(clean.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn of_a_failed_tool_the_last_lines_are_shown_one_by_one() {
        let shell = Tool { name: "sh", package: "dash" };
        let run = |script: &str| {
            let words = [OsStr::new("-c"), OsStr::new(script)];
            shell.run(&words, Duration::from_secs(60), &CancelFlag::default()).unwrap_err()
        };
        let shown = |error: &ToolError| {
            let mut lines = vec![error.to_string()];
            let mut cause = error.source();
            while let Some(error) = cause {
                lines.push(error.to_string());
                cause = error.source();
            }
            lines
        };
        let failed = "sh failed (exit status: 3)";
        let long = run("seq 1 5000; echo; exit 3");
        assert_eq!(shown(&long), [failed, "4997", "4998", "4999", "5000"]);
        assert_eq!(shown(&run("exit 3")), [failed]);
        let wide = run("printf '%01000d\\tx' 7; exit 3");
        assert_eq!(shown(&wide)[1].len(), SHOWN_LINE);
    }
}
