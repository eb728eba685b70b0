//! Checks that the documentation names things that exist: files, headings,
//! `make` targets, tasks, verbs and options of `banger`, default names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::CommandFactory;

use crate::{layout, say};

/// Folders whose files are meant when a path in code quotes begins with one.
const FOLDERS: [&str; 10] = [
    "cli/",
    "docs/",
    "examples/",
    "guest/",
    "owner/",
    "privileged/",
    "scripts/",
    "testing/",
    "wire/",
    "xtask/",
];

/// One page with what it refers to.
struct Page<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Page<'_> {
    /// Lines with their number, and whether they lie in a fenced code block.
    fn lines(&self) -> impl Iterator<Item = (usize, &str, bool)> {
        let mut fenced = false;
        self.text.lines().enumerate().filter_map(move |(index, line)| {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
                return None;
            }
            Some((index + 1, line, fenced))
        })
    }

    /// Text in single backticks outside code blocks, with its line number.
    fn quoted(&self) -> Vec<(usize, &str)> {
        self.lines()
            .filter(|(_, _, fenced)| !fenced)
            .flat_map(|(number, line, _)| {
                line.split('`').skip(1).step_by(2).map(move |code| (number, code))
            })
            .collect()
    }

    /// Command lines: of code blocks and in backticks.
    fn commands(&self) -> Vec<(usize, &str)> {
        let blocks =
            self.lines().filter(|(_, _, fenced)| *fenced).map(|(number, line, _)| (number, line));
        blocks
            .chain(self.quoted())
            .flat_map(|(number, line)| segments(line).map(move |part| (number, part)))
            .collect()
    }

    /// Targets of `[text](target)` outside code.
    fn links(&self) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        for (number, line, fenced) in self.lines() {
            if fenced {
                continue;
            }
            let mut rest = line;
            while let Some(start) = rest.find("](") {
                rest = &rest[start + 2..];
                let Some(end) = rest.find(')') else { break };
                found.push((number, &rest[..end]));
                rest = &rest[end..];
            }
        }
        found
    }
}

/// The commands of a shell line, without prompts.
fn segments(line: &str) -> impl Iterator<Item = &str> {
    line.split([';', '|', '&']).map(|part| {
        let part = part.trim();
        let part = part.strip_prefix("$ ").or_else(|| part.strip_prefix("# ")).unwrap_or(part);
        part.strip_prefix("sudo ").unwrap_or(part).trim_start()
    })
}

/// GitHub's name for a heading: lower case, spaces to dashes, the rest dropped.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}

fn link_fault(root: &Path, page: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, heading) =
        target.split_once('#').map_or((target, None), |(file, heading)| (file, Some(heading)));
    let file = if file.is_empty() { root.join(page) } else { root.join(page).parent()?.join(file) };
    if !file.exists() {
        return Some(format!("link to {target}: there is no such file"));
    }
    let heading = heading?;
    let text = std::fs::read_to_string(&file).ok()?;
    let known = text.lines().any(|line| line.starts_with('#') && anchor(line) == heading);
    (!known).then(|| format!("link to {target}: there is no such heading"))
}

fn path_fault(root: &Path, code: &str) -> Option<String> {
    let is_path = FOLDERS.iter().any(|folder| code.starts_with(folder))
        && code.chars().all(|c| c.is_ascii_alphanumeric() || "._/-".contains(c));
    (is_path && !root.join(code).exists()).then(|| format!("{code}: there is no such file"))
}

/// The real command line, asked for its own help.
struct Banger {
    program: PathBuf,
}

impl Banger {
    fn find(root: &Path) -> Option<Self> {
        let built = ["target/debug/banger", "target/release/banger"].map(|path| root.join(path));
        let newest = built
            .into_iter()
            .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
            .max();
        newest.map(|(_, program)| Self { program })
    }

    fn help(&self, verbs: &[&str]) -> Result<Option<String>> {
        let output =
            Command::new(&self.program).args(verbs).arg("--help").stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("run {}", self.program.display()))?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// Why a command line of the documentation cannot be typed as it stands.
    fn fault(&self, command: &str) -> Result<Option<String>> {
        let own = command.split(" -- ").next().unwrap_or(command);
        let words: Vec<&str> = own.split_whitespace().skip(1).collect();
        let mut verbs: Vec<&str> = Vec::new();
        let Some(mut help) = self.help(&[])? else {
            return Ok(Some("banger has no --help".to_owned()));
        };
        for word in &words {
            let is_group = help.lines().any(|line| line.trim() == "Commands:");
            let is_verb =
                word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
            if !is_group || !is_verb {
                break;
            }
            verbs.push(word);
            match self.help(&verbs)? {
                Some(next) => help = next,
                None => {
                    return Ok(Some(format!("banger {}: there is no such verb", verbs.join(" "))));
                }
            }
        }
        for option in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
            let name = option.split(['=', '[', ']', ',', '.', ')']).next().unwrap_or(option);
            let known = help
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                .any(|word| word == name);
            if !known {
                return Ok(Some(format!("banger {}: there is no option {name}", verbs.join(" "))));
            }
        }
        Ok(None)
    }
}

/// Names such as `debian-bookworm` and `debian-6.12-cloud` in a page.
fn default_names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || ".-_:/".contains(c)))
        .map(|word| word.trim_end_matches(['.', ':']))
        .filter(|word| {
            let rest = word.strip_prefix("debian-").unwrap_or_default();
            rest == "bookworm"
                || rest == "trixie"
                || (rest.ends_with("-cloud") && rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .collect()
}

/// Checks every page of the repository.
pub(crate) fn run() -> Result<()> {
    let root = crate::root()?;
    let files = layout::files(&root)?;
    let makefile = std::fs::read_to_string(root.join("Makefile")).context("read Makefile")?;
    let tasks: BTreeSet<String> = crate::Arguments::command()
        .get_subcommands()
        .map(|task| task.get_name().to_owned())
        .collect();
    let mut sources = String::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "rs")) {
        sources.push_str(&std::fs::read_to_string(root.join(file)).unwrap_or_default());
    }
    let banger = Banger::find(&root);
    if banger.is_none() {
        say("docs: SKIP: banger is not built, so its verbs are not checked");
    }
    let mut faults = Vec::new();
    let mut pages = 0;
    for path in files.iter().filter(|file| file.extension().is_some_and(|end| end == "md")) {
        let text = std::fs::read_to_string(root.join(path))
            .with_context(|| format!("read {}", path.display()))?;
        let page = Page { path, text: &text };
        pages += 1;
        let mut report = |line: usize, fault: String| {
            faults.push(format!("{}:{line}: {fault}", page.path.display()))
        };
        for (line, target) in page.links() {
            if let Some(fault) = link_fault(&root, page.path, target) {
                report(line, fault);
            }
        }
        for (line, code) in page.quoted() {
            if let Some(fault) = path_fault(&root, code) {
                report(line, fault);
            }
        }
        for (line, command) in page.commands() {
            let mut words = command.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some("make"), Some(target), None)
                    if target.starts_with(|c: char| c.is_ascii_lowercase())
                        && !makefile
                            .lines()
                            .any(|rule| rule.starts_with(&format!("{target}:"))) =>
                {
                    report(line, format!("make {target}: there is no such target"));
                }
                (Some("cargo"), Some("xtask"), Some(task))
                    if task.starts_with(|c: char| c.is_ascii_lowercase())
                        && !tasks.contains(task) =>
                {
                    report(line, format!("cargo xtask {task}: there is no such task"));
                }
                (Some("banger"), Some(_), _) => {
                    if let Some(banger) = &banger
                        && let Some(fault) = banger.fault(command)?
                    {
                        report(line, fault);
                    }
                }
                _ => {}
            }
        }
        for name in default_names(&text) {
            if !sources.contains(name) {
                report(0, format!("{name}: no source file knows this name"));
            }
        }
    }
    for fault in &faults {
        say(fault);
    }
    if !faults.is_empty() {
        bail!("{} faults in the documentation", faults.len());
    }
    say(format_args!("docs: {pages} pages"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_blocks_and_quotes() {
        let text = "Use `banger vm list` here.\n```\n$ banger vm run -- true ; echo x | banger vm exec b -- cat\n```\n";
        let page = Page { path: Path::new("a.md"), text };
        let commands: Vec<_> = page.commands().into_iter().map(|(_, command)| command).collect();
        assert_eq!(
            commands,
            ["banger vm run -- true", "echo x", "banger vm exec b -- cat", "banger vm list"]
        );
    }

    #[test]
    fn broken_links_are_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("b.md"), "# The two `ways`\n").unwrap();
        let fault = |target| link_fault(folder.path(), Path::new("a.md"), target);
        assert!(fault("c.md").is_some());
        assert!(fault("b.md").is_none());
        assert!(fault("b.md#the-two-ways").is_none());
        assert!(fault("b.md#the-third-way").is_some());
        assert!(fault("https://example.org/x").is_none());
    }

    #[test]
    fn missing_paths_are_found() {
        let folder = tempfile::tempdir().unwrap();
        assert!(path_fault(folder.path(), "owner/nothing/src/lib.rs").is_some());
        assert!(path_fault(folder.path(), "owner/ and wire/").is_none());
        assert!(path_fault(folder.path(), "cargo xtask").is_none());
    }

    #[test]
    fn default_names_are_found() {
        let names = default_names("Pull `debian-bookworm`, debian-6.12-cloud. Not debian-based.");
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["debian-6.12-cloud", "debian-bookworm"]);
    }
}
