//! The few programs that the helper runs besides the VMM: by absolute path, words only, an empty
//! environment, a time limit, and a bound to what they may say.
//!
//! A tool that reads what the owner made runs as the owner. The owner can then halt it, change it
//! and hold its pipes open; all of that ends with the time limit, and what it says is as hostile
//! as what it reads.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags};

use crate::{During, Result, descriptor_path};

/// Where a tool may lie; the first that is there is run.
pub(crate) type Paths = &'static [&'static str];

/// How much a tool may say on its standard error.
const LONGEST_ERROR: u64 = 1 << 20;
/// A pipe that is ready takes this much at once (PIPE_BUF).
const CHUNK: usize = 4096;

/// What a tool is given on its standard input.
#[derive(Debug, Default)]
pub(crate) enum Input {
    /// Nothing.
    #[default]
    Nothing,
    /// These bytes.
    Bytes(Vec<u8>),
    /// An open file, which the tool can name `/proc/self/fd/0`.
    File(File),
}

/// A run of a tool.
#[derive(Debug, Default)]
pub(crate) struct Tool {
    /// Where it may lie.
    pub(crate) paths: Paths,
    /// Its words.
    pub(crate) arguments: Vec<String>,
    /// Its standard input.
    pub(crate) input: Input,
    /// How long it may take.
    pub(crate) limit: Duration,
    /// The most bytes that its standard output may have.
    pub(crate) longest_output: u64,
    /// The uid and gid that it runs as, without other groups; none is the helper's own.
    pub(crate) user: Option<(u32, u32)>,
    /// Its working directory; none is the root directory.
    pub(crate) folder: Option<OwnedFd>,
}

/// How a tool ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Its exit.
    pub(crate) status: ExitStatus,
    /// Its standard output.
    pub(crate) output: Vec<u8>,
    /// Its standard error, for messages.
    pub(crate) error: String,
}

impl Tool {
    /// A run with words alone, that says little.
    pub(crate) fn of(paths: Paths, words: &[&str], limit: Duration) -> Self {
        let arguments = words.iter().map(|word| (*word).to_owned()).collect();
        Self { paths, arguments, limit, longest_output: 64 << 10, ..Self::default() }
    }

    /// Whether one of the paths is there.
    pub(crate) fn is_there(paths: &[&str]) -> bool {
        paths.iter().any(|path| Path::new(path).exists())
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It is not there, does not start, takes too long or says too much; it is then ended.
    pub(crate) fn run(self) -> Result<Outcome> {
        let path = self.paths.iter().find(|path| Path::new(path).exists());
        let first = self.paths.first().copied().unwrap_or_default();
        let path = path.ok_or("it is not installed").during("run", first)?;
        let (stdin, bytes) = match self.input {
            Input::Nothing => (Stdio::null(), Vec::new()),
            Input::Bytes(bytes) => (Stdio::piped(), bytes),
            Input::File(file) => (Stdio::from(file), Vec::new()),
        };
        let mut command = Command::new(path);
        command.args(&self.arguments).env_clear();
        command.current_dir(self.folder.as_ref().map_or_else(|| "/".into(), descriptor_path));
        if let Some((uid, gid)) = self.user {
            // Without groups named, the standard library drops all others for root.
            command.gid(gid).uid(uid);
        }
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().during("run", first)?;
        attend(&mut child, bytes, self.limit, self.longest_output).during("run", first)
    }
}

/// Waits for a child without pipes, and kills it when its time is over.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    attend(child, Vec::new(), limit, 0).map(|outcome| outcome.status)
}

/// Sees a child to its end, which is now if something is wrong with it.
fn attend(child: &mut Child, input: Vec<u8>, limit: Duration, longest: u64) -> io::Result<Outcome> {
    let talk = talk(child, input, limit, longest);
    if talk.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    let (output, error) = talk?;
    Ok(Outcome { status, output, error: String::from_utf8_lossy(&error).trim().to_owned() })
}

/// One of a tool's outputs.
struct Stream<P> {
    pipe: Option<P>,
    bytes: Vec<u8>,
    most: u64,
}

impl<P: Read + AsFd> Stream<P> {
    fn new(pipe: Option<P>, most: u64) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            // Another could read away what there was.
            rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK)?;
        }
        Ok(Self { pipe, bytes: Vec::new(), most })
    }

    /// Takes what is there.
    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * CHUNK];
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        match pipe.read(&mut chunk) {
            Ok(0) => self.pipe = None,
            Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        if self.bytes.len() as u64 > self.most {
            return Err(io::Error::other(format!("it says more than {} bytes", self.most)));
        }
        Ok(())
    }
}

/// What a child said on its two outputs.
type Said = (Vec<u8>, Vec<u8>);

/// Gives a child its input and takes its two outputs until it is gone and they are at their end.
fn talk(child: &mut Child, input: Vec<u8>, limit: Duration, longest: u64) -> io::Result<Said> {
    let end = Instant::now() + limit;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(rustix::io::Errno::SRCH)?;
    let mut exit = Some(rustix::process::pidfd_open(pid, PidfdFlags::empty())?);
    let mut output = Stream::new(child.stdout.take(), longest)?;
    let mut error = Stream::new(child.stderr.take(), LONGEST_ERROR)?;
    let mut writer = child.stdin.take();
    if let Some(pipe) = &writer {
        rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK)?;
    }
    let mut input = input.as_slice();
    loop {
        writer = writer.filter(|_| !input.is_empty());
        let outputs = [output.pipe.as_ref().map(AsFd::as_fd), error.pipe.as_ref().map(AsFd::as_fd)];
        let watched = [exit.as_ref().map(AsFd::as_fd)].into_iter().chain(outputs).flatten();
        let mut events: Vec<PollFd<'_>> =
            watched.map(|it| PollFd::from_borrowed_fd(it, PollFlags::IN)).collect();
        if events.is_empty() {
            return Ok((output.bytes, error.bytes));
        }
        events.extend(writer.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now()));
        let left = left.map_err(io::Error::other)?;
        match rustix::event::poll(&mut events, Some(&left)) {
            Ok(0) => {
                let limit = limit.as_secs();
                return Err(io::Error::other(format!("it took longer than {limit} s")));
            }
            Err(rustix::io::Errno::INTR) => continue,
            ready => drop(ready?),
        }
        let is_gone = exit.is_some() && events.first().is_some_and(|it| !it.revents().is_empty());
        drop(events);
        if is_gone {
            exit = None;
        }
        output.read()?;
        error.read()?;
        if let Some(pipe) = &mut writer {
            match pipe.write(&input[..input.len().min(CHUNK)]) {
                Ok(count) => input = &input[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // A tool that does not read all of it says so by its exit.
                Err(_) => input = &[],
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostError;

    fn shell(script: &str, input: Input) -> Tool {
        Tool {
            paths: &["/nonexistent/sh", "/bin/sh"],
            arguments: vec!["-c".to_owned(), script.to_owned()],
            input,
            limit: Duration::from_secs(20),
            longest_output: 2 << 20,
            user: None,
            folder: None,
        }
    }

    fn why(result: Result<Outcome>) -> String {
        match result {
            Err(HostError::Failed { source, .. }) => source.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn input_goes_in_and_both_outputs_come_out() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        let script = "echo problem >&2; cat; exit 3";
        let outcome = shell(script, Input::Bytes(bytes.clone())).run().unwrap();
        assert!(outcome.output == bytes);
        assert_eq!((outcome.error.as_str(), outcome.status.code()), ("problem", Some(3)));
        let unread = shell("exec <&-; echo done", Input::Bytes(bytes)).run().unwrap();
        assert_eq!(unread.output, b"done\n");
        assert_eq!(shell("cat", Input::Nothing).run().unwrap().output, b"");
        let environment = shell("env; pwd", Input::Nothing).run().unwrap().output;
        let environment = String::from_utf8(environment).unwrap();
        // The shell's own.
        let own = ["PWD=", "SHLVL=", "_=", "/"];
        let is_own = |line: &str| own.iter().any(|name| line.starts_with(name));
        assert!(environment.lines().all(is_own) && environment.ends_with("/\n"), "{environment}");
    }

    #[test]
    fn what_takes_too_long_or_says_too_much_is_ended() {
        let short = |script| Tool {
            limit: Duration::from_millis(300),
            longest_output: 100,
            ..shell(script, Input::Nothing)
        };
        let start = Instant::now();
        assert!(why(short("exec sleep 9").run()).contains("longer"));
        // The tool is gone, and another holds its outputs.
        assert!(why(short("sleep 9 & exit 0").run()).contains("longer"));
        assert!(why(short("exec yes").run()).contains("more than 100 bytes"));
        assert!(start.elapsed() < Duration::from_secs(8));
        assert_eq!(short("printf %100s x").run().unwrap().output.len(), 100);
        let missing = Tool { paths: &["/nonexistent"], ..shell("", Input::Nothing) };
        assert!(why(missing.run()).contains("not installed"));
    }

    #[test]
    fn a_tool_of_a_user_has_no_right_of_root() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = std::fs::File::open("/proc/self").unwrap();
        let tool = Tool {
            user: Some((60_907, 60_908)),
            folder: Some(folder.into()),
            ..shell("grep -E '^(Uid|Gid|Groups|Cap)' /proc/self/status; cat comm", Input::Nothing)
        };
        let said = String::from_utf8(tool.run().unwrap().output).unwrap();
        let said: Vec<String> = said
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let none = "0000000000000000";
        for line in [
            "Uid: 60907 60907 60907 60907",
            "Gid: 60908 60908 60908 60908",
            "Groups:",
            &format!("CapPrm: {none}"),
            &format!("CapEff: {none}"),
        ] {
            assert!(said.iter().any(|said| said == line), "{line}: {said:?}");
        }
    }
}
