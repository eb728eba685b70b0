//! Rules on the source files themselves: length, unsafe code, root code.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process::output_of;
use crate::say;

/// Lines past which a file is split, or says in its module doc why not.
const LONGEST_FILE: usize = 600;
/// How that reason begins, on a line of its own in the module doc.
const REASON: &str = "//! Long because ";
/// The only folders whose crates may contain unsafe code.
const MAY_BE_UNSAFE: [&str; 2] = ["guest/sys/", "privileged/sys/"];

/// The tracked and new files of the repository, relative to its root.
pub(crate) fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut git = std::process::Command::new("git");
    git.arg("-C").arg(root);
    // The checkout may belong to another user than the one who runs the tests.
    git.arg("-c").arg(format!("safe.directory={}", root.display()));
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = output_of(&mut git)?;
    let mut files: Vec<PathBuf> =
        listed.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    files.retain(|file| root.join(file).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

fn length_fault(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    let excused = text.lines().any(|line| line.starts_with(REASON));
    (lines > LONGEST_FILE && !excused)
        .then(|| format!("{path}: {lines} lines; split it or add a module doc line `{REASON}...`"))
}

fn is_crate_root(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.ends_with("src/lib.rs")
        || path.ends_with("src/main.rs")
        || name == "build.rs"
        || path.contains("/src/bin/")
}

fn unsafe_fault(path: &str, text: &str) -> Option<String> {
    let exempt = MAY_BE_UNSAFE.iter().any(|folder| path.starts_with(folder));
    let forbids = text.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]");
    (is_crate_root(path) && !exempt && !forbids).then(|| {
        format!("{path}: a crate root outside {MAY_BE_UNSAFE:?} lacks #![forbid(unsafe_code)]")
    })
}

/// Checks every Rust file and reports how much code acts as root.
pub(crate) fn run() -> Result<()> {
    let root = crate::root()?;
    let mut faults = Vec::new();
    let mut privileged_lines = 0;
    let mut checked = 0;
    for file in files(&root)? {
        let Some(path) = file.to_str() else {
            faults.push(format!("{}: a file name that is not UTF-8", file.display()));
            continue;
        };
        if !path.ends_with(".rs") {
            continue;
        }
        let text =
            std::fs::read_to_string(root.join(&file)).with_context(|| format!("read {path}"))?;
        checked += 1;
        if path.starts_with("privileged/") {
            privileged_lines += text.lines().count();
        }
        faults.extend(length_fault(path, &text));
        faults.extend(unsafe_fault(path, &text));
    }
    for fault in &faults {
        say(fault);
    }
    if !faults.is_empty() {
        bail!("{} faults in the layout", faults.len());
    }
    say(format_args!(
        "layout: {checked} files, {privileged_lines} lines of code act as root (privileged/)"
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_needs_a_reason() {
        let long = "x\n".repeat(LONGEST_FILE + 1);
        assert!(length_fault("a.rs", &long).is_some());
        assert!(length_fault("a.rs", &format!("{REASON}of a table.\n{long}")).is_none());
        assert!(length_fault("a.rs", &"x\n".repeat(LONGEST_FILE)).is_none());
    }

    #[test]
    fn a_crate_root_forbids_unsafe_code() {
        for path in
            ["owner/image/src/lib.rs", "cli/src/main.rs", "owner/daemon/build.rs", "a/src/bin/x.rs"]
        {
            assert!(unsafe_fault(path, "// #![forbid(unsafe_code)]\n").is_some(), "{path}");
            assert!(unsafe_fault(path, "//! Doc\n#![forbid(unsafe_code)]\n").is_none(), "{path}");
        }
        assert!(unsafe_fault("owner/image/src/deep/lib_of.rs", "").is_none());
        assert!(unsafe_fault("guest/sys/src/lib.rs", "").is_none());
        assert!(unsafe_fault("guest/system/src/lib.rs", "").is_some());
    }
}
