//! This machine's programs for a guest whose image lacks them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use banger_harness::{RootfsTar, find_program};

/// Where iptables has its matches and targets.
const EXTENSIONS: &str = "/usr/lib/x86_64-linux-gnu/xtables";
/// What glibc loads when a thread ends.
const UNWINDER: &str = "/lib/x86_64-linux-gnu/libgcc_s.so.1";

/// A tar with these programs and all that they load, to be a root of its own.
///
/// # Panics
/// Where a program is missing: `scripts/setup kernel` installs them.
pub(super) fn tools(names: &[&str]) -> Vec<u8> {
    let mut files = BTreeSet::from([PathBuf::from(UNWINDER)]);
    for name in names {
        let program = find_program(name)
            .unwrap_or_else(|| panic!("{name} is missing here; run scripts/setup kernel"));
        files.insert(program);
    }
    if names.iter().any(|name| name.starts_with("iptables")) {
        let extensions = std::fs::read_dir(EXTENSIONS).expect("the extensions of iptables");
        files.extend(extensions.flatten().map(|entry| entry.path()));
    }
    files.extend(loaded(&files));
    let mut tar = RootfsTar::default();
    for folder in ["dev", "proc", "sys", "run", "tmp", "disks"] {
        tar = tar.folder(folder, 0o755);
    }
    for file in files {
        // A link becomes the file behind it: iptables goes by the name under which it runs.
        let content = std::fs::read(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let name = file.strip_prefix("/").expect("an absolute path");
        tar = tar.file(name.to_str().expect("a path that is text"), 0o755, &content);
    }
    tar.finish()
}

/// The loader and the libraries of these, as `ldd` tells.
fn loaded(files: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let output = Command::new("ldd").args(files).env("LC_ALL", "C").output().expect("run ldd");
    assert!(output.status.success(), "ldd: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let is_path = |word: &&str| word.starts_with('/') && !word.ends_with(':');
    text.split_whitespace().filter(is_path).map(PathBuf::from).collect()
}
