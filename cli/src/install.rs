//! `/etc/banger/install.toml`: whom banger is installed for.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::CliError;

/// Where it is; only root can write it.
pub const PATH: &str = "/etc/banger/install.toml";

/// What it says.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Install {
    /// The owner's name.
    pub owner: String,
    /// The owner's user id.
    pub owner_uid: u32,
    /// The owner's group id.
    pub owner_gid: u32,
    /// The owner's home directory.
    pub home: PathBuf,
    /// When it was installed, RFC 3339.
    pub installed_at: String,
    /// The version that was installed.
    pub version: String,
}

/// Reads it; none where banger is not installed.
pub fn read() -> Result<Option<Install>, CliError> {
    read_at(Path::new(PATH))
}

fn read_at(path: &Path) -> Result<Option<Install>, CliError> {
    let failed = |error: &dyn std::error::Error| {
        CliError::new(format!("cannot read {}", path.display()))
            .because(&std::io::Error::other(error.to_string()))
            .hint("sudo banger system install writes it anew; --direct does without")
    };
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| failed(&error))?,
    };
    toml::from_str(&text).map(Some).map_err(|error| failed(&error))
}

impl Install {
    /// Writes it down: one plain `key = value` a line, which is all that the root helper reads.
    pub fn to_toml(&self) -> Result<String, CliError> {
        let home = self.home.to_string_lossy();
        for text in [&self.owner, &*home] {
            if text.contains(['"', '\\']) || text.contains(char::is_control) {
                return Err(CliError::new(format!("{text:?} cannot stand in {PATH}")));
            }
        }
        let Self { owner, owner_uid, owner_gid, installed_at, version, .. } = self;
        Ok(format!(
            "# Written by `banger system install`.\n\
             owner = \"{owner}\"\n\
             owner_uid = {owner_uid}\n\
             owner_gid = {owner_gid}\n\
             home = \"{home}\"\n\
             installed_at = \"{installed_at}\"\n\
             version = \"{version}\"\n\
             # Files that may be run as firecracker and jailer, besides those in the usual places:\n\
             # vmm_files = [\"/srv/firecracker/firecracker\", \"/srv/firecracker/jailer\"]\n"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let install = Install {
            owner: "u".to_owned(),
            owner_uid: 1000,
            owner_gid: 1001,
            home: "/home/ü".into(),
            installed_at: "2026-01-01T00:00:00Z".to_owned(),
            version: "1.2.3".to_owned(),
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("install.toml");
        assert_eq!(read_at(&path).unwrap(), None);
        std::fs::write(&path, install.to_toml().unwrap()).unwrap();
        assert_eq!(read_at(&path).unwrap(), Some(install.clone()));
        std::fs::write(&path, "owner = ").unwrap();
        assert!(read_at(&path).is_err());
        let bad = Install { home: "/home/\"".into(), ..install };
        assert!(bad.to_toml().is_err());
    }
}
