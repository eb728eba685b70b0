//! The least that answers a line by a line: a process that does nothing else.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};

/// The option of this program that makes it an echo.
pub(crate) const OPTION: &str = "--answer-at";

/// Takes one connection and answers each line with `text`, until the peer leaves; by a thread of the
/// connection's own, like the helper.
pub(crate) fn answer(socket: &Path, text: &str) -> Result<()> {
    let listener = UnixListener::bind(socket).context("listen")?;
    crate::say("ready");
    let (stream, _) = listener.accept().context("accept")?;
    let answer = format!("{text}\n");
    let serve = move || {
        let (mut reader, mut line) = (BufReader::new(&stream), Vec::new());
        while reader.read_until(b'\n', &mut line).context("read a line")? > 0 {
            line.clear();
            (&mut &stream).write_all(answer.as_bytes()).context("answer")?;
        }
        Ok(())
    };
    std::thread::spawn(serve).join().map_err(|_| anyhow!("the echo panicked"))?
}

/// A running echo; ended when dropped.
#[derive(Debug)]
pub(crate) struct Echo {
    child: Child,
    socket: PathBuf,
}

impl Echo {
    /// Starts one that always gives this answer.
    pub(crate) fn start(socket: PathBuf, text: &str) -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.arg(OPTION).arg(&socket).args(["--answer", text]);
        let mut child = command.stdout(Stdio::piped()).spawn().context("start an echo")?;
        let mut line = String::new();
        let output = child.stdout.take().context("the echo's output")?;
        let read = BufReader::new(output).read_line(&mut line);
        let echo = Self { child, socket };
        read.context("wait for the echo")?;
        ensure!(line == "ready\n", "the echo did not start");
        Ok(echo)
    }

    /// Its process, whose threads are made as connections come.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects.
    pub(crate) fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.socket).context("connect to the echo")
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
