//! Grants of the methods on processes and their sockets.

use banger_helper_api::{
    EnsureSocketAccessParams, ErrorCode, FindFirecrackerPidParams, KillProcessParams,
    ProcessRunningParams, SignalProcessParams,
};

use crate::{ManagedPath, Pid, Policy, Refusal, Result, Signal, Socket};

/// A question whether a VM runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process.
    pub pid: Pid,
    /// The API socket that it must have.
    pub api_socket: Socket,
}

/// The longest label.
const LONGEST_LABEL: usize = 64;

/// The gate of `priv.ensure_socket_access`.
///
/// # Errors
/// The rule of [`ManagedPath`], with the code `invalid_path`; a label that could disturb a log.
pub fn ensure_socket_access(params: &EnsureSocketAccessParams, policy: &Policy) -> Result<Socket> {
    let is_broken =
        params.label.len() > LONGEST_LABEL || params.label.chars().any(char::is_control);
    Refusal::when(is_broken, "label", "at most 64 bytes without control characters")?;
    ManagedPath::parse("socket_path", &params.socket_path, policy)
        .map_err(|refusal| refusal.with_code(ErrorCode::InvalidPath))
}

/// The gate of `priv.find_firecracker_pid`.
///
/// # Errors
/// The rule of [`ManagedPath`].
pub fn find_firecracker_pid(params: &FindFirecrackerPidParams, policy: &Policy) -> Result<Socket> {
    ManagedPath::parse("api_sock", &params.api_sock, policy)
}

/// The gate of `priv.kill_process`.
///
/// # Errors
/// The rule of [`Pid`].
pub fn kill_process(params: KillProcessParams, policy: &Policy) -> Result<Pid> {
    Pid::parse("pid", params.pid, policy)
}

/// The gate of `priv.signal_process`.
///
/// # Errors
/// The rules of [`Pid`] and [`Signal`].
pub fn signal_process(params: &SignalProcessParams, policy: &Policy) -> Result<(Pid, Signal)> {
    Ok((Pid::parse("pid", params.pid, policy)?, Signal::parse("signal", &params.signal)?))
}

/// The gate of `priv.process_running`.
///
/// # Errors
/// The rules of the types.
pub fn process_running(params: &ProcessRunningParams, policy: &Policy) -> Result<Running> {
    Ok(Running {
        pid: Pid::parse("pid", params.pid, policy)?,
        api_socket: ManagedPath::parse("api_sock", &params.api_sock, policy)?,
    })
}
