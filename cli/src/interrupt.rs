//! Signals that ask the command line to end, as values to wait for.
//!
//! A signal that was ignored when we started (`nohup`) stays ignored.

use std::fs;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::CliError;

/// A signal that asks us to end, or to pass it on to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// SIGINT, Ctrl-C.
    ControlC,
    /// SIGQUIT, Ctrl-\.
    Quit,
    /// SIGTERM.
    Terminate,
    /// SIGHUP, the terminal went away.
    HangUp,
}

impl Interrupt {
    /// Returns the signal's number (signal(7), x86-64).
    pub const fn number(self) -> u8 {
        match self {
            Self::HangUp => 1,
            Self::ControlC => 2,
            Self::Quit => 3,
            Self::Terminate => 15,
        }
    }

    /// Returns what a shell reports for a program that this signal ended.
    pub const fn exit_code(self) -> u8 {
        128 + self.number()
    }
}

/// Receives the signals from its creation on.
#[derive(Debug)]
pub struct Interrupts {
    interrupt: Option<Signal>,
    quit: Option<Signal>,
    terminate: Option<Signal>,
    hang_up: Option<Signal>,
}

impl Interrupts {
    /// Takes over SIGINT, SIGQUIT, SIGTERM and SIGHUP for the rest of the process's life.
    pub fn install() -> Result<Self, CliError> {
        let ignored = ignored_signals();
        let install = |which: Interrupt, kind: SignalKind| {
            if ignored >> (which.number() - 1) & 1 == 1 {
                return Ok(None);
            }
            signal(kind).map(Some).map_err(|error| {
                CliError::new("cannot be told of Ctrl-C and other signals").because(&error)
            })
        };
        Ok(Self {
            interrupt: install(Interrupt::ControlC, SignalKind::interrupt())?,
            quit: install(Interrupt::Quit, SignalKind::quit())?,
            terminate: install(Interrupt::Terminate, SignalKind::terminate())?,
            hang_up: install(Interrupt::HangUp, SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    ///
    /// Cancel safe: a signal that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Interrupt {
        tokio::select! {
            () = receive(&mut self.interrupt) => Interrupt::ControlC,
            () = receive(&mut self.quit) => Interrupt::Quit,
            () = receive(&mut self.terminate) => Interrupt::Terminate,
            () = receive(&mut self.hang_up) => Interrupt::HangUp,
        }
    }
}

async fn receive(signal: &mut Option<Signal>) {
    if let Some(signal) = signal
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// Returns the mask of ignored signals, bit 0 being signal 1 (proc(5), `SigIgn`).
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_ignored(&status)
}

fn parse_ignored(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read_from_proc() {
        assert_eq!(parse_ignored("Name:\tx\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(parse_ignored("SigIgn:\tnonsense\n"), 0);
        assert_eq!(parse_ignored(""), 0);
    }
}
