//! Processes and signals.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use banger_helper_api::ErrorCode;

use crate::{Name, Policy, Refusal, Result};

/// The kernel's PID_MAX_LIMIT.
const LARGEST_PID: i64 = 4 << 20;

/// A process id that could be a VM's: neither 0 nor 1 nor the helper's own. Whose it is, the host
/// finds out on a pidfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pid(i32);

impl Pid {
    /// Checks a number.
    ///
    /// # Errors
    /// A number that cannot be a VM's, with the code `invalid_pid`.
    pub fn parse(parameter: Name, number: i64, policy: &Policy) -> Result<Self> {
        let is_possible = (2..=LARGEST_PID).contains(&number);
        let pid = i32::try_from(number).ok().filter(|_| is_possible);
        let refuse = |rule: &str| Refusal::new(parameter, rule).with_code(ErrorCode::InvalidPid);
        match pid {
            Some(_) if number == i64::from(policy.own_pid) => Err(refuse("the helper itself")),
            Some(pid) => Ok(Self(pid)),
            None => Err(refuse("no process of a VM has this id")),
        }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> i32 {
        self.0
    }
}

/// A signal that may be sent to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names and numbers are signal(7)'s")]
pub enum Signal {
    Term = 15,
    Kill = 9,
    Int = 2,
    Hup = 1,
    Quit = 3,
    Usr1 = 10,
    Usr2 = 12,
    Abrt = 6,
}

impl Signal {
    /// Every signal that may be sent, with its name.
    pub const ALL: [(&'static str, Self); 8] = [
        ("TERM", Self::Term),
        ("KILL", Self::Kill),
        ("INT", Self::Int),
        ("HUP", Self::Hup),
        ("QUIT", Self::Quit),
        ("USR1", Self::Usr1),
        ("USR2", Self::Usr2),
        ("ABRT", Self::Abrt),
    ];

    /// Reads a name in upper or lower case, with or without `SIG`; blank is TERM.
    ///
    /// # Errors
    /// A number or any other name, with the code `invalid_signal`.
    pub fn parse(parameter: Name, text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::Term);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, signal)| *signal).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            Refusal::new(parameter, format!("not one of {}", names.join(" ")))
                .with_code(ErrorCode::InvalidSignal)
        })
    }
}

/// The API sockets that the words of a command line name: `--api-sock PATH`, `--api-sock=PATH` and
/// `-a PATH`. Words after `--` are the jailer's for Firecracker and count.
#[must_use]
pub fn api_sockets(command_line: &[u8]) -> Vec<PathBuf> {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let value = match *word {
            b"--api-sock" | b"-a" => words.get(at + 1).copied(),
            word => word.strip_prefix(b"--api-sock="),
        };
        found.extend(value.map(|value| PathBuf::from(OsStr::from_bytes(value))));
    }
    found
}
