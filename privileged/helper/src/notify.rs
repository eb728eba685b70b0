//! How it says that it is ready: `sd_notify(3)` to systemd, a line to the command line.

use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::ExitCode;

/// Tells whoever waits.
pub(crate) fn ready(is_direct: bool) -> std::io::Result<()> {
    if is_direct {
        say("ready");
        return Ok(());
    }
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}

/// A line to standard output.
pub(crate) fn say(line: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let said = writeln!(out, "{line}").and_then(|()| out.flush());
    said.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}
