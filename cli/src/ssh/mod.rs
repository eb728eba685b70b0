//! SSH into machines: banger's own key and known hosts, and how OpenSSH's client is told of them.
//!
//! The bytes of a connection go through `bangerd` to the guest's agent, which runs an sshd for it
//! (`banger internal ssh-proxy`, a ProxyCommand). The agent says on the way which key its machine
//! has, over a channel that only that machine can be at the other end of; it is written down before
//! the sshd's first byte is passed on. So no key is ever trusted on first use.

mod config;
mod include;
mod known_hosts;
mod proxy;

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use banger_agent_api::PublicKey;
use banger_daemon_api::config::{Config, SSH_KEY, Setting};
use banger_daemon_api::routes;
use banger_types::VmId;
use rustix::fs::FlockOperation;

pub use config::{Options, shell_word};
pub use include::{install, uninstall};
pub use proxy::{proxy, strip_domain};

use crate::client::Client;
use crate::environment;
use crate::error::CliError;

/// OpenSSH's client; Debian has it in `openssh-client`.
pub const SSH: &str = "/usr/bin/ssh";
const KEYGEN: &str = "/usr/bin/ssh-keygen";
/// What makes a name one of a machine.
pub const DOMAIN: &str = ".vm";

/// The user's directory for SSH: the key and the known hosts.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// A key of the user's own (`ssh.key`).
    own_key: Option<PathBuf>,
}

impl Store {
    /// Opens it; makes it, for the user alone, where it is missing.
    pub async fn open(client: &Client) -> Result<Self, CliError> {
        let settings: Vec<Setting> =
            client.get(routes::CONFIG).await.map_err(|error| client.explain(error))?;
        // A daemon of another version may not know it, and one from before has no key.
        let own = settings.iter().find(|setting| setting.key == SSH_KEY);
        let mut config = Config::default();
        let _ = own.map(|setting| config.set(&setting.key, &setting.value));
        let store = Self::at(environment::ssh_directory()?)?;
        Ok(Self { own_key: config.ssh.key, ..store })
    }

    fn at(directory: PathBuf) -> Result<Self, CliError> {
        let failed = |error: &io::Error| {
            CliError::new(format!("cannot make {}", directory.display())).because(error)
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|error| failed(&error))?;
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o700))
            .map_err(|error| failed(&error))?;
        Ok(Self { directory, own_key: None })
    }

    /// Where the private key is.
    pub fn key_path(&self) -> PathBuf {
        self.own_key.clone().unwrap_or_else(|| self.directory.join("id_ed25519"))
    }

    /// Where the machines' keys are written down.
    pub fn known_hosts_path(&self) -> PathBuf {
        self.directory.join("known_hosts")
    }

    /// Keeps other commands out until the file is dropped.
    fn lock(&self) -> Result<File, CliError> {
        let path = self.directory.join("lock");
        let lock = || {
            let file =
                File::options().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            Ok::<_, io::Error>(file)
        };
        lock().map_err(|error| {
            CliError::new(format!("cannot lock {}", path.display())).because(&error)
        })
    }

    /// Returns the public half of the key: of the user's own, or of banger's, which is made where
    /// there is none.
    pub fn public_key(&self) -> Result<PublicKey, CliError> {
        let _lock = self.lock()?;
        let private = self.key_path();
        let mut public = private.clone().into_os_string();
        public.push(".pub");
        let public = PathBuf::from(public);
        if self.own_key.is_none() && !(private.exists() && public.exists()) {
            self.make_key(&private, &public)?;
        }
        let read = || -> Result<PublicKey, Box<dyn std::error::Error>> {
            Ok(std::fs::read_to_string(&public)?.parse()?)
        };
        read().map_err(|error| {
            CliError::new(format!("cannot read the key {}", public.display()))
                .because(error.as_ref())
                .hint(match &self.own_key {
                    Some(_) => {
                        "banger config set ssh.key auto takes one of banger's own".to_owned()
                    }
                    None => format!("rm {} makes banger make another key", private.display()),
                })
        })
    }

    fn make_key(&self, private: &Path, public: &Path) -> Result<(), CliError> {
        let failed = |error: &io::Error| {
            CliError::new(format!("cannot make the key {}", private.display())).because(error)
        };
        let place = tempfile::tempdir_in(&self.directory).map_err(|error| failed(&error))?;
        let new = place.path().join("key");
        let status = Command::new(KEYGEN)
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "banger", "-f"])
            .arg(&new)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .map_err(|error| failed(&error).hint("apt-get install openssh-client"))?;
        if !status.success() {
            return Err(failed(&io::Error::other(format!("{KEYGEN} failed ({status})"))));
        }
        // The private half last: without it both are made anew.
        let moved = std::fs::rename(new.with_extension("pub"), public)
            .and_then(|()| std::fs::rename(&new, private));
        moved.map_err(|error| failed(&error))
    }
}

/// Opens the user's directory, where there is one.
fn opened() -> Result<Option<Store>, CliError> {
    let directory = environment::ssh_directory()?;
    if directory.is_dir() { Store::at(directory).map(Some) } else { Ok(None) }
}

/// Forgets the keys of machines that are gone.
pub fn deleted(vms: &[VmId]) -> Result<(), CliError> {
    match opened()? {
        Some(store) if !vms.is_empty() => store.forget(vms),
        _ => Ok(()),
    }
}

/// Knows a machine by its new name.
pub fn renamed(vm: &VmId, name: &str) -> Result<(), CliError> {
    match opened()? {
        Some(store) => store.rename(vm, &format!("{name}{DOMAIN}")),
        None => Ok(()),
    }
}

/// Replaces a file in one step; `mode` is the new one's where there was none.
fn replace(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let earlier = std::fs::metadata(path).ok();
    let mut file =
        tempfile::Builder::new().prefix(OsStr::new(".banger-")).tempfile_in(directory)?;
    io::Write::write_all(&mut file, text)?;
    let permissions =
        earlier.as_ref().map_or(PermissionsExt::from_mode(mode), |earlier| earlier.permissions());
    file.as_file().set_permissions(permissions)?;
    if let Some(earlier) = earlier {
        use std::os::unix::fs::MetadataExt;
        // Root may change a file of another user's, which stays that user's.
        std::os::unix::fs::fchown(file.as_file(), Some(earlier.uid()), Some(earlier.gid()))?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_the_users_alone() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::at(place.path().join("deep/ssh")).unwrap();
        let key = store.public_key().unwrap();
        assert!(key.as_str().starts_with("ssh-ed25519 "), "{key}");
        assert_eq!(store.public_key().unwrap(), key);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&store.key_path()), 0o600);
        assert_eq!(mode(&place.path().join("deep/ssh")), 0o700);
        std::fs::remove_file(store.key_path()).unwrap();
        assert_ne!(store.public_key().unwrap(), key);
        std::fs::write(store.key_path().with_extension("pub"), "nonsense").unwrap();
        assert!(store.public_key().unwrap_err().message.contains("id_ed25519.pub"));
        // One of the user's own is never made.
        let own = place.path().join("own.key");
        let store = Store { own_key: Some(own.clone()), ..store };
        assert!(store.public_key().unwrap_err().hints[0].contains("ssh.key auto"));
        std::fs::write(place.path().join("own.key.pub"), format!("{key} me")).unwrap();
        assert_eq!((store.public_key().unwrap(), store.key_path()), (key, own));
    }

    #[test]
    fn a_replaced_file_keeps_its_mode() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("f");
        replace(&path, b"one", 0o640).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o604)).unwrap();
        replace(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o604);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
