//! A helper that runs, and what a peer does with it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use banger_gate_tables::{Living, Places};
use banger_helper_api::{ErrorCode, Method, PROTOCOL_VERSION};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::{Directories, OWNER};

/// How long an answer may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// `bangerd-root --direct` over directories of its own; it ends when this is dropped.
#[derive(Debug)]
pub struct RunningHelper {
    /// Its directories.
    pub directories: Directories,
    child: Child,
    // It watches its parent; this keeps standard input open, which it does not read.
    _input: Option<ChildStdin>,
}

impl RunningHelper {
    /// Starts one in the namespaces of this thread.
    #[must_use]
    pub fn start() -> Self {
        Self::start_program(&program(), Directories::new())
    }

    /// The same with a program of another build, over directories that are there.
    #[must_use]
    pub fn start_program(program: &Path, directories: Directories) -> Self {
        Self::start_with(directories, |_| Command::new(program))
    }

    /// Starts one by a command that its own words are added to; what runs then must be this
    /// process's child.
    #[must_use]
    pub fn start_by(command: impl FnOnce(&Directories) -> Command) -> Self {
        Self::start_with(Directories::new(), command)
    }

    fn start_with(directories: Directories, command: impl FnOnce(&Directories) -> Command) -> Self {
        let log = std::fs::File::create(directories.log()).unwrap();
        let mut child = command(&directories)
            .args(arguments(&directories))
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("bangerd-root starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = || std::fs::read_to_string(directories.log()).unwrap();
        assert_eq!(line, "ready\n", "{}", log());
        let input = child.stdin.take();
        Self { directories, child, _input: input }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directories.socket()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directories.log()).unwrap()
    }

    /// Connects.
    #[must_use]
    pub fn connect(&self) -> Peer {
        Peer::connect(&self.socket())
    }

    /// Has a method done, over a connection of its own.
    ///
    /// # Errors
    /// The code of a refusal or failure, and its message.
    pub fn call(&self, method: Method, params: &Value) -> Result<Value, (ErrorCode, String)> {
        self.connect().call(method, params)
    }

    /// Where its roots are, for the tables.
    #[must_use]
    pub fn places(&self) -> Places {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let status = std::fs::read_to_string("/proc/meminfo").unwrap();
        let kib: u64 = status.split_whitespace().nth(1).unwrap().parse().unwrap();
        Places {
            state: text(&self.directories.state),
            runtime: text(&self.directories.runtime),
            jails: text(&self.directories.jails),
            vmm: "/usr/lib/banger".to_owned(),
            owner: (OWNER, OWNER),
            own_pid: self.pid(),
            // Rounded differently by the two ways to ask.
            memory_mib: (kib >> 10) + 1,
            living: Living::default(),
        }
    }

    /// Ends it and the machines that it has started; says whether it had not ended before.
    pub fn stop(&mut self) -> bool {
        let runs = self.child.try_wait().unwrap().is_none();
        if runs {
            self.end_machines();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        runs
    }

    fn end_machines(&self) {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let of_thread = |path: PathBuf| std::fs::read_to_string(path.join("children"));
        let children = threads.flatten().filter_map(|thread| of_thread(thread.path()).ok());
        for pid in children.collect::<String>().split_whitespace() {
            let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
            if let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) {
                let _ = pidfd_send_signal(&held, Signal::KILL);
            }
        }
    }
}

impl Drop for RunningHelper {
    fn drop(&mut self) {
        self.stop();
        crate::unmount_below(self.directories.root());
    }
}

/// The program.
#[must_use]
pub fn program() -> PathBuf {
    banger_harness::program_folder().join("bangerd-root")
}

/// The command line of direct mode.
#[must_use]
pub fn arguments(directories: &Directories) -> Vec<String> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    [
        "--direct".to_owned(),
        "--socket".to_owned(),
        text(&directories.socket()),
        "--owner-uid".to_owned(),
        OWNER.to_string(),
        "--owner-gid".to_owned(),
        OWNER.to_string(),
        "--state-dir".to_owned(),
        text(&directories.state),
        "--runtime-dir".to_owned(),
        text(&directories.runtime),
        "--jail-dir".to_owned(),
        text(&directories.jails),
    ]
    .to_vec()
}

/// One connection to a helper.
#[derive(Debug)]
pub struct Peer {
    /// The connection.
    pub stream: BufReader<UnixStream>,
}

impl Peer {
    /// Connects.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the helper listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The helper closed the connection.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The next answer; none if the helper closed the connection.
    #[must_use]
    pub fn answer(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("an answer is JSON")),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("the helper does not answer: {error}"),
        }
    }

    /// Whether the helper has closed the connection.
    #[must_use]
    pub fn is_closed(&mut self) -> bool {
        !matches!(self.stream.read(&mut [0]), Ok(1))
    }

    /// Sends a line and returns the answer.
    pub fn ask(&mut self, line: &str) -> Option<Value> {
        // Who is refused at once gets the answer before the question is out.
        let _ = self.send(format!("{line}\n").as_bytes());
        self.answer()
    }

    /// Has a method done.
    ///
    /// # Errors
    /// The code of a refusal or failure, and its message.
    pub fn call(&mut self, method: Method, params: &Value) -> Result<Value, (ErrorCode, String)> {
        outcome(&self.ask(&request(method, params)).expect("an answer"))
    }
}

/// A request as a line without its end.
#[must_use]
pub fn request(method: Method, params: &Value) -> String {
    json!({"version": PROTOCOL_VERSION, "method": method.name(), "params": params, "op_id": "op-1"})
        .to_string()
}

/// What an answer says.
///
/// # Errors
/// The code of a refusal or failure, and its message.
pub fn outcome(answer: &Value) -> Result<Value, (ErrorCode, String)> {
    if answer["ok"] == true {
        return Ok(answer["result"].clone());
    }
    let error = &answer["error"];
    let code = serde_json::from_value(error["code"].clone()).expect("a known code");
    Err((code, error["message"].as_str().unwrap_or_default().to_owned()))
}
