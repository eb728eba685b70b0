//! Running the machine's own tools.

use std::process::Command;

/// Runs a tool to its end and returns what it wrote; fails the test unless it succeeds.
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    text
}

/// Runs a tool with these arguments when dropped: the undo of what the test made.
pub(crate) struct Undo(Vec<String>);

impl Undo {
    pub(crate) fn with(words: &[&str]) -> Self {
        Self(words.iter().map(|word| (*word).to_owned()).collect())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some((program, arguments)) = self.0.split_first() {
            let _ = Command::new(program).args(arguments).status();
        }
    }
}
