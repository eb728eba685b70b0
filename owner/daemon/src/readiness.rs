//! The one line that the daemon says to whoever started it.
//!
//! `ready`, or an `ApiError` as JSON; then standard output becomes `/dev/null`, so that the reader
//! sees the end of file and nothing later can block on a full pipe.

use std::io::Write;

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
