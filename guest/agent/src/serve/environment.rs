//! The environment an exec starts with, and where its command is looked up.

use std::collections::BTreeMap;
use std::ffi::CString;

use banger_agent_api::{Argument, EnvironmentEntry, ExecCall, PtyCall};

use super::users::User;

/// What login programs give root and everyone else (Debian's /etc/login.defs).
const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const USER_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";

/// Name and value, as bytes.
pub(super) type Environment = BTreeMap<Vec<u8>, Vec<u8>>;

/// Makes the environment: defaults, then /etc/environment, then the image's, then what the call
/// asks for.
pub(super) fn build(
    user: &User,
    call: &ExecCall,
    etc_environment: &str,
    image: &[EnvironmentEntry],
) -> Environment {
    use std::os::unix::ffi::OsStrExt;
    let path = if user.identity.uid == 0 { ROOT_PATH } else { USER_PATH };
    let mut environment = Environment::new();
    let mut set = |name: &str, value: &[u8]| {
        environment.insert(name.as_bytes().to_vec(), value.to_vec());
    };
    set("PATH", path.as_bytes());
    set("HOME", user.home.as_os_str().as_bytes());
    set("USER", user.name.as_bytes());
    set("LOGNAME", user.name.as_bytes());
    set("SHELL", user.shell.as_bytes());
    set("LANG", b"C.UTF-8");
    for (name, value) in etc_environment.lines().filter_map(parse_line) {
        set(name, value.as_bytes());
    }
    if let Some(pty) = &call.pty {
        set("TERM", pty.term.as_ref().map_or(b"xterm", Argument::as_bytes));
    }
    for (name, value) in image.iter().chain(&call.env).filter_map(split) {
        environment.insert(name.to_vec(), value.to_vec());
    }
    environment
}

/// Makes the environment of the main process: what container engines give one, then the image's.
pub(super) fn of_main(
    user: &User,
    pty: Option<&PtyCall>,
    image: &[EnvironmentEntry],
) -> Environment {
    let hostname = rustix::system::uname().nodename().to_bytes().to_vec();
    let mut environment = Environment::from([
        (b"PATH".to_vec(), ROOT_PATH.as_bytes().to_vec()),
        (b"HOME".to_vec(), user.home.as_os_str().as_encoded_bytes().to_vec()),
        (b"HOSTNAME".to_vec(), hostname),
    ]);
    if let Some(pty) = pty {
        let term = pty.term.as_ref().map_or(&b"xterm"[..], Argument::as_bytes);
        environment.insert(b"TERM".to_vec(), term.to_vec());
    }
    for (name, value) in image.iter().filter_map(split) {
        environment.insert(name.to_vec(), value.to_vec());
    }
    environment
}

fn split(entry: &EnvironmentEntry) -> Option<(&[u8], &[u8])> {
    let bytes = entry.as_bytes();
    let position = bytes.iter().position(|&byte| byte == b'=')?;
    Some((&bytes[..position], &bytes[position + 1..]))
}

/// Parses one line as pam_env does: `NAME=VALUE`, `export` allowed, matching quotes taken off.
fn parse_line(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once('=')?;
    let valid = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !value.contains('\0');
    let unquoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value);
    valid.then_some((name, unquoted))
}

/// Writes the environment for execve. Entries come from types without NUL, so none is lost.
pub(super) fn to_strings(environment: &Environment) -> Vec<CString> {
    environment
        .iter()
        .filter_map(|(name, value)| CString::new([name, &b"="[..], value].concat()).ok())
        .collect()
}

/// Lists where to look for a command, as execvp(3) does: itself if it has a slash, else each
/// directory of PATH, an empty one being the current directory.
pub(super) fn candidates(command: &Argument, environment: &Environment) -> Vec<CString> {
    const MOST: usize = 256;
    let name = command.as_bytes();
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains(&b'/') {
        return CString::new(name).into_iter().collect();
    }
    let path = environment.get(&b"PATH"[..]).map_or(&b"/usr/bin:/bin"[..], Vec::as_slice);
    path.split(|&byte| byte == b':')
        .take(MOST)
        .filter_map(|directory| {
            let directory = if directory.is_empty() { b"." } else { directory };
            CString::new([directory, b"/", name].concat()).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_guest_sys::Identity;

    fn user(uid: u32) -> User {
        let identity = Identity { uid, gid: uid, groups: vec![] };
        User { name: "dev".into(), home: "/home/dev".into(), shell: "/bin/sh".into(), identity }
    }

    #[test]
    fn later_sources_win() {
        let call = ExecCall {
            env: vec!["LANG=de".parse().unwrap(), "A=1=2".parse().unwrap(), "B=".parse().unwrap()],
            ..ExecCall::default()
        };
        let environment = build(
            &user(1000),
            &call,
            "# c\nLANG=\"en\"\nexport X='y'\nIMAGE=no\nbad name=1\n=z\n",
            &["IMAGE=1".parse().unwrap(), "B=image".parse().unwrap()],
        );
        let strings: Vec<String> =
            to_strings(&environment).into_iter().map(|s| s.into_string().unwrap()).collect();
        for expected in ["LANG=de", "A=1=2", "B=", "X=y", "IMAGE=1", "HOME=/home/dev", "USER=dev"] {
            assert!(strings.iter().any(|entry| entry == expected), "{expected} in {strings:?}");
        }
        assert!(!strings.iter().any(|entry| entry.starts_with("TERM=") || entry.contains("bad")));
    }

    #[test]
    fn a_main_process_has_the_images_environment_and_nothing_of_a_login() {
        let image = ["PATH=/app".parse().unwrap(), "A=".parse().unwrap()];
        let environment = of_main(&user(1000), None, &image);
        let names: Vec<String> =
            environment.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        assert_eq!(names, ["A", "HOME", "HOSTNAME", "PATH"]);
        assert_eq!(environment[&b"PATH"[..]], b"/app");
        assert_eq!(environment[&b"HOME"[..]], b"/home/dev");
    }

    #[test]
    fn commands_are_looked_up_as_execvp_does() {
        let environment = Environment::from([(b"PATH".to_vec(), b"/a::/b".to_vec())]);
        let list = |name: &str| candidates(&name.parse().unwrap(), &environment);
        assert_eq!(list("x"), [c"/a/x".to_owned(), c"./x".to_owned(), c"/b/x".to_owned()]);
        assert_eq!(list("./x"), [c"./x".to_owned()]);
        assert!(list("").is_empty());
    }
}
