//! Everything the command line writes.
//!
//! Results go to standard output; status, warnings, hints and errors to standard error. Colours
//! are used only on a terminal and without `NO_COLOR` (<https://no-color.org>). What goes to standard
//! error may quote the name of a file, a repository's content or a guest, so nothing of it but our own
//! colours can steer a terminal.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use banger_agent_api::printable_excerpt;
use serde::Serialize;

use crate::environment;
use crate::error::{CliError, ErrorKind};

/// Most characters of one text on standard error.
const TEXT_LIMIT: usize = 4000;

/// The few ways in which text stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Failures.
    Bad,
    /// Limits worth knowing.
    Caution,
    /// What is as it should be.
    Good,
    /// What to do next.
    Hint,
    /// Details.
    Dim,
}

impl Style {
    /// Returns the SGR sequence (ECMA-48 section 8.3.117) that begins this style.
    const fn begin(self) -> &'static str {
        match self {
            Self::Bad => "\x1b[1;31m",
            Self::Caution => "\x1b[1;33m",
            Self::Good => "\x1b[32m",
            Self::Hint => "\x1b[36m",
            Self::Dim => "\x1b[2m",
        }
    }
}

/// The streams and what may be done on them.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    quiet: bool,
    verbose: bool,
    stdout_color: bool,
    stderr_color: bool,
    stderr_terminal: bool,
}

impl Ui {
    /// Looks at the streams and the environment.
    pub fn new(quiet: bool, verbose: bool) -> Self {
        let color = environment::color_allowed();
        let stderr_terminal = io::stderr().is_terminal();
        Self {
            quiet,
            verbose,
            stdout_color: color && io::stdout().is_terminal(),
            stderr_color: color && stderr_terminal,
            stderr_terminal,
        }
    }

    /// Returns whether only results and errors are wanted.
    pub const fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Returns whether standard error is a terminal, where progress may be redrawn.
    pub const fn stderr_is_terminal(&self) -> bool {
        self.stderr_terminal
    }

    /// Writes one line of the result.
    pub fn line(&self, text: impl fmt::Display) -> Result<(), CliError> {
        writeln!(io::stdout().lock(), "{text}").map_err(|error| CliError::output(&error))
    }

    /// Writes bytes of the result as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .map_err(|error| CliError::output(&error))
    }

    /// Writes the result as indented JSON.
    pub fn json(&self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| CliError::new("cannot write the result as JSON").because(&error))?;
        self.line(text)
    }

    /// Returns `text` in `style` for standard output.
    pub fn styled(&self, style: Style, text: &str) -> String {
        paint(self.stdout_color, style, text)
    }

    /// Says what is going on, unless quiet.
    pub fn status(&self, text: impl fmt::Display) {
        if !self.quiet {
            self.tell(&harmless(text));
        }
    }

    /// Says a detail, with `--verbose` only.
    pub fn detail(&self, text: impl fmt::Display) {
        if self.verbose && !self.quiet {
            self.tell(&paint(self.stderr_color, Style::Dim, &harmless(text)));
        }
    }

    /// Warns.
    pub fn warning(&self, text: impl fmt::Display) {
        let heading = paint(self.stderr_color, Style::Caution, "banger: warning:");
        self.tell(&format!("{heading} {}", harmless(text)));
    }

    /// Says what could be done next, unless quiet.
    pub fn hint(&self, text: impl fmt::Display) {
        if !self.quiet {
            let heading = paint(self.stderr_color, Style::Hint, "hint:");
            self.tell(&format!("{heading} {}", harmless(text)));
        }
    }

    /// Asks something; the answer goes on the same line.
    pub fn prompt(&self, text: impl fmt::Display) {
        let mut stderr = io::stderr().lock();
        let _ = write!(stderr, "{}", harmless(text)).and_then(|()| stderr.flush());
    }

    /// Shows a failure: heading, causes, hints.
    pub fn error(&self, error: &CliError) {
        self.tell(&render_error(error, self.stderr_color));
    }

    fn tell(&self, text: &str) {
        if !text.is_empty() {
            // Nobody is left to tell where standard error is gone.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }
}

/// Returns the text without what could steer a terminal or pass for another line.
fn harmless(text: impl fmt::Display) -> String {
    printable_excerpt(&text.to_string(), TEXT_LIMIT)
}

fn paint(color: bool, style: Style, text: &str) -> String {
    if color { format!("{}{text}\x1b[0m", style.begin()) } else { text.to_owned() }
}

fn render_error(error: &CliError, color: bool) -> String {
    let mut lines = Vec::new();
    let message = harmless(&error.message);
    match error.kind {
        ErrorKind::OutputClosed => return String::new(),
        ErrorKind::Interrupted(_) | ErrorKind::TimedOut => lines.push(format!("banger: {message}")),
        ErrorKind::Failure | ErrorKind::Usage => {
            let heading = paint(color, Style::Bad, "banger: error:");
            lines.push(format!("{heading} {message}"));
        }
    }
    for cause in &error.causes {
        lines.push(format!("  caused by: {}", harmless(cause)));
    }
    for hint in &error.hints {
        lines.push(format!("{} {}", paint(color, Style::Hint, "hint:"), harmless(hint)));
    }
    if let Some(operation) = &error.operation {
        lines.push(paint(color, Style::Dim, &format!("({operation} in the daemon's log)")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::Interrupt;
    use banger_daemon_api::error::{ApiError, ErrorCode};

    #[test]
    fn errors_show_heading_causes_hints_and_the_log_id() {
        let mut api =
            ApiError::new(ErrorCode::Timeout, "VM \"box\" does not end").hint("banger vm kill box");
        api.causes.push("a deadline".to_owned());
        api.op_id = Some("op-0123456789abcdef".parse().unwrap());
        insta::assert_snapshot!(render_error(&api.clone().into(), false), @r#"
        banger: error: VM "box" does not end
          caused by: a deadline
        hint: banger vm kill box
        (op-0123456789abcdef in the daemon's log)
        "#);
        // The log says no more of a user's mistake.
        api.code = ErrorCode::NotFound;
        assert!(!render_error(&api.into(), false).contains("log"));
    }

    #[test]
    fn a_name_in_a_failure_cannot_steer_the_terminal_or_fake_a_line() {
        let error = CliError::new("x\x1b]0;t\x07\nhint: y")
            .because(&io::Error::other("\x1b[2J\u{9b}2J"))
            .hint("git -C a\rb");
        let text = render_error(&error, false);
        assert_eq!(text.lines().count(), 3, "{text:?}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        let painted = render_error(&error, true);
        assert_eq!(painted.matches('\x1b').count(), 4, "only our own colours: {painted:?}");
    }

    #[test]
    fn an_interruption_is_one_plain_line() {
        let error = CliError::interrupted(Interrupt::ControlC, "interrupted, VM box is deleted");
        assert_eq!(render_error(&error, true), "banger: interrupted, VM box is deleted");
    }

    #[test]
    fn a_closed_output_is_not_mentioned() {
        assert_eq!(render_error(&CliError::output_closed(), false), "");
    }

    #[test]
    fn colour_is_only_used_when_asked_for() {
        let error = CliError::new("x").hint("y");
        assert!(!render_error(&error, false).contains('\x1b'));
        assert!(render_error(&error, true).contains('\x1b'));
    }
}
