//! `cargo xtask privileged-budget`: how large the code is that acts as root, against a limit.
//!
//! Counted are the lines of code of `privileged/` and of the `wire/` crates that it is linked with,
//! at rustfmt's width: no blank lines, no comments, no tests. Beside them the unsafe blocks, which
//! only `privileged/sys` may have, and the registry crates in the helper's tree.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cargo_metadata::{CargoOpt, DependencyKind, MetadataCommand};
use serde::Deserialize;

use crate::say;

/// The limits, beside the code that they are of.
const LIMITS: &str = "privileged/budget.toml";
/// The helper's package.
const HELPER: &str = "banger-helper";
/// The one crate that may have unsafe blocks.
const UNSAFE: &str = "privileged/sys";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    lines: usize,
    unsafe_blocks: usize,
    crates: usize,
}

/// Counts, prints, and fails above a limit.
pub(crate) fn run(root: &Path) -> Result<()> {
    let path = root.join(LIMITS);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let limits: Limits =
        toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    let (folders, crates) = tree(root)?;
    let (mut lines, mut unsafe_blocks) = (0, 0);
    let mut faults = Vec::new();
    for folder in &folders {
        let mut of_crate = 0;
        for file in sources(&folder.join("src"))? {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("read {}", file.display()))?;
            let code = code(&text);
            of_crate += code.len();
            let blocks = code.iter().filter(|line| has_unsafe(line)).count();
            unsafe_blocks += blocks;
            if blocks > 0 && !folder.ends_with(UNSAFE) {
                faults.push(format!("unsafe code outside {UNSAFE}: {}", file.display()));
            }
        }
        let name = folder.strip_prefix(root).unwrap_or(folder);
        say(format_args!("{of_crate:>6} lines  {}", name.display()));
        lines += of_crate;
    }
    for (what, count, limit) in [
        ("lines", lines, limits.lines),
        ("unsafe blocks", unsafe_blocks, limits.unsafe_blocks),
        ("registry crates", crates, limits.crates),
    ] {
        say(format_args!("{count:>6} {what}, the limit is {limit}"));
        if count > limit {
            faults.push(format!("{count} {what}, more than {limit}"));
        }
    }
    if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("; ")) }
}

/// The workspace crates that the helper is linked with, and how many registry crates.
fn tree(root: &Path) -> Result<(BTreeSet<PathBuf>, usize)> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .features(CargoOpt::SomeFeatures(Vec::new()))
        .other_options(["--filter-platform".to_owned(), "x86_64-unknown-linux-gnu".to_owned()])
        .exec()
        .context("cargo metadata")?;
    let resolve = metadata.resolve.as_ref().context("cargo metadata has no graph")?;
    let helper = metadata.packages.iter().find(|package| package.name.as_str() == HELPER);
    let mut left = vec![helper.with_context(|| format!("no package {HELPER}"))?.id.clone()];
    let mut seen = BTreeSet::new();
    while let Some(id) = left.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let node = resolve.nodes.iter().find(|node| node.id == id).context("a node")?;
        for edge in &node.deps {
            // Build scripts and macros run when it is built, not as root.
            if edge.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal) {
                left.push(edge.pkg.clone());
            }
        }
    }
    let (mut folders, mut crates) = (BTreeSet::new(), 0);
    for package in metadata.packages.iter().filter(|package| seen.contains(&package.id)) {
        match package.source {
            Some(_) => crates += 1,
            None => folders
                .extend(package.manifest_path.parent().map(|path| path.as_std_path().to_owned())),
        }
    }
    Ok((folders, crates))
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The lines of code: up to the tests, which stand at a file's end, and without blank lines and
/// lines that are a comment.
fn code(text: &str) -> Vec<&str> {
    text.lines()
        .take_while(|line| *line != "#[cfg(test)]")
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
        .collect()
}

fn has_unsafe(line: &str) -> bool {
    line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_is_left_without_comments_and_tests() {
        let text =
            "//! x\n\nfn a() {\n    // y\n    let b = 1; // z\n}\n\n#[cfg(test)]\nmod tests {}\n";
        assert_eq!(code(text), ["fn a() {", "    let b = 1; // z", "}"]);
    }

    #[test]
    fn unsafe_code_is_seen() {
        assert!(has_unsafe("let x = unsafe { y() };"));
        assert!(has_unsafe("unsafe impl Send for X {}"));
        assert!(!has_unsafe("#![forbid(unsafe_code)]"));
    }
}
