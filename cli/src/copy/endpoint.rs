//! What `SRC` and `DST` of a copy mean.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use banger_agent_api::GuestPath;
use banger_types::VmReference;

/// Where a path of a guest that does not begin with a slash begins.
const GUEST_HOME: &[u8] = b"/root";

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A tar stream on standard input or output.
    Stream,
    /// A path of this host.
    Host(PathBuf),
    /// A path of a machine.
    Guest(VmReference, GuestPath),
}

impl Endpoint {
    /// Reads `-`, `VM:PATH`, or a path; what has a slash before its colon is a path.
    pub fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Ok(Self::Stream);
        }
        let colon = bytes.iter().position(|&byte| byte == b':');
        let Some(colon) = colon.filter(|&colon| colon > 0 && !bytes[..colon].contains(&b'/'))
        else {
            return match bytes {
                [] => Err("a path is empty".to_owned()),
                _ => Ok(Self::Host(PathBuf::from(text))),
            };
        };
        let name = String::from_utf8_lossy(&bytes[..colon]);
        let vm = name.parse().map_err(|error| {
            format!("'{name}' before the colon names no machine: {error}; a file is ./{name}:...")
        })?;
        let path = match &bytes[colon + 1..] {
            absolute if absolute.starts_with(b"/") => absolute.to_vec(),
            relative => {
                let relative = relative.strip_prefix(b"~/").unwrap_or(relative);
                let relative = if relative == b"~" { b"" } else { relative };
                [GUEST_HOME, b"/", relative].concat()
            }
        };
        let path = GuestPath::new(path).map_err(|error| format!("the machine's path: {error}"))?;
        Ok(Self::Guest(vm, path))
    }
}

/// What the end of a path says beside its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// It ends in `/.`, or is `.`: of a directory, its contents are meant.
    pub contents: bool,
    /// It ends in a slash: a directory is meant.
    pub directory: bool,
}

impl Ending {
    /// Reads the end of `path`.
    pub fn of(path: &[u8]) -> Self {
        let contents = path == b"." || path.ends_with(b"/.");
        Self { contents, directory: contents || path.ends_with(b"/") }
    }
}

/// Returns a guest's path as one of the host's type.
pub fn as_path(path: &GuestPath) -> &Path {
    Path::new(OsStr::from_bytes(path.as_bytes()))
}

/// Returns a path as one of a guest.
pub fn as_guest(path: &Path) -> Option<GuestPath> {
    GuestPath::new(OsString::from(path).into_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Endpoint, String> {
        Endpoint::parse(OsStr::new(text))
    }

    fn guest(vm: &str, path: &str) -> Result<Endpoint, String> {
        Ok(Endpoint::Guest(vm.parse().unwrap(), path.parse().unwrap()))
    }

    #[test]
    fn what_names_a_machine_and_what_a_file() {
        assert_eq!(parse("-"), Ok(Endpoint::Stream));
        for file in ["a", "./a:b", "/a:b", "a/b:c", ":a", "-x"] {
            assert_eq!(parse(file), Ok(Endpoint::Host(file.into())), "{file}");
        }
        assert_eq!(parse("box:/etc/hosts"), guest("box", "/etc/hosts"));
        assert_eq!(parse("box:a:b"), guest("box", "/root/a:b"));
        assert_eq!(parse("box:"), guest("box", "/root/"));
        assert_eq!(parse("box:~"), guest("box", "/root/"));
        assert_eq!(parse("box:~/a"), guest("box", "/root/a"));
        for bad in ["", "box:../etc", "a b:/x", "box:/a/../b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_end_of_a_path_says_what_is_meant() {
        for (path, contents, directory) in [
            ("a", false, false),
            ("a/", false, true),
            ("a/.", true, true),
            (".", true, true),
            ("a.", false, false),
        ] {
            assert_eq!(Ending::of(path.as_bytes()), Ending { contents, directory }, "{path}");
        }
    }
}
