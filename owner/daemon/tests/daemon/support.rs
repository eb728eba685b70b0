//! A real `bangerd` per test, as an unprivileged user, in directories of its own.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

/// The user that daemons run as where the tests run as root.
pub const DROPPED_UID: u32 = 60907;

/// A connection that stays silent for this long has hung.
const HUNG: Duration = Duration::from_secs(60);

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Directories for daemons, removed with everything in them.
pub struct Place {
    base: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        // Short, because sockets' paths are (107 bytes).
        let base = tempfile::Builder::new().prefix("bd").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let place = Self { base };
        for directory in ["state", "cache", "run"] {
            place.make(directory);
        }
        place
    }

    fn make(&self, name: &str) {
        let path = self.path(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        if is_root() {
            std::os::unix::fs::chown(&path, Some(DROPPED_UID), Some(DROPPED_UID)).unwrap();
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/bangerd.sock")
    }

    /// The daemon's command line, to be run as an unprivileged user.
    pub fn command(&self) -> DaemonCommand {
        self.command_in(&self.path("run"))
    }

    /// The same with another runtime directory.
    pub fn command_in(&self, runtime_dir: &Path) -> DaemonCommand {
        let executable = File::open(env!("CARGO_BIN_EXE_bangerd")).unwrap();
        // Through the open file, because the dropped user may not reach the directory it is in.
        let mut command = Command::new(format!("/proc/self/fd/{}", executable.as_raw_fd()));
        command
            .env_clear()
            .arg("--direct")
            .args([Path::new("--state-dir"), &self.path("state")])
            .args([Path::new("--cache-dir"), &self.path("cache")])
            .args([Path::new("--runtime-dir"), runtime_dir])
            .args(["--build-id", "test"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        if is_root() {
            command.uid(DROPPED_UID).gid(DROPPED_UID);
        }
        DaemonCommand { command, _executable: executable }
    }

    /// Returns the exit code of `--check-migrations`.
    pub fn check_migrations(&self) -> i32 {
        let mut checking = self.command();
        checking.command.arg("--check-migrations");
        checking.command.output().unwrap().status.code().unwrap()
    }

    /// Starts a daemon that must become ready.
    pub fn start(&self) -> Daemon {
        self.command().start().unwrap_or_else(|error| panic!("the daemon said {error}"))
    }

    /// Sends one request and returns the answer.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        self.request_with(method, path, &[], body)
    }

    pub fn request_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: banger\r\nconnection: close\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        // A refusal may come before the body is taken.
        let _ = stream.write_all(body);
        Answer::read(stream)
    }

    pub fn get(&self, path: &str) -> Value {
        let answer = self.request("GET", path, b"");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    pub fn connect(&self) -> UnixStream {
        connect(&self.socket())
    }

    /// Waits for the end of an operation and returns it.
    pub fn operation_ended(&self, id: &str) -> Value {
        let mut generation = 0;
        loop {
            let operation =
                self.get(&format!("/v1/operations/{id}?generation={generation}&wait_ms=10000"));
            if ["succeeded", "failed", "cancelled"].contains(&operation["state"].as_str().unwrap())
            {
                return operation;
            }
            generation = operation["generation"].as_u64().unwrap();
        }
    }
}

pub fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(HUNG)).unwrap();
    stream
}

pub struct DaemonCommand {
    command: Command,
    _executable: File,
}

impl DaemonCommand {
    /// The same with a listening socket passed to it as systemd does (sd_listen_fds(3)).
    pub fn with_listener(self, place: &Place, listener: OwnedFd) -> Self {
        // A shell gives the descriptor its number; the daemon's own is closed by then.
        let program = place.path("bangerd");
        std::fs::copy(env!("CARGO_BIN_EXE_bangerd"), &program).unwrap();
        let script = "exec 3<&0 < /dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
        let mut command = Command::new("/bin/sh");
        command.env_clear().args(["-c", script]).arg(program).args(self.command.get_args());
        command.stdin(listener).stdout(Stdio::piped());
        if is_root() {
            command.uid(DROPPED_UID).gid(DROPPED_UID);
        }
        Self { command, ..self }
    }

    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn arg(mut self, argument: &str) -> Self {
        self.command.arg(argument);
        self
    }

    /// Starts it; its error line where it is not `ready`.
    pub fn start(mut self) -> Result<Daemon, Value> {
        let mut child = self.command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line == "ready\n" {
            return Ok(Daemon { child });
        }
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{line}");
        Err(serde_json::from_str(&line).unwrap())
    }
}

/// A running daemon; killed when the test is over.
pub struct Daemon {
    child: Child,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn ended(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn read(mut stream: UnixStream) -> Self {
        let mut bytes = Vec::new();
        if let Err(error) = stream.read_to_end(&mut bytes) {
            // A refused request's connection may be reset behind its answer.
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        }
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_else(|| {
            panic!("no HTTP answer: {:?}", String::from_utf8_lossy(&bytes));
        });
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = bytes[end + 4..].to_vec();
        let body = if head.contains("transfer-encoding: chunked") { unchunk(&body) } else { body };
        Self { status, head, body }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that it is the API's error `code` and returns it.
    pub fn error(&self, code: &str) -> Value {
        let error = self.json();
        assert_eq!(error["code"], code, "{error}");
        assert!(self.status >= 400, "{}", self.head);
        let op_id = error["op_id"].as_str().unwrap();
        assert!(self.head.contains(&format!("banger-op-id: {op_id}")), "{}", self.head);
        error
    }
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|window| window == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 2 + size + 2..];
    }
}
