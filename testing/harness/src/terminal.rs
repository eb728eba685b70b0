//! A program on a pseudo-terminal, driven as a person would.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A program whose standard streams are a terminal of its own.
#[derive(Debug)]
pub struct Terminal {
    master: std::fs::File,
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
    read: usize,
    end: Instant,
}

fn window(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// Starts the command as leader of a new session with this terminal.
    #[must_use]
    pub fn start(command: &Command, columns: u16, rows: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("open a terminal");
        grantpt(&master).expect("grant the terminal");
        unlockpt(&master).expect("unlock the terminal");
        let name = ptsname(&master, Vec::new()).expect("name the terminal");
        let name = name.into_string().expect("a terminal's name is text");
        tcsetwinsize(&master, window(columns, rows)).expect("size the terminal");
        let open = || {
            std::fs::File::options()
                .read(true)
                .write(true)
                .open(&name)
                .expect("open the terminal's other end")
        };
        let mut session =
            Command::new(crate::find_program("setsid").expect("util-linux has setsid"));
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        session.env_clear();
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                session.env(name, value);
            }
        }
        session.env("TERM", "xterm-256color");
        if let Some(folder) = command.get_current_dir() {
            session.current_dir(folder);
        }
        session.stdin(Stdio::from(open())).stdout(Stdio::from(open())).stderr(Stdio::from(open()));
        let child = session.spawn().expect("start the command on the terminal");
        drop(session);
        let master = std::fs::File::from(master);
        let output = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, kept) =
            (master.try_clone().expect("share the terminal"), Arc::clone(&output));
        // Ends with EIO when the last holder of the other end is gone.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = reader.read(&mut buffer)
                && count > 0
            {
                kept.lock().expect("no reader panics").extend_from_slice(&buffer[..count]);
            }
        });
        Self { master, child, output, read: 0, end: Instant::now() + crate::GUEST_DEADLINE }
    }

    /// Types these bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.master.write_all(bytes).expect("write to the terminal");
    }

    /// Changes the size of the window.
    pub fn resize(&self, columns: u16, rows: u16) {
        tcsetwinsize(&self.master, window(columns, rows)).expect("size the terminal");
    }

    /// Everything that was shown.
    #[must_use]
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("no reader panics")).into_owned()
    }

    /// Waits until `text` is shown after what was last waited for.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        loop {
            let shown = self.output.lock().expect("no reader panics").clone();
            let unread = String::from_utf8_lossy(&shown[self.read..]).into_owned();
            if let Some(at) = unread.find(text) {
                self.read += at + text.len();
                return;
            }
            assert!(
                Instant::now() < self.end,
                "the terminal never showed {text:?} in\n{}",
                self.screen()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the program's end.
    #[track_caller]
    pub fn finish(mut self) -> (ExitStatus, String) {
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                std::thread::sleep(Duration::from_millis(50));
                return (status, self.screen());
            }
            if Instant::now() > self.end {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!("the program did not end; it showed\n{}", self.screen());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_sees_a_terminal_of_the_given_size() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "stty size; read line; stty size; test -t 0 && exit 7"]);
        command.env("PATH", "/usr/bin:/bin");
        let mut terminal = Terminal::start(&command, 101, 33);
        terminal.wait_for("33 101");
        terminal.resize(90, 20);
        terminal.send(b"\n");
        terminal.wait_for("20 90");
        let (status, _) = terminal.finish();
        assert_eq!(status.code(), Some(7));
    }
}
