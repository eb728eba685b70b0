//! The main process: the program that a VM exists for, and with which it ends.

use serde::{Deserialize, Serialize};

/// What the user wants otherwise than the image says. Without anything, the image's own entrypoint,
/// command, environment, directory and user are what counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MainOptions {
    /// Takes the place of the image's entrypoint, and its command is not used. An empty list, with
    /// no command, is no main process: a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Takes the place of the image's command, if the image has a main process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Environment on top of the image's, `NAME=VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// Takes the place of the image's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Takes the place of the image's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// No main process, whatever the image says.
    #[serde(default)]
    pub machine: bool,
    /// Refuse an image that has no main process to which all this could apply.
    #[serde(default)]
    pub required: bool,
    /// At its first start wait for a client to attach, half a minute at most.
    #[serde(default)]
    pub held: bool,
}

/// The program that a VM exists for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MainProcess {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Working directory in the guest.
    pub workdir: String,
    /// Who runs it in the guest: `NAME` or `UID`, with an optional `:GROUP` or `:GID`; root where
    /// absent.
    #[serde(default)]
    pub user: Option<String>,
    /// The number of the signal that asks it to end.
    pub stop_signal: u8,
}

/// How a main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MainExit {
    /// As a shell reports it: its exit code, or 128 and the signal's number.
    pub code: u8,
    /// The signal that ended it, if one did.
    #[serde(default)]
    pub signal: Option<u8>,
}

impl std::fmt::Display for MainExit {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.signal {
            None => write!(out, "exited with {}", self.code),
            Some(signal) => write!(out, "ended by signal {signal}"),
        }
    }
}
