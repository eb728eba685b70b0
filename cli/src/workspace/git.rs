//! Asks git for names, and lets it do nothing else.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use banger_agent_api::printable_excerpt;

use super::WorkspaceError;

/// Settings that would run a program (git-config(1)); those of the repository are overridden.
const SETTINGS: [&str; 9] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.pager=cat",
    "core.sshCommand=false",
    "core.editor=false",
    "diff.external=",
    "credential.helper=",
    // Whose repository it is matters for what git would run on its behalf, and that is nothing.
    "safe.directory=*",
];

const SUBMODULE_MODE: &[u8] = b"160000";
const MESSAGE_LIMIT: usize = 500;

fn run(
    command: &'static str,
    directory: &Path,
    arguments: &[&str],
) -> Result<std::process::Output, WorkspaceError> {
    let mut git = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.as_bytes().starts_with(b"GIT_") {
            git.env_remove(name);
        }
    }
    git.arg("-C").arg(directory).args(["--no-pager", "--no-optional-locks", "--literal-pathspecs"]);
    for setting in SETTINGS {
        git.args(["-c", setting]);
    }
    git.arg(command)
        .args(arguments)
        // No fetch of missing objects: no protocol is allowed, whatever the repository says.
        .env("GIT_ALLOW_PROTOCOL", "")
        .env("GIT_NO_LAZY_FETCH", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(WorkspaceError::NoGit)
}

fn checked(
    command: &'static str,
    directory: &Path,
    arguments: &[&str],
) -> Result<Vec<u8>, WorkspaceError> {
    let output = run(command, directory, arguments)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = message.trim().lines().next().unwrap_or("no message");
    Err(WorkspaceError::Git {
        command,
        path: directory.to_owned(),
        message: printable_excerpt(message, MESSAGE_LIMIT),
    })
}

/// Returns what git takes for the top of the working tree.
pub(super) fn top_level(top: &Path) -> Result<PathBuf, WorkspaceError> {
    let mut answer = checked("rev-parse", top, &["--show-toplevel"])?;
    if answer.last() == Some(&b'\n') {
        answer.pop();
    }
    Ok(PathBuf::from(OsStr::from_bytes(&answer)))
}

/// Returns the commit that is checked out; `None` before the first one.
pub(super) fn head(top: &Path) -> Result<Option<String>, WorkspaceError> {
    let output = run("rev-parse", top, &["--verify", "--quiet", "HEAD^0"])?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let is_hash = text.len() >= 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok((output.status.success() && is_hash).then_some(text))
}

/// Returns the tracked names, sorted, each once; a submodule among them is refused.
pub(super) fn tracked(top: &Path) -> Result<Vec<PathBuf>, WorkspaceError> {
    let listing = checked("ls-files", top, &["-z", "--stage", "--full-name"])?;
    let mut names = BTreeSet::new();
    for record in listing.split(|&byte| byte == 0).filter(|record| !record.is_empty()) {
        // `<mode> <object> <stage>\t<name>` (git-ls-files(1))
        let Some(tab) = record.iter().position(|&byte| byte == b'\t') else {
            return Err(unexpected(top));
        };
        let name = path(&record[tab + 1..]);
        if record.starts_with(SUBMODULE_MODE) {
            return Err(WorkspaceError::Submodules { path: top.to_owned(), example: name });
        }
        names.insert(name);
    }
    Ok(names.into_iter().collect())
}

/// Returns the names that are neither tracked nor ignored; a directory of another repository ends
/// with a slash.
pub(super) fn untracked(top: &Path) -> Result<Vec<PathBuf>, WorkspaceError> {
    let arguments = ["-z", "--others", "--exclude-standard", "--full-name"];
    let listing = checked("ls-files", top, &arguments)?;
    Ok(listing.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(path).collect())
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn unexpected(top: &Path) -> WorkspaceError {
    WorkspaceError::File {
        path: top.join(".git/index"),
        source: io::Error::other("git's listing has an unexpected form"),
    }
}
