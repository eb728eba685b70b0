//! Parameters of the methods on processes and their sockets.

use serde::{Deserialize, Serialize};

parameters! {
    /// Parameters of `priv.ensure_socket_access`.
    pub struct EnsureSocketAccessParams {
        /// A socket below the runtime directory.
        pub socket_path: String,
        /// What it is, for messages.
        #[serde(default)]
        pub label: String,
    }

    /// Parameters of `priv.find_firecracker_pid`.
    pub struct FindFirecrackerPidParams {
        /// The API socket below the runtime directory.
        pub api_sock: String,
    }

    /// Parameters of `priv.kill_process`.
    #[derive(Copy)]
    pub struct KillProcessParams {
        /// A Firecracker of this owner.
        pub pid: i64,
    }

    /// Parameters of `priv.signal_process`.
    pub struct SignalProcessParams {
        /// A Firecracker of this owner.
        pub pid: i64,
        /// A signal's name; blank for TERM.
        #[serde(default)]
        pub signal: String,
    }

    /// Parameters of `priv.process_running`.
    pub struct ProcessRunningParams {
        /// A process id.
        pub pid: i64,
        /// The API socket that it must have, below the runtime directory.
        pub api_sock: String,
    }
}

/// Result of `priv.process_running`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRunningResult {
    /// Whether that Firecracker runs; a zombie does not.
    pub running: bool,
}
