//! What OpenSSH's client is told of machines.

use std::path::{Path, PathBuf};

use super::Store;
use crate::environment;
use crate::error::CliError;

/// The settings for machines, one `Keyword Value` each (ssh_config(5)).
#[derive(Debug)]
pub struct Options(Vec<(&'static str, String)>);

impl Options {
    /// Makes them for this user and this program; `new_host_key` accepts a key that has changed.
    pub fn new(store: &Store, new_host_key: bool) -> Result<Self, CliError> {
        let program = std::env::current_exe()
            .map_err(|error| CliError::new("cannot find banger's own file").because(&error))?;
        let mut proxy = vec![shell_word(&path_text(&program)?)];
        if environment::is_direct_chosen() {
            proxy.push("--direct".to_owned());
        }
        proxy.extend(["internal", "ssh-proxy"].map(str::to_owned));
        if new_host_key {
            proxy.push("--new-host-key".to_owned());
        }
        // The name as the user typed it, which known_hosts has, too.
        let proxy = format!("{} -- '%n'", proxy.join(" ").replace('%', "%%"));
        Ok(Self(vec![
            ("ProxyCommand", proxy),
            ("User", "root".to_owned()),
            ("IdentityFile", quoted(&store.key_path())?),
            ("IdentitiesOnly", "yes".to_owned()),
            ("UserKnownHostsFile", quoted(&store.known_hosts_path())?),
            ("GlobalKnownHostsFile", "/dev/null".to_owned()),
            ("StrictHostKeyChecking", "yes".to_owned()),
            ("HostKeyAlgorithms", "ssh-ed25519".to_owned()),
            ("UpdateHostKeys", "no".to_owned()),
            ("CheckHostIP", "no".to_owned()),
            // What the user has for all hosts is not for a stranger: keys of an agent, the display,
            // and passwords that it may ask for. Options of the command line come before these.
            ("ForwardAgent", "no".to_owned()),
            ("ForwardX11", "no".to_owned()),
            ("Tunnel", "no".to_owned()),
            ("PreferredAuthentications", "publickey".to_owned()),
            ("PasswordAuthentication", "no".to_owned()),
            ("KbdInteractiveAuthentication", "no".to_owned()),
            ("GSSAPIAuthentication", "no".to_owned()),
        ]))
    }

    /// Returns them as arguments of ssh, with another user where one is given.
    pub fn arguments(&self, user: Option<&str>) -> Vec<String> {
        let user = user.map(|user| format!("User={user}"));
        let own = self.0.iter().map(|(key, value)| format!("{key}={value}"));
        user.into_iter().chain(own).flat_map(|option| ["-o".to_owned(), option]).collect()
    }

    /// Returns the file for `Include`.
    pub fn file(&self) -> String {
        let mut text = format!(
            "# Made by banger ssh-config --install, which replaces it; --uninstall removes it.\nHost *{}\n",
            super::DOMAIN
        );
        for (key, value) in &self.0 {
            text.push_str(&format!("    {key} {value}\n"));
        }
        text
    }
}

/// Returns a path as text, which is all that OpenSSH's configuration can hold.
fn path_text(path: &Path) -> Result<String, CliError> {
    let text = path.to_str().filter(|text| {
        !text.contains(|c: char| c.is_control() || c == '"') && !text.contains("${")
    });
    text.map(str::to_owned).ok_or_else(|| {
        CliError::new(format!("OpenSSH's configuration cannot name {}", path.display()))
            .hint("set XDG_STATE_HOME to a directory of letters, digits and slashes")
    })
}

/// Quotes a path whose `%` would begin a token.
pub(super) fn quoted(path: &Path) -> Result<String, CliError> {
    path_text(path).map(|text| format!("\"{}\"", text.replace('%', "%%")))
}

/// Makes one word of a shell, quoted where it needs to be.
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Where the file for `Include` is.
pub(super) fn file_path() -> Result<PathBuf, CliError> {
    environment::config_directory().map(|directory| directory.join("ssh_config"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_are_quoted_or_refused() {
        assert_eq!(quoted(Path::new("/a b/100%")).unwrap(), "\"/a b/100%%\"");
        assert_eq!(shell_word("/it's"), r"'/it'\''s'");
        assert_eq!(shell_word("/x; rm"), "'/x; rm'");
        assert_eq!((shell_word("/usr/bin"), shell_word("")), ("/usr/bin".into(), "''".into()));
        for bad in ["/a\"b", "/a\nb", "/${HOME}"] {
            assert!(quoted(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
