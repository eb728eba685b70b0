//! Messages on the guest's console, which the host keeps as the VM's log.
//!
//! They go through the kernel's log: whole lines, in order with the kernel's own, and never
//! blocking on a terminal that nobody reads.

use std::io::Write;

fn log(level: u8, message: &str) {
    let line = format!("<{level}>banger: {message}\n");
    match std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        Ok(mut log) => {
            let _ = log.write_all(line.as_bytes());
        }
        Err(_) => {
            // The late loader, whose /dev has moved away, has the kernel's log there.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

/// Says that something failed; shown even with `quiet`.
pub(crate) fn error(message: &str) {
    log(3, message);
}

/// Says what happened, for the kernel's log only unless it is verbose.
pub(crate) fn info(message: &str) {
    log(6, message);
}

/// Formats an error with everything that caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
