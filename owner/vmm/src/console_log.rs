//! The files of a VM's serial console, which cannot grow past a cap.
//!
//! The log is two files: `console_log` is written to until it holds half of [`LOG_CAP`] and then
//! becomes `console_log` + `.1` in the place of the one before. Read in the order `.1`, then the log
//! itself, they give the newest output. The bytes are the guest's own: whoever prints them must make
//! them harmless.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The most bytes a VM's console log takes, both files together.
pub const LOG_CAP: u64 = 4 << 20;

/// Returns where the older half of the log is.
#[must_use]
pub fn older_half(console_log: &Path) -> PathBuf {
    let mut name = OsString::from(console_log);
    name.push(".1");
    PathBuf::from(name)
}
