//! The guest agent's program: what it does depends on who starts it.
//!
//! The kernel starts it as `/init` (PID 1 of the initrd); it starts itself again through
//! `/proc/self/exe` in the roles of [`banger_agent::Role`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    banger_agent::run()
}
