//! The one line that the daemon says to whoever started it.
//!
//! `ready`, or an `ApiError` as JSON; then standard output becomes `/dev/null`, so that the reader
//! sees the end of file and nothing later can block on a full pipe. A service says it to systemd
//! instead (`sd_notify(3)`), and its failure to the journal.

use std::ffi::OsStr;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use banger_daemon_api::error::ApiError;

/// The line that is still to be said.
#[derive(Debug)]
pub struct Readiness {
    said: bool,
}

impl Readiness {
    /// Nothing is said yet.
    pub const fn new() -> Self {
        Self { said: false }
    }

    /// Says that the daemon serves its socket.
    pub fn ready(&mut self) {
        if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
            && let Err(error) = notify(&socket)
        {
            tracing::warn!(%error, "systemd was not told that bangerd is ready");
        }
        self.say("ready");
    }

    /// Says why the daemon cannot start; after `ready`, the log is the place for that.
    pub fn failed(&mut self, error: &ApiError) {
        match serde_json::to_string(error) {
            Ok(line) => self.say(&line),
            Err(_) => self.say(&error.message),
        }
    }

    fn say(&mut self, line: &str) {
        if self.said {
            return;
        }
        self.said = true;
        let mut output = std::io::stdout().lock();
        // Nobody listens: that is no reason to end.
        let _ = writeln!(output, "{line}").and_then(|()| output.flush());
        if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
        }
    }
}

/// Tells systemd; the socket's name is a path, or abstract where it begins with `@`.
fn notify(socket: &OsStr) -> std::io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}
