//! The one error of the command line: what people read and what scripts get as an exit code.
//!
//! Every failure ends as a [`CliError`]: a message that names the operation and the object, the
//! causes below it, and hints about what to run next. `main` alone prints it.

use std::error::Error;
use std::fmt;
use std::io;

use banger_agent_api::{ErrorCode as GuestCode, printable_excerpt};
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_types::OperationId;

use crate::debian::DebianError;
use crate::interrupt::Interrupt;

/// Exit code of a failure of banger in verbs that run no command of the user.
pub const FAILED: u8 = 1;
/// Exit code of a command line that cannot be understood (clap's own).
pub const USAGE: u8 = 2;
/// Exit code of a failure of banger before or around the user's command (`vm run`, `vm exec`).
pub const COMMAND_NOT_REACHED: u8 = 125;
/// Exit code of a command whose time is up, as timeout(1) has it.
pub const TIMED_OUT: u8 = 124;
/// Exit code when the reader of our output is gone: 128 + SIGPIPE, as `cat` ends.
pub const OUTPUT_CLOSED: u8 = 141;

/// Longest text of a cause that is shown.
const CAUSE_LIMIT: usize = 2000;

/// What kind of end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Something failed.
    Failure,
    /// The command line asks for something that makes no sense.
    Usage,
    /// A signal asked us to end.
    Interrupted(Interrupt),
    /// The time that a command was given is up.
    TimedOut,
    /// Nobody reads our output any more; not worth a word.
    OutputClosed,
}

/// A failure as it is shown.
#[derive(Debug)]
pub struct CliError {
    /// What kind.
    pub kind: ErrorKind,
    /// What failed, on what: a sentence without a final period.
    pub message: String,
    /// Why, outermost first.
    pub causes: Vec<String>,
    /// What to do next.
    pub hints: Vec<String>,
    /// The daemon's code, where it was the daemon that refused.
    pub code: Option<ErrorCode>,
    /// The guest agent's code, where it was the agent that refused.
    pub guest_code: Option<GuestCode>,
    /// The request in the daemon's log.
    pub operation: Option<OperationId>,
}

impl CliError {
    fn of_kind(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            causes: Vec::new(),
            hints: Vec::new(),
            code: None,
            guest_code: None,
            operation: None,
        }
    }

    /// Makes a failure.
    pub fn new(message: impl Into<String>) -> Self {
        Self::of_kind(ErrorKind::Failure, message)
    }

    /// Makes a usage error.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::of_kind(ErrorKind::Usage, message)
    }

    /// Makes the end that a signal asked for; `message` says what became of the work.
    pub fn interrupted(interrupt: Interrupt, message: impl Into<String>) -> Self {
        Self::of_kind(ErrorKind::Interrupted(interrupt), message)
    }

    /// Makes the end of a command whose time is up.
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self::of_kind(ErrorKind::TimedOut, message)
    }

    /// Makes the quiet end of a program whose reader is gone.
    pub fn output_closed() -> Self {
        Self::of_kind(ErrorKind::OutputClosed, "output closed")
    }

    /// Adds an error and its chain of sources as causes.
    pub fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Puts a new outermost message in front: what we were doing when this failed.
    pub fn context(mut self, message: impl Into<String>) -> Self {
        if matches!(self.kind, ErrorKind::Failure) {
            self.causes.insert(0, std::mem::replace(&mut self.message, message.into()));
        }
        self
    }

    /// Makes the error of a failed write to standard output or error.
    pub fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::output_closed();
        }
        Self::new("cannot write the output").because(error)
    }

    /// Returns whether the daemon refused with `code`.
    pub fn is_code(&self, code: ErrorCode) -> bool {
        self.code == Some(code)
    }

    /// Returns whether the guest's agent refused with `code`.
    pub fn is_guest_code(&self, code: GuestCode) -> bool {
        self.guest_code == Some(code)
    }

    /// Returns the exit code, `failure` being what the verb uses for banger's own failures.
    pub fn exit_code(&self, failure: u8) -> u8 {
        match self.kind {
            ErrorKind::Failure => failure,
            ErrorKind::Usage => USAGE,
            ErrorKind::Interrupted(interrupt) => interrupt.exit_code(),
            ErrorKind::TimedOut => TIMED_OUT,
            ErrorKind::OutputClosed => OUTPUT_CLOSED,
        }
    }
}

impl From<ApiError> for CliError {
    fn from(error: ApiError) -> Self {
        // The daemon's text may quote a guest or an archive.
        let printable = |text: &str| printable_excerpt(text, CAUSE_LIMIT);
        Self {
            kind: ErrorKind::Failure,
            message: printable(&error.message),
            causes: error.causes.iter().map(|cause| printable(cause)).collect(),
            hints: error.hint.iter().map(|hint| printable(hint)).collect(),
            code: Some(error.code),
            guest_code: None,
            operation: error.op_id.filter(|_| !error.code.is_the_callers()),
        }
    }
}

impl From<DebianError> for CliError {
    fn from(error: DebianError) -> Self {
        let mut made = Self::new(error.to_string());
        if let Some(source) = error.source() {
            made = made.because(source);
        }
        made.hints.extend(error.hint());
        made
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for CliError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_bangers_failures_from_the_commands() {
        let failure = CliError::new("x");
        assert_eq!(failure.exit_code(FAILED), 1);
        assert_eq!(failure.exit_code(COMMAND_NOT_REACHED), 125);
        assert_eq!(CliError::usage("x").exit_code(COMMAND_NOT_REACHED), 2);
        assert_eq!(CliError::output_closed().exit_code(FAILED), 141);
        assert_eq!(CliError::interrupted(Interrupt::ControlC, "x").exit_code(FAILED), 130);
        assert_eq!(CliError::interrupted(Interrupt::Terminate, "x").exit_code(FAILED), 143);
    }

    #[test]
    fn text_of_the_daemon_cannot_steer_the_terminal() {
        let mut api = ApiError::new(ErrorCode::Internal, "a\x1b[2J").hint("b\r");
        api.causes.push("c\x07".to_owned());
        let error = CliError::from(api);
        for text in [&error.message, &error.causes[0], &error.hints[0]] {
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }

    #[test]
    fn context_keeps_the_old_message_as_first_cause() {
        let error = CliError::new("inner").because(&io::Error::other("deep")).context("outer");
        assert_eq!(error.message, "outer");
        assert_eq!(error.causes, ["inner", "deep"]);
    }

    #[test]
    fn a_closed_pipe_is_no_failure_to_talk_about() {
        let error = CliError::output(&io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(error.kind, ErrorKind::OutputClosed);
    }
}
