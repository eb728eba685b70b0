//! A login shell on the serial console, for who attaches there and finds nobody.
//!
//! An image's own getty, or whoever else has the console as its terminal, is left alone. Where there is
//! none (banger's own image has none, and one without an init cannot have any) a shell of root's is
//! started when somebody attaches for the first time, so that a machine that nobody looks at has no
//! process for it. It needs no password: who reaches the console may run any command here as root. It
//! stays when they leave, and ends by `exit`; the next to attach gets another.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use banger_agent_api::{
    AgentError, Argument, ConsoleCall, ConsoleReply, ErrorCode, ExecCall, PtyCall, WindowSize,
};
use rustix::fs::{Mode, OFlags};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Winsize,
};
use tokio::io::Interest;

use super::calls::Server;
use super::command::{Command, failed, reap};

/// The kernel's consoles, the one that `/dev/console` leads to last.
const ACTIVE: &str = "/sys/class/tty/console/active";
/// The user's own shell, as a login shell.
const LOGIN_SHELL: [&str; 3] = ["/bin/sh", "-c", "exec \"${SHELL:-/bin/sh}\" -l"];

/// Gives the console the client's size, and a shell where no program has it as its terminal.
pub(super) fn ensure(server: &Rc<Server>, call: ConsoleCall) -> Result<ConsoleReply, AgentError> {
    let path = console().ok_or_else(|| {
        AgentError::new(ErrorCode::NotFound, "the machine's kernel has no serial console")
    })?;
    let terminal = open(&path).map_err(|error| failed("cannot open the console", error))?;
    if let Some(pty) = &call.pty {
        resize(&terminal, pty.size);
    }
    if server.has_console_shell.get() || has_owner(&terminal) {
        return Ok(ConsoleReply { started: false });
    }
    // What had it before may have left it raw.
    make_sane(&terminal).map_err(|error| failed("cannot set the console's modes", error))?;
    start(server, &terminal, call.pty)?;
    Ok(ConsoleReply { started: true })
}

fn start(server: &Rc<Server>, terminal: &OwnedFd, pty: Option<PtyCall>) -> Result<(), AgentError> {
    let argv = LOGIN_SHELL.into_iter().filter_map(|text| Argument::new(text).ok()).collect();
    let call = ExecCall { argv, pty, ..ExecCall::default() };
    let command = Command::of_exec(&call, &server.environment.borrow())?;
    let cgroup = server.cgroups.take();
    let child = command
        .spawn([terminal, terminal, terminal], true, cgroup.as_ref())
        .map_err(|error| failed("cannot start a shell", error))?;
    let exit = banger_guest_sys::watch(child.pidfd, Interest::READABLE)
        .map_err(|error| failed("cannot watch a process", error))?;
    server.has_console_shell.set(true);
    let server = Rc::clone(server);
    tokio::task::spawn_local(async move {
        let _ = exit.readable().await;
        reap(&exit);
        server.has_console_shell.set(false);
        if let Some(cgroup) = cgroup {
            server.cgroups.give_back(cgroup);
        }
    });
    Ok(())
}

/// Returns where the console that `/dev/console` stands for is.
fn console() -> Option<PathBuf> {
    let names = std::fs::read_to_string(ACTIVE).ok()?;
    let name = names.split_ascii_whitespace().next_back()?;
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_name.then(|| Path::new("/dev").join(name))
}

/// Opens a terminal without waiting for a carrier and without taking it as one's own.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let terminal = rustix::fs::open(path, flags, Mode::empty())?;
    // The shell reads from this very opening.
    rustix::io::ioctl_fionbio(&terminal, false)?;
    Ok(terminal)
}

/// Gives a terminal a size, of which its programs are told; one that takes none works all the same.
fn resize(terminal: &OwnedFd, size: WindowSize) {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

fn make_sane(terminal: &OwnedFd) -> io::Result<()> {
    let mut modes = rustix::termios::tcgetattr(terminal)?;
    modes.input_modes |= InputModes::ICRNL | InputModes::IXON;
    modes.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
    modes.local_modes |= LocalModes::ISIG
        | LocalModes::ICANON
        | LocalModes::IEXTEN
        | LocalModes::ECHO
        | LocalModes::ECHOE
        | LocalModes::ECHOK;
    modes.special_codes[SpecialCodeIndex::VERASE] = 0x7f;
    Ok(rustix::termios::tcsetattr(terminal, OptionalActions::Now, &modes)?)
}

/// Returns whether a process has the terminal as its controlling one.
fn has_owner(terminal: &OwnedFd) -> bool {
    let Ok(status) = rustix::fs::fstat(terminal) else { return false };
    let number = tty_number(status.st_rdev);
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
        .filter_map(|entry| std::fs::read(entry.path().join("stat")).ok())
        .any(|stat| terminal_of(&String::from_utf8_lossy(&stat)) == Some(number))
}

/// Returns a device's number as proc_pid_stat(5) writes it in field 7.
fn tty_number(device: u64) -> u64 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    u64::from(minor & 0xff) | u64::from(major) << 8 | u64::from(minor & !0xff) << 12
}

/// Returns field 7 of a process's `stat`. The name, field 2, may itself hold blanks and parentheses.
fn terminal_of(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(4)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terminal_of_a_process_is_told_by_its_number() {
        assert_eq!(tty_number(rustix::fs::makedev(4, 64)), 1088, "ttyS0");
        assert_eq!(tty_number(rustix::fs::makedev(136, 3)), 34819, "pts/3");
        assert_eq!(terminal_of("17 (a) b) S 1 17 17 1088 17 0"), Some(1088));
        assert_eq!(terminal_of("17 (a) S 1 17 17 0 -1 0"), Some(0));
        assert_eq!(terminal_of("17 (a) S"), None);
    }

    #[test]
    fn who_has_a_terminal_is_found() {
        let flags = rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let peer = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        assert!(!has_owner(&peer));
        make_sane(&peer).unwrap();
        resize(&peer, WindowSize { columns: 99, rows: 11 });
        assert_eq!(rustix::termios::tcgetwinsize(&peer).unwrap().ws_col, 99);
        let mut child = std::process::Command::new("setsid")
            .args(["--ctty", "sh", "-c", "echo ready; exec sleep 600"])
            .stdin(peer.try_clone().unwrap())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert!(has_owner(&peer));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!has_owner(&peer));
    }
}
