//! Commands that go on without a client.

use serde::{Deserialize, Serialize};

/// A detached command was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachReply {
    /// By which it is asked for; the first of a machine's boot is 1.
    pub id: u32,
    /// Its process id in the guest.
    pub pid: u32,
}

/// The detached commands that the agent knows: those that run, and those that ended last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachedReply {
    /// In the order in which they were started.
    pub commands: Vec<DetachedCommand>,
}

/// One detached command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachedCommand {
    /// By which it is asked for.
    pub id: u32,
    /// Its process id.
    pub pid: u32,
    /// The beginning of its words, printable.
    pub command: String,
    /// Milliseconds since its start.
    pub age_millis: u64,
    /// The exit code of one that has ended, 128 plus the number of the signal that ended it.
    #[serde(default)]
    pub exit_code: Option<u8>,
    /// Bytes of output so far.
    pub output_bytes: u64,
    /// How many of these are kept: the last.
    pub kept_bytes: u64,
}

/// Asks for the output of a detached command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachedOutputCall {
    /// Which.
    pub id: u32,
    /// Go on until it has ended.
    #[serde(default)]
    pub follow: bool,
    /// Only what comes from now on.
    #[serde(default)]
    pub skip_kept: bool,
}
