//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::install::Install;

pub(crate) const USAGE: &str = "usage: bangerd-root --system | --version | --direct --socket PATH \
    --owner-uid N --owner-gid N --state-dir DIR --runtime-dir DIR --jail-dir DIR";

/// How it was started.
#[derive(Debug)]
pub(crate) enum Arguments {
    /// As a service: all else is in `/etc/banger/install.toml`.
    System,
    /// By root's own command line: the socket, and all else.
    Direct(Box<(PathBuf, Install)>),
    /// To say its version.
    Version,
}

impl Arguments {
    /// Reads the words after the program's name; each option once, none left out.
    pub(crate) fn parse(words: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let words: Vec<OsString> = words.collect();
        let (first, rest) = words.split_first().ok_or(USAGE)?;
        match first.to_str() {
            Some("--system") if rest.is_empty() => Ok(Self::System),
            Some("--version") if rest.is_empty() => Ok(Self::Version),
            Some("--direct") => direct(rest).map(Box::new).map(Self::Direct),
            _ => Err(USAGE.to_owned()),
        }
    }
}

/// A path that is absolute and has neither empty parts nor `.` and `..`.
pub(crate) fn clean_path(path: impl Into<PathBuf>) -> Option<PathBuf> {
    let path = path.into();
    let is_clean = path.is_absolute()
        && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str()
        && !path.components().any(|part| part == std::path::Component::ParentDir);
    is_clean.then_some(path)
}

fn direct(words: &[OsString]) -> Result<(PathBuf, Install), String> {
    let names =
        ["--socket", "--owner-uid", "--owner-gid", "--state-dir", "--runtime-dir", "--jail-dir"];
    let mut values = [const { None }; 6];
    for pair in words.chunks(2) {
        let [name, value] = pair else { return Err(USAGE.to_owned()) };
        let at = names.iter().position(|known| name == known).ok_or(USAGE)?;
        if values[at].replace(value).is_some() {
            return Err(format!("{} is given twice", names[at]));
        }
    }
    let take = |at: usize| values[at].ok_or_else(|| format!("{} is missing", names[at]));
    let path =
        |at: usize| clean_path(take(at)?).ok_or_else(|| format!("{}: no clean path", names[at]));
    let number = |at: usize| {
        let text = take(at)?.to_str().unwrap_or_default();
        text.parse::<u32>().map_err(|_| format!("{}: no number", names[at]))
    };
    let install = Install {
        owner_uid: number(1)?,
        owner_gid: number(2)?,
        state_dir: path(3)?,
        runtime_dir: path(4)?,
        jail_dir: path(5)?,
        vmm_files: Vec::new(),
    };
    Ok((path(0)?, install))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Arguments, String> {
        Arguments::parse(text.split(' ').map(OsString::from))
    }

    const GOOD: &str = "--direct --socket /run/x/s --owner-uid 7 --owner-gid 8 --state-dir /s \
                        --runtime-dir /r --jail-dir /j";

    #[test]
    fn each_option_is_given_once_and_none_is_left_out() {
        assert!(matches!(parse("--system"), Ok(Arguments::System)));
        let Ok(Arguments::Direct(direct)) = parse(GOOD) else { panic!() };
        let (socket, install) = *direct;
        assert_eq!((install.owner_uid, install.owner_gid), (7, 8));
        let paths = [socket, install.state_dir, install.runtime_dir, install.jail_dir];
        assert_eq!(paths, ["/run/x/s", "/s", "/r", "/j"].map(PathBuf::from));
        for bad in [
            "",
            "--system --direct",
            "--system x",
            "--direct",
            &GOOD.replace("--owner-gid 8 ", ""),
            &GOOD.replace("--owner-gid 8", "--owner-uid 8"),
            &GOOD.replace(" 7", " -7"),
            &GOOD.replace(" /s ", " s "),
            &GOOD.replace(" /s ", " /a/../s "),
            &GOOD.replace(" /s ", " /a//s "),
            &format!("{GOOD} --x"),
            &format!("{GOOD} --x y"),
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
