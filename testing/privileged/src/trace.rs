//! What a helper and all that it starts ask of the kernel, as strace(1) writes it down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::running::{RunningHelper, program};

/// What is written down: what is executed and by whom, and what changes files by their names.
const CALLS: &str = "execve,execveat,clone,clone3,fork,vfork,openat,openat2,umount2,\
                     chown,lchown,fchown,fchownat,chmod,fchmod,fchmodat,\
                     setuid,setgid";

/// A call of one process, as it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The thread.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// Between its brackets.
    pub arguments: String,
    /// Behind the equals sign.
    pub result: String,
}

/// A program that is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// The path, and where it leads if it is of an open file.
    pub path: PathBuf,
    /// Its words, the first of them its name.
    pub words: Vec<String>,
    /// Its environment.
    pub environment: Vec<String>,
    /// What executes it.
    pub by: PathBuf,
    /// The uid and gid that its process has taken before, where it has.
    pub user: (Option<u32>, Option<u32>),
}

/// A helper under strace, with an environment that none of its tools may see.
///
/// # Panics
/// It does not start.
#[must_use]
pub fn start_helper(strace: &Path) -> RunningHelper {
    RunningHelper::start_by(|directories| {
        let mut command = Command::new(strace);
        // The tracer runs beside, so that the helper is the test's own child.
        command.args(["-D", "-f", "-qq", "-v", "-y", "-s", "8192", "-e", "signal=none"]);
        command.args(["-E", "BANGER_TRACED=1", "-E", "PATH=/tmp:."]);
        command
            .args(["-e", &format!("trace={CALLS}"), "-o"])
            .arg(directories.outside.join("trace"));
        command.arg(program());
        command
    })
}

/// Ends a traced helper and reads what was written down.
///
/// # Panics
/// The tracer does not end.
#[must_use]
pub fn end_helper(helper: &mut RunningHelper) -> Trace {
    let status = std::fs::read_to_string(format!("/proc/{}/status", helper.pid())).unwrap();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).unwrap().trim();
    let tracer = PathBuf::from(format!("/proc/{tracer}"));
    assert!(helper.stop(), "{}", helper.log());
    let is_gone = || (!tracer.exists()).then_some(());
    banger_harness::wait_for("the end of strace", Duration::from_secs(30), is_gone);
    let path = helper.directories.outside.join("trace");
    Trace::read(&String::from_utf8_lossy(&std::fs::read(path).unwrap()))
}

/// All calls, in the order in which they ended.
#[derive(Debug, Default)]
pub struct Trace {
    calls: Vec<Call>,
    /// What each thread executes when a call of it ends, by the call's place.
    programs: Vec<PathBuf>,
    /// Who started each thread.
    parents: BTreeMap<i32, i32>,
}

impl Trace {
    /// Reads what `strace -f` has written.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut calls: Vec<Call> = Vec::new();
        let mut begun: BTreeMap<i32, String> = BTreeMap::new();
        for line in text.lines() {
            let Some((pid, rest)) = line.split_once(' ') else { continue };
            let (Ok(pid), rest) = (pid.parse::<i32>(), rest.trim_start()) else { continue };
            if let Some(front) = rest.strip_suffix(" <unfinished ...>") {
                begun.insert(pid, front.to_owned());
                continue;
            }
            let whole =
                match rest.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
                    Some((_, end)) => begun.remove(&pid).unwrap_or_default() + end,
                    None => rest.to_owned(),
                };
            // The last ` = ` is the result's: no name of a file that the tests make has one.
            let Some((front, result)) = whole.rsplit_once(" = ") else { continue };
            let Some((name, arguments)) = front.trim_end().split_once('(') else { continue };
            let arguments = arguments.strip_suffix(')').unwrap_or(arguments).to_owned();
            let (name, result) = (name.to_owned(), result.to_owned());
            calls.push(Call { pid, name, arguments, result });
        }
        let parents = parents(&calls);
        Self { programs: programs(&calls, &parents), calls, parents }
    }

    /// Everything that was executed, or was tried to.
    #[must_use]
    pub fn executions(&self) -> Vec<Execution> {
        let executed = |call: &Call| call.name.starts_with("execve");
        let calls = self.calls.iter().enumerate().filter(|(_, call)| executed(call));
        calls
            .map(|(at, call)| Execution {
                path: self.resolve(at, &texts(&call.arguments)[0]),
                words: list(&call.arguments, 0),
                environment: list(&call.arguments, 1),
                by: self.before(at),
                user: (self.taken(at, "setuid"), self.taken(at, "setgid")),
            })
            .collect()
    }

    /// The calls of some names that a program made, each with its place.
    pub fn calls_of<'a>(
        &'a self,
        program: &'a str,
        names: &'a [&str],
    ) -> impl Iterator<Item = (usize, &'a Call)> {
        let calls = self.calls.iter().enumerate();
        calls.filter(move |(at, call)| {
            names.contains(&call.name.as_str()) && self.programs[*at].ends_with(program)
        })
    }

    /// The path that the first text of a call's arguments names: what lies below an open file by
    /// `/proc/self/fd/N` has that file's path in front.
    #[must_use]
    pub fn path(&self, at: usize) -> PathBuf {
        self.resolve(at, &texts(&self.calls[at].arguments)[0])
    }

    fn resolve(&self, at: usize, path: &str) -> PathBuf {
        let Some(rest) = path.strip_prefix("/proc/self/fd/") else { return PathBuf::from(path) };
        let (number, below) = rest.split_once('/').unwrap_or((rest, ""));
        let threads = self.line_of(at);
        let its_own = self.calls[..at].iter().rev().filter(|call| threads.contains(&call.pid));
        let opened = its_own.into_iter().find_map(|call| {
            let named = call.result.strip_prefix(number)?.strip_prefix('<')?.strip_suffix('>')?;
            call.name.starts_with("openat").then(|| PathBuf::from(named))
        });
        let opened = opened.unwrap_or_else(|| panic!("{path}: nobody opened that"));
        if below.is_empty() { opened } else { opened.join(below) }
    }

    /// The number that a call's thread, or who started it, has given to another call before.
    fn taken(&self, at: usize, name: &str) -> Option<u32> {
        let threads = self.line_of(at);
        let mut before = self.calls[..at].iter().rev();
        let call = before
            .find(|call| threads.contains(&call.pid) && call.name == name && call.result == "0")?;
        call.arguments.parse().ok()
    }

    /// The thread of a call, who started it, and so on.
    fn line_of(&self, at: usize) -> Vec<i32> {
        let mut threads = vec![self.calls[at].pid];
        while let Some(parent) = threads.last().and_then(|pid| self.parents.get(pid)) {
            threads.push(*parent);
        }
        threads
    }

    /// What the thread of a call executed before it.
    fn before(&self, at: usize) -> PathBuf {
        let pid = self.calls[at].pid;
        let of_thread = (0..at).rev().find(|before| self.calls[*before].pid == pid);
        if let Some(before) = of_thread {
            return self.programs[before].clone();
        }
        let parent = self.parents.get(&pid);
        let of_parent = (0..at).rev().find(|before| Some(&self.calls[*before].pid) == parent);
        of_parent.map_or_else(PathBuf::new, |before| self.programs[before].clone())
    }
}

/// Who started each thread.
fn parents(calls: &[Call]) -> BTreeMap<i32, i32> {
    let starts = ["clone", "clone3", "fork", "vfork"];
    let started = calls.iter().filter(|call| starts.contains(&call.name.as_str()));
    started.filter_map(|call| Some((call.result.trim().parse().ok()?, call.pid))).collect()
}

/// What is executed by whom when each call ends.
fn programs(calls: &[Call], parents: &BTreeMap<i32, i32>) -> Vec<PathBuf> {
    let mut executed: BTreeMap<i32, PathBuf> = BTreeMap::new();
    let mut programs = Vec::new();
    for call in calls {
        if !executed.contains_key(&call.pid) {
            let of_parent = parents.get(&call.pid).and_then(|parent| executed.get(parent));
            executed.insert(call.pid, of_parent.cloned().unwrap_or_default());
        }
        if call.name.starts_with("execve") && call.result == "0" {
            // A program by an open file is known by the name that it is given.
            let path = texts(&call.arguments)[0].clone();
            let name =
                if path.starts_with("/proc/") { list(&call.arguments, 0)[0].clone() } else { path };
            executed.insert(call.pid, PathBuf::from(name));
        }
        programs.push(executed[&call.pid].clone());
    }
    programs
}

/// The texts between quotes.
fn texts(arguments: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = arguments.chars();
    while rest.by_ref().any(|character| character == '"') {
        let mut text = String::new();
        while let Some(character) = rest.next() {
            match character {
                '"' => break,
                '\\' => text.extend(rest.next()),
                other => text.push(other),
            }
        }
        found.push(text);
    }
    found
}

/// The texts of one of the lists of an execution: its words or its environment.
fn list(arguments: &str, index: usize) -> Vec<String> {
    let mut is_quoted = false;
    let mut is_escaped = false;
    let mut lists: Vec<String> = Vec::new();
    let mut is_open = false;
    for character in arguments.chars() {
        match character {
            _ if is_escaped => {}
            '"' => is_quoted = !is_quoted,
            '[' if !is_quoted => {
                lists.push(String::new());
                is_open = true;
            }
            ']' if !is_quoted => is_open = false,
            _ => {}
        }
        is_escaped = character == '\\' && !is_escaped;
        if let (true, Some(list)) = (is_open, lists.last_mut()) {
            list.push(character);
        }
    }
    let list = lists.get(index).unwrap_or_else(|| panic!("a list is missing: {arguments}"));
    texts(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_strace_are_read() {
        let trace = Trace::read(concat!(
            "7 execve(\"/bin/bangerd-root\", [\"/bin/bangerd-root\"], [\"A=]\"]) = 0\n",
            "7 openat(3</a b>, \"c\", O_PATH) = 9</a b/c>\n",
            "7 vfork( <unfinished ...>\n",
            "8 execve(\"/proc/self/fd/9\", [\"jailer\", \"a \\\"[b\\\\\"], []) = 0\n",
            "8 umount2(\"/proc/self/fd/9/x\", MNT_DETACH) = 0\n",
            "7 <... vfork resumed>) = 8\n",
            "7 umount2(\"/y\", MNT_DETACH) = -1 EINVAL (Invalid argument)\n",
        ));
        let [helper, jailer] = &trace.executions()[..] else { panic!("{trace:?}") };
        assert_eq!(helper.environment, ["A=]"]);
        assert_eq!((&jailer.path, &jailer.by), (&"/a b/c".into(), &"/bin/bangerd-root".into()));
        assert_eq!(jailer.words, ["jailer", "a \"[b\\"]);
        assert!(jailer.environment.is_empty());
        let unmounts = |program| -> Vec<PathBuf> {
            trace.calls_of(program, &["umount2"]).map(|(at, _)| trace.path(at)).collect()
        };
        assert_eq!(unmounts("jailer"), [PathBuf::from("/a b/c/x")]);
        assert_eq!(unmounts("bangerd-root"), [PathBuf::from("/y")]);
    }
}
