//! What the daemon does to its own process before anything else.

use rustix::process::{Resource, Rlimit};

use crate::start_error::StartError;

/// Who this process is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Its process id.
    pub pid: u32,
    /// Its user id, never 0.
    pub uid: u32,
}

/// Refuses root and sockets of others, and narrows what this process and its children can do.
pub fn harden() -> Result<Identity, StartError> {
    let (real, effective) = (rustix::process::getuid(), rustix::process::geteuid());
    if real.is_root() || effective.is_root() {
        return Err(StartError::Root);
    }
    // sd_listen_fds(3): it makes its socket itself, where nobody else can have made it.
    let listen_pid = std::env::var("LISTEN_PID").ok().and_then(|pid| pid.parse().ok());
    if listen_pid == Some(std::process::id()) {
        return Err(StartError::PassedSocket);
    }
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    rustix::thread::set_no_new_privs(true).map_err(|errno| StartError::Io {
        act: "setting no_new_privs".to_owned(),
        source: errno.into(),
    })?;
    raise_open_files();
    // The directory it was started in may be unmounted later, or be none of its business.
    std::env::set_current_dir("/")
        .map_err(|source| StartError::Io { act: "changing to directory /".to_owned(), source })?;
    Ok(Identity { pid: std::process::id(), uid: effective.as_raw() })
}

/// Raises the soft limit of open files to the hard one: a VM takes about ten, a client one.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // Not being able to is seen in `doctor`, and harmless until there are many VMs.
    let _ = rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: limit.maximum, maximum: limit.maximum },
    );
}
