//! The user's own configuration of banger, `config.toml` beside `ssh_config`: what goes into machines.
//!
//! The command line alone reads it, as the user: bangerd opens no file that a user names.

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::environment;
use crate::error::CliError;

/// A file larger than this is not one of ours.
const LONGEST: u64 = 64 << 10;
/// Where relative names of a machine begin.
const GUEST_HOME: &str = "/root";

/// What of the configuration is read.
#[derive(Debug, Default)]
pub struct UserConfig {
    /// What every machine gets of this host, in this order.
    pub file_sync: Vec<FileSync>,
}

/// One `[[file_sync]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSync {
    /// The file or directory here, absolute.
    pub host: PathBuf,
    /// Its place in the machine, relative to root's home.
    pub guest: PathBuf,
    /// The permissions of a file.
    pub mode: u32,
}

/// The permissions of a file for which none are said: what is taken along is often a secret.
const FILE_MODE: u32 = 0o600;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    file_sync: Vec<RawFileSync>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFileSync {
    host: String,
    guest: String,
    mode: Option<String>,
}

impl UserConfig {
    /// Reads it; none is all defaults. Every entry is checked, whether it is used or not.
    pub fn read() -> Result<Self, CliError> {
        let path = environment::config_directory()?.join("config.toml");
        Self::read_at(&path, &environment::home()?)
    }

    fn read_at(path: &Path, home: &Path) -> Result<Self, CliError> {
        let failed = |error: &io::Error| {
            CliError::new(format!("cannot read {}", path.display())).because(error)
        };
        let mut text = String::new();
        match std::fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(&error)),
            Ok(file) => {
                let read = file.take(LONGEST + 1).read_to_string(&mut text);
                read.map_err(|error| failed(&error))?;
            }
        }
        if text.len() as u64 > LONGEST {
            return Err(failed(&io::Error::other("the file is too long for settings")));
        }
        let raw: Raw = toml::from_str(&text).map_err(|error| {
            let before = error.span().map_or(0, |span| span.start);
            let line = text.bytes().take(before).filter(|&byte| byte == b'\n').count() + 1;
            CliError::usage(format!("{}, line {line}: {}", path.display(), error.message()))
        })?;
        let entries = raw.file_sync.into_iter().enumerate().map(|(index, raw)| {
            FileSync::parse(&raw, home).map_err(|why| {
                CliError::usage(format!("{}: file_sync[{index}]: {why}", path.display()))
            })
        });
        Ok(Self { file_sync: entries.collect::<Result<_, _>>()? })
    }
}

impl FileSync {
    fn parse(raw: &RawFileSync, home: &Path) -> Result<Self, String> {
        let host = match below_home("host", &raw.host)? {
            Some(relative) => home.join(relative),
            None => PathBuf::from(&raw.host),
        };
        let guest = match below_home("guest", &raw.guest)? {
            Some(relative) => relative,
            None => Path::new(&raw.guest)
                .strip_prefix(GUEST_HOME)
                .map_err(|_| format!("guest is {}, and not below ~/ or /root/", raw.guest))?
                .to_owned(),
        };
        if guest.as_os_str().is_empty() {
            return Err(format!("guest is {}, and names nothing below it", raw.guest));
        }
        let mode = match &raw.mode {
            None => FILE_MODE,
            Some(text) => u32::from_str_radix(text.trim_start_matches("0o"), 8)
                .ok()
                .filter(|mode| *mode <= 0o777)
                .ok_or_else(|| format!("mode is {text:?}, and not octal as in \"0644\""))?,
        };
        // Plain, as the kernel would take them apart.
        Ok(Self { host: host.components().collect(), guest: guest.components().collect(), mode })
    }
}

/// Returns what comes after `~/`; `None` of an absolute path.
fn below_home(key: &str, text: &str) -> Result<Option<PathBuf>, String> {
    if text.is_empty() {
        return Err(format!("{key} is empty"));
    }
    let path = Path::new(text);
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("{key} is {text}, with a .. in it"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{key} has a control character in it"));
    }
    match text.strip_prefix('~') {
        Some("") => Ok(Some(PathBuf::new())),
        Some(rest) => match rest.strip_prefix('/') {
            Some(rest) => Ok(Some(Path::new(rest.trim_start_matches('/')).to_owned())),
            None => Err(format!("{key} is {text}: another user's home cannot be named so")),
        },
        None if path.is_absolute() => Ok(None),
        None => Err(format!("{key} is {text}, and neither below ~/ nor absolute")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<UserConfig, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        UserConfig::read_at(&path, Path::new("/home/me")).map_err(|error| error.message)
    }

    #[test]
    fn entries_are_read() {
        let config = read(
            "[[file_sync]]\nhost = \"~/.config/gh/\"\nguest = \"~/.config/gh\"\n\
             [[file_sync]]\nhost = \"/etc/a//b\"\nguest = \"/root/x/./y\"\nmode = \"0644\"\n",
        )
        .unwrap();
        let expected = [("/home/me/.config/gh", ".config/gh", 0o600), ("/etc/a/b", "x/y", 0o644)];
        let found: Vec<_> = config
            .file_sync
            .iter()
            .map(|entry| (entry.host.to_str().unwrap(), entry.guest.to_str().unwrap(), entry.mode))
            .collect();
        assert_eq!(found, expected);
        let none = tempfile::tempdir().unwrap();
        let missing = none.path().join("config.toml");
        assert!(UserConfig::read_at(&missing, Path::new("/")).unwrap().file_sync.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let entry = |host: &str, guest: &str| {
            format!(
                "[[file_sync]]\nhost = \"~/a\"\nguest = \"~/a\"\n[[file_sync]]\nhost = {host:?}\nguest = {guest:?}\n"
            )
        };
        for (text, parts) in [
            (entry("", "~/a"), "file_sync[1]: host is empty"),
            (entry("a", "~/a"), "neither below ~/ nor absolute"),
            (entry("~/../x", "~/a"), ".. in it"),
            (entry("/a/../x", "~/a"), ".. in it"),
            (entry("~other/x", "~/a"), "another user's home"),
            (entry("~/a\tb", "~/a"), "control character"),
            (entry("~/a", ""), "guest is empty"),
            (entry("~/a", "a"), "neither below"),
            (entry("~/a", "/etc/passwd"), "not below ~/ or /root/"),
            (entry("~/a", "/rooted/x"), "not below ~/ or /root/"),
            (entry("~/a", "~/../etc/x"), ".. in it"),
            (entry("~/a", "~"), "names nothing below"),
            (entry("~/a", "~/"), "names nothing below"),
            (entry("~/a", "/root"), "names nothing below"),
            (entry("~/a", "~/b") + "mode = \"9\"\n", "octal"),
            (entry("~/a", "~/b") + "mode = \"4755\"\n", "octal"),
            (entry("~/a", "~/b") + "mode = 600\n", "line 7"),
            (entry("~/a", "~/b") + "owner = \"me\"\n", "line 7: unknown field `owner`"),
            ("\n\n[file_snyc]\n".to_owned(), "line 3: unknown field `file_snyc`"),
            ("[[file_sync]]\nhost = \"~/a\"\n".to_owned(), "missing field `guest`"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(parts) && error.contains("config.toml"), "{text}: {error}");
        }
    }
}
