//! Who answers on the guest's serial console.

use serde::{Deserialize, Serialize};

use crate::message::PtyCall;

/// Sees to it that somebody answers on the serial console: where no program has it, a login shell of
/// root's is started there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleCall {
    /// The client's terminal: its size becomes the console's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<PtyCall>,
}

/// Who answers there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleReply {
    /// The shell was started now; else a program has the console already.
    pub started: bool,
}
