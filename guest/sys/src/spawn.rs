//! Starting a command: clone3 straight into its cgroup, then everything up to exec in the child.
//!
//! The standard library cannot make a session, take a terminal, or enter a cgroup at birth without
//! `pre_exec`, and moving a running process between cgroups costs milliseconds in the kernel. A
//! failure in the child is reported where the user looks: on its own standard error, with the exit
//! codes of a shell (127 not found, 126 not executable or not startable).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Who the command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Everything a child needs; made before the fork, because the child must not allocate.
#[derive(Debug)]
pub struct ChildPlan<'a> {
    /// Paths to try in turn, as execvp does.
    pub programs: &'a [CString],
    /// The arguments, the name first.
    pub argv: &'a [CString],
    /// The environment.
    pub envp: &'a [CString],
    /// The working directory.
    pub cwd: &'a CStr,
    /// Who it runs as.
    pub identity: &'a Identity,
    /// Standard input, output and error; each at least 3, so that no dup2 overwrites another.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Standard input is a terminal to take as the controlling one.
    pub terminal: bool,
    /// The cgroup to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Soft and hard limit of open files.
    pub open_files: (u64, u64),
}

/// A started command, not waited for.
#[derive(Debug)]
pub struct Child {
    /// Its process id, also its session and process group.
    pub pid: i32,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
}

/// Layout of `struct clone_args` up to its version 2, clone(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Null-terminated pointers to C strings, for execve.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// Forks and executes. Returns as soon as there is a child; whether it could execute shows in
/// its output and exit code.
pub fn spawn(plan: &ChildPlan<'_>) -> io::Result<Child> {
    if plan.stdio.iter().any(|fd| fd.as_raw_fd() < 3) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let argv = pointers(plan.argv);
    let envp = pointers(plan.envp);
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: u64::try_from(libc::CLONE_PIDFD).unwrap_or(0),
        pidfd: (&raw mut pidfd).addr() as u64,
        exit_signal: u64::try_from(libc::SIGCHLD).unwrap_or(0),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = plan.cgroup {
        // CLONE_INTO_CGROUP of linux/sched.h; the libc crate's constant is an i32 that overflows.
        args.flags |= 0x2_0000_0000;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(0);
    }
    (&raw mut pidfd).expose_provenance();
    // SAFETY: without CLONE_VM this is fork: the child gets its own copy of the address space and
    // only calls `in_child`, which allocates nothing, takes no lock and never returns. `args` is a
    // valid clone_args of the given size, and its pidfd points to a live c_int.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: this is the forked child, single-threaded, and the pointer arrays are
        // null-terminated and live in its copy of the memory.
        unsafe { in_child(plan, &argv, &envp) }
    }
    // SAFETY: CLONE_PIDFD makes the kernel store a new descriptor, close-on-exec, in `pidfd`.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid: i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData)?, pidfd })
}

/// # Safety
/// Only in a freshly forked child: it changes the whole process and ends it. `argv` and `envp`
/// must be null-terminated arrays of valid C strings.
unsafe fn in_child(
    plan: &ChildPlan<'_>,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> ! {
    // SAFETY: every call below is async-signal-safe and is given live descriptors, C strings and
    // structures owned by this frame or by `plan`; identities are set by raw system calls, because
    // the libc wrappers would signal threads that do not exist here.
    unsafe {
        libc::setsid();
        for (source, target) in plan.stdio.iter().zip(0..) {
            if libc::dup2(source.as_raw_fd(), target) < 0 {
                fail(plan, b"cannot set up its input and output", None, 126);
            }
        }
        if plan.terminal {
            libc::ioctl(0, libc::TIOCSCTTY, 0);
        }
        reset_signals();
        write_file(c"/proc/self/oom_score_adj", b"0");
        let (soft, hard) = plan.open_files;
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        libc::umask(0o022);
        let identity = plan.identity;
        if libc::syscall(libc::SYS_setgroups, identity.groups.len(), identity.groups.as_ptr()) < 0
            || libc::syscall(libc::SYS_setresgid, identity.gid, identity.gid, identity.gid) < 0
            || libc::syscall(libc::SYS_setresuid, identity.uid, identity.uid, identity.uid) < 0
        {
            fail(plan, b"cannot become the user", None, 126);
        }
        if libc::chdir(plan.cwd.as_ptr()) < 0 {
            fail(plan, b"cannot change to the directory", Some(plan.cwd), 126);
        }
        // Nothing but the standard three reaches the command, whoever forgot a flag.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        let mut denied = false;
        for program in plan.programs {
            libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => denied = true,
                _ => fail(plan, b"", None, 126),
            }
        }
        *libc::__errno_location() = if denied { libc::EACCES } else { libc::ENOENT };
        fail(plan, b"", None, if denied { 126 } else { 127 })
    }
}

/// Handlers vanish at exec, but ignored signals stay ignored: the Rust runtime ignores SIGPIPE.
///
/// # Safety
/// Only in a freshly forked child.
unsafe fn reset_signals() {
    // SAFETY: sigset_t is initialised by sigemptyset before use; the calls are async-signal-safe.
    unsafe {
        // The real-time signals after 31 are ignored by nobody who starts an agent.
        for number in 1..32 {
            libc::signal(number, libc::SIG_DFL);
        }
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
    }
}

/// Writes `bytes`; a failure is not worth failing the command for.
///
/// # Safety
/// Only in a freshly forked child.
unsafe fn write_file(path: &CStr, bytes: &[u8]) {
    // SAFETY: `path` is a C string and `bytes` is live for its length.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, bytes.as_ptr().cast(), bytes.len());
            libc::close(fd);
        }
    }
}

fn reason(errno: i32) -> &'static [u8] {
    match errno {
        libc::ENOENT | libc::ENOTDIR => b"No such file or directory",
        libc::EACCES => b"Permission denied",
        libc::ENOEXEC => b"Exec format error",
        libc::E2BIG => b"Argument list too long",
        libc::ENOMEM => b"Cannot allocate memory",
        libc::EISDIR => b"Is a directory",
        libc::ELOOP => b"Too many levels of symbolic links",
        libc::ETXTBSY => b"Text file busy",
        libc::EPERM => b"Operation not permitted",
        libc::EIO => b"Input/output error",
        _ => b"Unexpected error",
    }
}

/// Says why on standard error and ends the child.
///
/// # Safety
/// Only in a freshly forked child.
unsafe fn fail(plan: &ChildPlan<'_>, what: &[u8], object: Option<&CStr>, code: i32) -> ! {
    // SAFETY: errno's location is always valid in a thread.
    let errno = unsafe { *libc::__errno_location() };
    let name = plan.argv.first().map_or(&b""[..], |name| name.to_bytes());
    let parts: [&[u8]; 8] = [
        b"banger: exec: ",
        name,
        if what.is_empty() { b"" } else { b": " },
        what,
        if object.is_some() { b" " } else { b"" },
        object.map_or(b"", CStr::to_bytes),
        b": ",
        reason(errno),
    ];
    // SAFETY: each part is live for its length; _exit ends the process without running anything.
    unsafe {
        for part in parts.iter().copied().chain(std::iter::once(&b"\n"[..])) {
            libc::write(2, part.as_ptr().cast(), part.len());
        }
        libc::_exit(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    fn run(programs: &[&str], argv: &[&str], cwd: &str) -> (i32, String) {
        let strings = |list: &[&str]| -> Vec<CString> {
            list.iter().map(|text| CString::new(*text).unwrap()).collect()
        };
        let (mut output, writer) = std::io::pipe().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let child = spawn(&ChildPlan {
            programs: &strings(programs),
            argv: &strings(argv),
            envp: &strings(&["PATH=/usr/bin:/bin"]),
            cwd: &CString::new(cwd).unwrap(),
            identity: &Identity {
                uid: rustix::process::getuid().as_raw(),
                gid: rustix::process::getgid().as_raw(),
                groups: if rustix::process::getuid().is_root() { vec![] } else { own_groups() },
            },
            stdio: [null.as_fd(), writer.as_fd(), writer.as_fd()],
            terminal: false,
            cgroup: None,
            open_files: (1024, 1024),
        })
        .unwrap();
        drop(writer);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        let status = rustix::process::waitid(
            rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        )
        .unwrap()
        .unwrap();
        (status.exit_status().unwrap_or(-1), text)
    }

    fn own_groups() -> Vec<u32> {
        rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect()
    }

    fn may_set_groups() -> bool {
        let root = rustix::process::getuid().is_root();
        if !root {
            eprintln!("SKIP: setgroups needs root");
        }
        root
    }

    #[test]
    fn failures_speak_on_standard_error_with_the_codes_of_a_shell() {
        if !may_set_groups() {
            return;
        }
        let (code, text) = run(&["/nowhere/x", "/bin/x-not-there"], &["x"], "/");
        assert_eq!((code, &*text), (127, "banger: exec: x: No such file or directory\n"));
        let (code, text) = run(&["/etc/passwd"], &["/etc/passwd"], "/");
        assert_eq!((code, &*text), (126, "banger: exec: /etc/passwd: Permission denied\n"));
        let (code, text) = run(&["/bin/true"], &["true"], "/nowhere");
        assert_eq!(code, 126);
        assert!(text.contains("cannot change to the directory /nowhere: No such file"), "{text}");
    }

    #[test]
    fn the_child_has_a_session_default_signals_and_no_foreign_descriptors() {
        if !may_set_groups() {
            return;
        }
        let script = "ls /proc/self/fd | wc -l; grep -E 'SigIgn|SigBlk' /proc/self/status; ps -o sid= -p $$ | tr -d ' '; echo $$; ulimit -n";
        let (code, text) = run(&["/bin/sh"], &["sh", "-c", script], "/tmp");
        assert_eq!(code, 0);
        let lines: Vec<&str> = text.lines().collect();
        // 0, 1, 2, and the directory that ls itself reads.
        assert_eq!(lines[0], "4", "{text}");
        assert!(lines[1].ends_with("0000000000000000"), "{text}");
        // glibc keeps signals 32 and 33 to itself, so whoever started the tests may ignore them.
        let ignored = u64::from_str_radix(lines[2].trim_start_matches("SigIgn:").trim(), 16);
        assert_eq!(ignored.unwrap() & !(3 << 31), 0, "{text}");
        assert_eq!(lines[3], lines[4]);
        assert_eq!(lines[5], "1024");
    }
}
