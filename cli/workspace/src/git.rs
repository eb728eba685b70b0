//! Runs git, and lets it do nothing else than what is asked.
//!
//! The user's repository is asked for names and objects only ([`user`]); what needs a repository to
//! work in has one of our own, with a configuration that is ours alone ([`own`]).

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use banger_agent_api::printable_excerpt;

use crate::error::WorkspaceError;

/// Settings that would run a program (git-config(1)); those of the repository are overridden.
const SETTINGS: [&str; 8] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.pager=cat",
    "core.sshCommand=false",
    "core.editor=false",
    "diff.external=",
    "credential.helper=",
];

pub(crate) const MESSAGE_LIMIT: usize = 500;

fn bare() -> Command {
    let mut git = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.as_bytes().starts_with(b"GIT_") {
            git.env_remove(name);
        }
    }
    git.env("GIT_NO_LAZY_FETCH", "1")
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    git
}

/// Git in the user's repository; names are no patterns.
pub(crate) fn user(directory: &Path) -> Command {
    let mut git = user_with_patterns(directory);
    git.arg("--literal-pathspecs");
    git
}

fn user_with_patterns(directory: &Path) -> Command {
    let mut git = bare();
    git.arg("-C").arg(directory).args(["--no-pager", "--no-optional-locks"]);
    for setting in SETTINGS {
        git.args(["-c", setting]);
    }
    // No fetch of missing objects: no protocol is allowed, whatever the repository says.
    git.env("GIT_ALLOW_PROTOCOL", "");
    git
}

/// Git in a repository of ours: nobody's configuration counts.
pub(crate) fn own(repository: &Path) -> Command {
    let mut git = bare();
    git.env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("HOME", "/nonexistent")
        .env_remove("XDG_CONFIG_HOME")
        .env("GIT_ALLOW_PROTOCOL", "file")
        .env("GIT_DIR", repository)
        .arg("--no-pager")
        .args(["-c", "safe.directory=*", "-c", "gc.auto=0", "-c", "maintenance.auto=false"])
        .args(["-c", "core.bigFileThreshold=16m", "-c", "fetch.unpackLimit=1"])
        .args(["-c", "fastimport.unpackLimit=0", "-c", "protocol.version=2"])
        .args(["-c", "core.hooksPath=/dev/null"]);
    git
}

/// Takes the output of a git that succeeded.
pub(crate) fn checked(
    git: &mut Command,
    command: &'static str,
    directory: &Path,
) -> Result<Vec<u8>, WorkspaceError> {
    let output = git.output().map_err(WorkspaceError::NoGit)?;
    success(&output, command, directory)?;
    Ok(output.stdout)
}

fn success(output: &Output, command: &'static str, directory: &Path) -> Result<(), WorkspaceError> {
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    // The user's own safe.directory is in force (git-config(1)).
    if message.contains("detected dubious ownership") {
        return Err(WorkspaceError::OthersGit { path: directory.to_owned() });
    }
    let fatal = message.lines().find(|line| line.starts_with("fatal") || line.starts_with("error"));
    let message = fatal.or_else(|| message.trim().lines().next()).unwrap_or("no message");
    Err(WorkspaceError::Git {
        command,
        path: directory.to_owned(),
        message: printable_excerpt(message, MESSAGE_LIMIT),
    })
}

/// As [`checked`], with standard input, which a thread writes.
pub(crate) fn fed(
    git: &mut Command,
    command: &'static str,
    directory: &Path,
    input: Vec<u8>,
) -> Result<Output, WorkspaceError> {
    git.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = git.spawn().map_err(WorkspaceError::NoGit)?;
    let stdin = child.stdin.take();
    let writer = std::thread::spawn(move || {
        // A git that ends early says why itself.
        stdin.map(|mut stdin| stdin.write_all(&input))
    });
    let output = child.wait_with_output().map_err(WorkspaceError::NoGit)?;
    let _ = writer.join();
    // 1 is an answer of check-ignore(1): nothing was ignored.
    if !(command == "check-ignore" && output.status.code() == Some(1)) {
        success(&output, command, directory)?;
    }
    Ok(output)
}

fn in_user(
    command: &'static str,
    directory: &Path,
    arguments: &[&str],
) -> Result<Vec<u8>, WorkspaceError> {
    checked(user(directory).arg(command).args(arguments), command, directory)
}

fn line(mut answer: Vec<u8>) -> PathBuf {
    if answer.last() == Some(&b'\n') {
        answer.pop();
    }
    path(&answer)
}

/// Returns what git takes for the top of the working tree.
pub(crate) fn top_level(top: &Path) -> Result<PathBuf, WorkspaceError> {
    in_user("rev-parse", top, &["--show-toplevel"]).map(line)
}

/// Returns the repository's own directory, of a linked working tree the one that is its own.
pub(crate) fn git_dir(top: &Path) -> Result<PathBuf, WorkspaceError> {
    in_user("rev-parse", top, &["--absolute-git-dir"]).map(line)
}

/// Returns the directory that linked working trees share.
pub(crate) fn common_dir(top: &Path) -> Result<PathBuf, WorkspaceError> {
    in_user("rev-parse", top, &["--path-format=absolute", "--git-common-dir"]).map(line)
}

/// Returns the name of the repository's hash (`sha1`, `sha256`).
pub(crate) fn object_format(top: &Path) -> Result<String, WorkspaceError> {
    let answer = in_user("rev-parse", top, &["--show-object-format"])?;
    Ok(String::from_utf8_lossy(&answer).trim().to_owned())
}

/// Returns whether a text is the whole name of an object.
pub(crate) fn is_hash(text: &str) -> bool {
    text.len() >= 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the commit that a name stands for, where it does for one.
pub(crate) fn commit(top: &Path, name: &str) -> Result<Option<String>, WorkspaceError> {
    let name = format!("{name}^0");
    let output = user(top)
        .args(["rev-parse", "--verify", "--quiet", "--end-of-options", &name])
        .output()
        .map_err(WorkspaceError::NoGit)?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((output.status.success() && is_hash(&text)).then_some(text))
}

/// Returns the commit that is checked out in a working tree; `None` before the first one.
pub fn current_head(top: &Path) -> Result<Option<String>, WorkspaceError> {
    commit(top, "HEAD")
}

/// Returns the branch that is checked out (`refs/heads/...`), also before its first commit.
pub(crate) fn branch(top: &Path) -> Result<Option<String>, WorkspaceError> {
    let output = user(top)
        .args(["symbolic-ref", "--quiet", "HEAD"])
        .output()
        .map_err(WorkspaceError::NoGit)?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((output.status.success() && text.starts_with("refs/heads/")).then_some(text))
}

/// Returns whether a text can be a branch's name.
pub(crate) fn is_branch_name(top: &Path, name: &str) -> Result<bool, WorkspaceError> {
    let full = format!("refs/heads/{name}");
    let output =
        user(top).args(["check-ref-format", &full]).output().map_err(WorkspaceError::NoGit)?;
    // As git branch does: -x would be an option elsewhere, HEAD is another thing.
    Ok(output.status.success() && !name.starts_with('-') && name != "HEAD")
}

/// Returns a setting of the repository, of its user or of the host, where there is one.
pub(crate) fn setting(
    top: &Path,
    scope: &[&str],
    name: &str,
) -> Result<Option<Vec<u8>>, WorkspaceError> {
    let output = user(top)
        .arg("config")
        .args(scope)
        .args(["-z", "--get", name])
        .output()
        .map_err(WorkspaceError::NoGit)?;
    let mut value = output.stdout;
    value.pop();
    Ok((output.status.success() && !value.is_empty()).then_some(value))
}

/// Returns settings of the user's own whose names match a pattern, in their order.
pub(crate) fn user_settings(pattern: &str) -> Result<Vec<(String, Vec<u8>)>, WorkspaceError> {
    let output = bare()
        .args(["config", "--global", "--includes", "-z", "--get-regexp", pattern])
        .output()
        .map_err(WorkspaceError::NoGit)?;
    // `<name> LF <value> NUL` (git-config(1)); without any, and without such a file, nothing.
    let settings = records(&output.stdout).filter_map(|record| {
        let end = record.iter().position(|&byte| byte == b'\n')?;
        Some((String::from_utf8_lossy(&record[..end]).into_owned(), record[end + 1..].to_vec()))
    });
    Ok(settings.collect())
}

/// One entry of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Indexed {
    pub mode: u32,
    pub object: String,
    pub name: PathBuf,
}

impl Indexed {
    pub fn is_submodule(&self) -> bool {
        self.mode == 0o160_000
    }
}

/// Returns the index's entries, sorted; an unmerged name has several.
pub(crate) fn indexed(top: &Path) -> Result<Vec<Indexed>, WorkspaceError> {
    let listing = in_user("ls-files", top, &["-z", "--stage", "--full-name"])?;
    records(&listing).map(|record| parse_record(record).ok_or_else(|| unexpected(top))).collect()
}

/// Returns the names of a commit's tree.
pub(crate) fn tree(repository: &Path, name: &str) -> Result<Vec<Indexed>, WorkspaceError> {
    let listing = checked(
        own(repository).args(["ls-tree", "-r", "-z", "--full-tree", name]),
        "ls-tree",
        repository,
    )?;
    records(&listing)
        .map(|record| parse_record(record).ok_or_else(|| unexpected(repository)))
        .collect()
}

/// `<mode> <object> <stage>\t<name>` (git-ls-files(1)) or `<mode> <type> <object>\t<name>`
/// (git-ls-tree(1)).
fn parse_record(record: &[u8]) -> Option<Indexed> {
    let tab = record.iter().position(|&byte| byte == b'\t')?;
    let facts = std::str::from_utf8(&record[..tab]).ok()?;
    let mut facts = facts.split(' ');
    let mode = u32::from_str_radix(facts.next()?, 8).ok()?;
    let object = facts.find(|fact| is_hash(fact))?.to_owned();
    Some(Indexed { mode, object, name: path(&record[tab + 1..]) })
}

/// Returns the names that are neither tracked nor ignored; a directory of another repository ends
/// with a slash.
pub(crate) fn untracked(top: &Path) -> Result<Vec<PathBuf>, WorkspaceError> {
    untracked_of(top, &[])
}

/// As [`untracked`], but only these names and what is below them; no name is every name.
pub(crate) fn untracked_of(top: &Path, paths: &[PathBuf]) -> Result<Vec<PathBuf>, WorkspaceError> {
    let mut git = with_excludes(user(top), top)?;
    git.args(["ls-files", "-z", "--others", "--exclude-standard", "--full-name"]);
    git.arg("--").args(paths);
    let listing = checked(&mut git, "ls-files", top)?;
    Ok(records(&listing).map(path).collect())
}

/// Returns those of some names that are ignored; none lies in a submodule, whose rules are its own.
pub(crate) fn ignored_of(top: &Path, paths: &[PathBuf]) -> Result<Vec<PathBuf>, WorkspaceError> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    // It takes names as they stand, and refuses to be told so by --literal-pathspecs.
    let mut git = with_excludes(user_with_patterns(top), top)?;
    git.args(["check-ignore", "-z", "--stdin", "--no-index"]);
    // As they stand, also where they begin with a colon (gitglossary(7), pathspec).
    let asked = paths.iter().flat_map(|path| [b"./", path.as_os_str().as_bytes(), b"\0"].concat());
    let answer = fed(&mut git, "check-ignore", top, asked.collect())?;
    Ok(records(&answer.stdout).map(|name| path(name.strip_prefix(b"./").unwrap_or(name))).collect())
}

fn with_excludes(mut git: Command, top: &Path) -> Result<Command, WorkspaceError> {
    // In the place of the repository's own setting, which may name any file of the user's.
    let mut excludes = OsString::from("core.excludesFile=");
    excludes.push(user_excludes(top)?.unwrap_or_else(|| PathBuf::from("/dev/null")));
    git.arg("-c").arg(excludes);
    Ok(git)
}

/// Returns what is different between two commits of one of our repositories: names, and what they are
/// in the second.
#[expect(clippy::type_complexity, reason = "a name and what it is, used once")]
pub(crate) fn changed(
    repository: &Path,
    (from, to): (&str, &str),
) -> Result<Vec<(Vec<u8>, Option<(u32, String)>)>, WorkspaceError> {
    let mut git = own(repository);
    git.args(["diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-ext-diff", from, to]);
    let listing = checked(&mut git, "diff-tree", repository)?;
    // `:<mode> SP <mode> SP <object> SP <object> SP <status> NUL <name> NUL` (git-diff-tree(1))
    let mut records = records(&listing);
    let mut found = Vec::new();
    while let (Some(facts), Some(name)) = (records.next(), records.next()) {
        let facts = String::from_utf8_lossy(facts).into_owned();
        let facts: Vec<&str> = facts.trim_start_matches(':').split(' ').collect();
        let (Some(mode), Some(object)) = (facts.get(1), facts.get(3)) else {
            return Err(unexpected(repository));
        };
        let mode = u32::from_str_radix(mode, 8).map_err(|_| unexpected(repository))?;
        found.push((name.to_vec(), (mode != 0).then(|| (mode, (*object).to_owned()))));
    }
    Ok(found)
}

/// Returns a commit of one of our repositories and its tree.
pub(crate) fn ids(repository: &Path, name: &str) -> Result<(String, String), WorkspaceError> {
    let tree = format!("{name}^{{tree}}");
    let answer =
        checked(own(repository).args(["rev-parse", name, &tree]), "rev-parse", repository)?;
    let text = String::from_utf8_lossy(&answer);
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [commit, tree] => Ok((commit.to_owned(), tree.to_owned())),
        _ => Err(unexpected(repository)),
    }
}

/// Returns the file with the user's own rules for what is ignored, as the user's or the host's
/// configuration has it.
pub(crate) fn user_excludes(top: &Path) -> Result<Option<PathBuf>, WorkspaceError> {
    for scope in ["--global", "--system"] {
        let scope = [scope, "--includes", "--type=path"];
        if let Some(file) = setting(top, &scope, "core.excludesFile")? {
            // A relative one would be a file of the repository's.
            return Ok(Some(path(&file)).filter(|path| path.is_absolute()));
        }
    }
    let home = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let config = home("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| Some(PathBuf::from(home("HOME")?).join(".config")));
    Ok(config.map(|config| config.join("git/ignore")).filter(|path| path.is_absolute()))
}

/// What serves a fetch from a repository of the user's that was looked at: this one and no other, though
/// it were another user's, and nothing that lies in it. A shell takes it apart.
fn upload_pack(source: &Path) -> OsString {
    let mut command = b"git -c core.hooksPath=/dev/null -c core.fsmonitor=false".to_vec();
    command.extend_from_slice(b" -c safe.directory='");
    for &byte in source.as_os_str().as_bytes() {
        match byte {
            b'\'' => command.extend_from_slice(b"'\\''"),
            byte => command.push(byte),
        }
    }
    command.extend_from_slice(b"' upload-pack --strict");
    OsString::from_vec(command)
}

/// Fetches a commit of the user's repository with some of its history.
pub(crate) fn fetch(
    repository: &Path,
    source: &Path,
    commit: &str,
    depth: u32,
    reference: &str,
) -> Result<(), WorkspaceError> {
    let mut git = own(repository);
    git.args(["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--force"])
        .args(["--no-recurse-submodules", "--update-shallow", "--upload-pack"])
        .arg(upload_pack(source))
        .arg(format!("--depth={depth}"))
        .arg(source)
        .arg(format!("{commit}:{reference}"));
    checked(&mut git, "fetch", source).map(drop)
}

/// Copies objects of the user's repository that ours lacks.
pub(crate) fn copy_objects(
    repository: &Path,
    top: &Path,
    objects: Vec<&str>,
) -> Result<(), WorkspaceError> {
    if objects.is_empty() {
        return Ok(());
    }
    let list = |objects: &[&str]| objects.iter().flat_map(|o| [o, "\n"]).collect::<String>();
    let known = fed(
        own(repository).args(["cat-file", "--batch-check=%(objectname) %(objecttype)", "--buffer"]),
        "cat-file",
        repository,
        list(&objects).into_bytes(),
    )?;
    let known = String::from_utf8_lossy(&known.stdout);
    let missing: Vec<&str> =
        known.lines().filter_map(|line| line.strip_suffix(" missing")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut pack = user(top)
        .args(["pack-objects", "--quiet", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(WorkspaceError::NoGit)?;
    let (stdin, stdout) = (pack.stdin.take(), pack.stdout.take());
    let input = list(&missing);
    let writer =
        std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
    let mut index = own(repository);
    index.args(["index-pack", "--stdin"]);
    if let Some(stdout) = stdout {
        index.stdin(stdout);
    }
    let indexed = checked(&mut index, "index-pack", repository);
    let packed = pack.wait().map_err(WorkspaceError::NoGit)?;
    let _ = writer.join();
    if !packed.success() {
        return Err(WorkspaceError::Git {
            command: "pack-objects",
            path: top.to_owned(),
            message: "objects that the index names are not there".to_owned(),
        });
    }
    indexed.map(drop)
}

pub(crate) fn records(listing: &[u8]) -> impl Iterator<Item = &[u8]> {
    listing.split(|&byte| byte == 0).filter(|record| !record.is_empty())
}

pub(crate) fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn unexpected(top: &Path) -> WorkspaceError {
    WorkspaceError::File {
        path: top.to_owned(),
        source: io::Error::other("git's listing has an unexpected form"),
    }
}

/// Returns the names of a commit's tree in the user's repository.
pub(crate) fn user_tree(top: &Path, commit: &str) -> Result<Vec<Indexed>, WorkspaceError> {
    let listing = in_user("ls-tree", top, &["-r", "-z", "--full-tree", commit])?;
    records(&listing).map(|record| parse_record(record).ok_or_else(|| unexpected(top))).collect()
}
