//! `Include` in the user's own `~/.ssh/config`, between markers, so that `ssh NAME.vm` works.
//!
//! The file is the user's: everything outside the markers stays byte for byte, its mode and owner
//! too, and a link to it stays a link. It comes first in the file, because what follows a `Host` line
//! belongs to that host.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::config::{file_path, quoted};
use super::{Options, Store, replace};
use crate::environment;
use crate::error::CliError;

const BEGIN: &str = "# >>> banger >>>";
const END: &str = "# <<< banger <<<";
/// Between them in a file that was not there before.
const MADE: &str = "# banger made this file";
/// Larger than anybody's configuration.
const LARGEST: u64 = 4 << 20;

/// Makes `ssh NAME.vm` work; returns the file that was changed, or `None` where all was as it is.
pub fn install(store: &Store) -> Result<Option<PathBuf>, CliError> {
    // ssh looks for the key before it starts the proxy.
    store.public_key()?;
    let _lock = store.lock()?;
    let own = file_path()?;
    let text = Options::new(store, false)?.file();
    let failed =
        |error: &io::Error| CliError::new(format!("cannot write {}", own.display())).because(error);
    let directory = own.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).map_err(|error| failed(&error))?;
    let mut changed = std::fs::read_to_string(&own).ok().as_ref() != Some(&text);
    if changed {
        replace(&own, text.as_bytes(), 0o600).map_err(|error| failed(&error))?;
    }
    let include = quoted(&own)?;
    let path = change(|text| {
        let is_new = text.is_none();
        with_block(text.unwrap_or_default(), &include, is_new).map(Some)
    })?;
    changed |= path.1;
    Ok(changed.then_some(path.0))
}

/// Takes back what [`install`] did; the key and the known hosts stay.
pub fn uninstall() -> Result<Option<PathBuf>, CliError> {
    let store = Store::at(environment::ssh_directory()?)?;
    let _lock = store.lock()?;
    let own = file_path()?;
    let (path, mut changed) = change(|text| {
        let Some(text) = text else { return Ok(None) };
        let (rest, block) = without_block(text)?;
        // Nothing but what install made: then the file goes, too.
        let is_made = block == Some(Block { is_of_made_file: true }) && rest.is_empty();
        Ok((!is_made).then_some(rest))
    })?;
    match std::fs::remove_file(&own) {
        Ok(()) => changed = true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            let message = format!("cannot remove {}", own.display());
            return Err(CliError::new(message).because(&error));
        }
    }
    Ok(changed.then_some(path))
}

/// Edits `~/.ssh/config`, of which nothing stands for no file; returns the file and whether it changed.
fn change(
    edit: impl FnOnce(Option<&str>) -> Result<Option<String>, String>,
) -> Result<(PathBuf, bool), CliError> {
    let named = environment::home()?.join(".ssh/config");
    let failed = |error: &io::Error| {
        CliError::new(format!("cannot change {}", named.display())).because(error)
    };
    // A link to it, as from a directory of dotfiles, stays one.
    let path = match named.canonicalize() {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if named.is_symlink() {
                return Err(failed(&io::Error::other("it is a link that leads nowhere")));
            }
            named.clone()
        }
        Err(error) => return Err(failed(&error)),
    };
    let before = read(&path).map_err(|error| failed(&error))?;
    let after = edit(before.as_deref()).map_err(|error| {
        failed(&io::Error::other(error))
            .hint("repair it by hand; banger changes nothing else in it")
    })?;
    if after == before {
        return Ok((named, false));
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    let write = || {
        let Some(after) = &after else { return std::fs::remove_file(&path) };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        replace(&path, after.as_bytes(), 0o600)
    };
    write().map_err(|error| failed(&error))?;
    Ok((named, true))
}

fn read(path: &Path) -> io::Result<Option<String>> {
    let metadata = match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err(io::Error::other("it is no configuration file"));
    }
    if metadata.permissions().mode() & 0o200 == 0 {
        return Err(io::Error::other("it is write-protected"));
    }
    std::fs::read_to_string(path).map(Some)
}

/// What is found between the markers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    is_of_made_file: bool,
}

/// Returns the text with the block first; one that is there is brought up to date.
fn with_block(text: &str, include: &str, is_new: bool) -> Result<String, String> {
    let (rest, found) = without_block(text)?;
    let is_made = found.map_or(is_new, |block| block.is_of_made_file);
    let made = if is_made { format!("{MADE}\n") } else { String::new() };
    let block = format!("{BEGIN}\n{made}Include {include}\n{END}\n");
    // Where the user has moved it, it stays, unless it says something else.
    if found.is_some() && text.contains(&block) {
        return Ok(text.to_owned());
    }
    Ok(block + &rest)
}

/// Returns the text without the block, and the block, if there was one.
fn without_block(text: &str) -> Result<(String, Option<Block>), String> {
    let mut rest = String::new();
    let mut begun: Option<usize> = None;
    let (mut found, mut is_of_made_file) = (false, false);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        match (line.trim(), begun) {
            (BEGIN, None) if !found => begun = Some(number),
            (END, Some(_)) => {
                begun = None;
                found = true;
            }
            (BEGIN | END, _) => {
                return Err(format!("line {}: a marker of banger is out of place", number + 1));
            }
            (inside, Some(_)) => is_of_made_file |= inside == MADE,
            (_, None) => rest.push_str(line),
        }
    }
    match begun {
        Some(number) => Err(format!("line {}: the end of banger's lines is missing", number + 1)),
        None => Ok((rest, found.then_some(Block { is_of_made_file }))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_and_out_again_changes_nothing_else() {
        for text in ["", "Host a\n  User b", "# no end of line", "\r\nHost x\r\n", "\n\n"] {
            let with = with_block(text, "\"/x\"", false).unwrap();
            assert!(with.starts_with("# >>> banger >>>\nInclude \"/x\"\n"), "{with}");
            assert_eq!(with_block(&with, "\"/x\"", true).unwrap(), with);
            let block = Some(Block { is_of_made_file: false });
            assert_eq!(without_block(&with).unwrap(), (text.to_owned(), block));
            let moved = with_block(&with, "\"/y\"", true).unwrap();
            assert!(!moved.contains("/x") && moved.ends_with(text));
        }
        let own_place = format!("Host a\n{BEGIN}\nInclude \"/x\"\n{END}\nHost b\n");
        assert_eq!(with_block(&own_place, "\"/x\"", true).unwrap(), own_place);
        // Whose the file is, is remembered over an update.
        let made = with_block("", "\"/x\"", true).unwrap();
        let moved = with_block(&made, "\"/y\"", false).unwrap();
        let block = Some(Block { is_of_made_file: true });
        assert_eq!(without_block(&moved).unwrap(), (String::new(), block));
    }

    #[test]
    fn torn_markers_are_named_and_nothing_is_guessed() {
        for (text, line) in [
            (format!("a\n{BEGIN}\nInclude x\n"), "line 2"),
            (format!("{END}\n"), "line 1"),
            (format!("{BEGIN}\n{BEGIN}\n{END}\n"), "line 2"),
            (format!("{BEGIN}\n{END}\n{BEGIN}\n{END}\n"), "line 3"),
        ] {
            assert!(without_block(&text).unwrap_err().contains(line), "{text}");
            assert!(with_block(&text, "\"/x\"", false).is_err());
        }
    }
}
