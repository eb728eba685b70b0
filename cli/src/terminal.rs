//! The user's terminal: its size, and raw mode that always ends.

use std::io::{self, IsTerminal};

use banger_agent_api::WindowSize;
use rustix::termios::{OptionalActions, Termios};

use crate::error::CliError;

/// Size to assume where the terminal does not tell.
const FALLBACK: WindowSize = WindowSize { columns: 80, rows: 24 };

/// Returns whether both standard input and output are terminals.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Returns the size of the terminal at standard output.
pub fn size() -> WindowSize {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            WindowSize { columns: size.ws_col, rows: size.ws_row }
        }
        _ => FALLBACK,
    }
}

/// Raw mode of the terminal at standard input; its earlier mode comes back when this is dropped,
/// also by a panic. Signals end the program through `main`, so they pass here too.
#[derive(Debug)]
pub struct RawMode {
    earlier: Termios,
}

impl RawMode {
    /// Enters raw mode: every key goes to the guest, Ctrl-C and Ctrl-\ included.
    pub fn enter() -> Result<Self, CliError> {
        let failed = |error: rustix::io::Errno| {
            CliError::new("cannot switch the terminal to raw mode").because(&error)
        };
        let earlier = rustix::termios::tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = earlier.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(io::stdin(), OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Self { earlier })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.earlier);
    }
}
