//! `bangerd-root`: the only part of banger that acts as root. It does twenty operations for one
//! owner, each behind a gate, and nothing else; docs/privileges.md says what each of them may do.
//!
//! A thread per connection, blocking calls, no environment that changes what is allowed.
#![forbid(unsafe_code)]

mod arguments;
mod audit;
mod connection;
mod dispatch;
mod install;
mod listener;
mod notify;
mod refresh;
mod settings;

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;

use banger_host::Host;
use rustix::fs::Mode;
use rustix::process::PidfdFlags;

use arguments::Arguments;
use settings::Settings;

fn serve(arguments: Arguments) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if !rustix::process::geteuid().is_root() {
        return Err("bangerd-root acts as root and was started as another user".into());
    }
    // Whatever is made is its maker's alone, unless it is opened on purpose.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let is_direct = matches!(arguments, Arguments::Direct(_));
    let settings = Settings::read(arguments)?;
    let host = Arc::new(Host::open(settings.policy, &settings.own)?);
    let listener = listener::open(&settings.socket, host.policy().owner)?;
    refresh::start(Arc::clone(&host))?;
    // Before it is said to be ready: the parent lives, so that the pid is its own.
    let parent = is_direct.then(watch_parent).transpose()?;
    notify::ready(is_direct)?;
    listener::accept(&listener, &host, parent.as_ref())?;
    // Serving ends only where a parent does: this was one daemon's helper.
    let ended = host.end_bridges();
    settings::leave(&settings.own, &settings.socket);
    Ok(ended?)
}

/// In direct mode the parent is the process that becomes bangerd, and nobody is served without it.
fn watch_parent() -> rustix::io::Result<OwnedFd> {
    let parent = rustix::process::getppid().filter(|parent| !parent.is_init());
    let parent = parent.ok_or(rustix::io::Errno::SRCH)?;
    rustix::process::pidfd_open(parent, PidfdFlags::empty())
}

fn main() -> ExitCode {
    banger_privileged_sys::keep_little_memory();
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(usage) => {
            audit::say("error", usage);
            return ExitCode::from(2);
        }
    };
    if matches!(arguments, Arguments::Version) {
        return notify::say(concat!("bangerd-root ", env!("CARGO_PKG_VERSION")));
    }
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            audit::say("error", banger_host::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
