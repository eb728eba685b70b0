//! `Include` in the user's own `~/.ssh/config`, between markers, so that `ssh NAME.vm` works.
//!
//! The file is the user's: everything outside the markers stays byte for byte, its mode and owner
//! too, and a link to it stays a link. It comes first in the file, because what follows a `Host` line
//! belongs to that host.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::config::{file_path, quoted};
use super::{Options, Store, home, replace};
use crate::error::CliError;

const BEGIN: &str = "# >>> banger >>>";
const END: &str = "# <<< banger <<<";
/// Larger than anybody's configuration.
const LARGEST: u64 = 4 << 20;

/// Makes `ssh NAME.vm` work; returns the file that was changed, or `None` where all was as it is.
pub fn install(store: &Store) -> Result<Option<PathBuf>, CliError> {
    // ssh looks for the key before it starts the proxy.
    store.public_key()?;
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
    let path = change(|text| with_block(text, &include))?;
    changed |= path.1;
    Ok(changed.then_some(path.0))
}

/// Takes back what [`install`] did; the key and the known hosts stay.
pub fn uninstall() -> Result<Option<PathBuf>, CliError> {
    let own = file_path()?;
    let (path, mut changed) = change(|text| without_block(text).map(|(text, _)| text))?;
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

/// Edits `~/.ssh/config`; returns the file and whether it changed.
fn change(edit: impl FnOnce(&str) -> Result<String, String>) -> Result<(PathBuf, bool), CliError> {
    let named = home()?.join(".ssh/config");
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
    let text = read(&path).map_err(|error| failed(&error))?;
    let before = text.clone().unwrap_or_default();
    let after = edit(&before).map_err(|error| {
        failed(&io::Error::other(error))
            .hint("repair it by hand; banger changes nothing else in it")
    })?;
    if after == before {
        return Ok((named, false));
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    let write = || {
        if after.is_empty() && !named.is_symlink() {
            return std::fs::remove_file(&path);
        }
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

/// Returns the text with the block first; one that is there is brought up to date.
fn with_block(text: &str, include: &str) -> Result<String, String> {
    let (rest, found) = without_block(text)?;
    let block = format!("{BEGIN}\nInclude {include}\n{END}\n");
    // Where the user has moved it, it stays, unless it says something else.
    if found && text.contains(&block) {
        return Ok(text.to_owned());
    }
    Ok(block + &rest)
}

/// Returns the text without the block, and whether there was one.
fn without_block(text: &str) -> Result<(String, bool), String> {
    let mut rest = String::new();
    let mut begun: Option<usize> = None;
    let mut found = false;
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
            (_, Some(_)) => {}
            (_, None) => rest.push_str(line),
        }
    }
    match begun {
        Some(number) => Err(format!("line {}: the end of banger's lines is missing", number + 1)),
        None => Ok((rest, found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_and_out_again_changes_nothing_else() {
        for text in ["", "Host a\n  User b", "# no end of line", "\r\nHost x\r\n", "\n\n"] {
            let with = with_block(text, "\"/x\"").unwrap();
            assert!(with.starts_with("# >>> banger >>>\nInclude \"/x\"\n"), "{with}");
            assert_eq!(with_block(&with, "\"/x\"").unwrap(), with);
            assert_eq!(without_block(&with).unwrap(), (text.to_owned(), true));
            let moved = with_block(&with, "\"/y\"").unwrap();
            assert!(!moved.contains("/x") && moved.ends_with(text));
        }
        let own_place = format!("Host a\n{BEGIN}\nInclude \"/x\"\n{END}\nHost b\n");
        assert_eq!(with_block(&own_place, "\"/x\"").unwrap(), own_place);
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
            assert!(with_block(&text, "\"/x\"").is_err());
        }
    }
}
