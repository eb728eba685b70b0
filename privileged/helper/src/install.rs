//! `/etc/banger/install.toml`, as `banger system install` writes it: what the helper reads of it.
//!
//! The file is TOML of one kind only, `key = "text"`, `key = number` and `key = ["text", ...]` on a
//! line each, so that the helper needs no parser of the whole language.

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;

use crate::arguments::clean_path;

/// Whom and where banger was installed for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Install {
    pub(crate) owner_uid: u32,
    pub(crate) owner_gid: u32,
    pub(crate) state_dir: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) jail_dir: PathBuf,
    pub(crate) vmm_files: Vec<PathBuf>,
}

impl FromStr for Install {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut values = HashMap::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) =
                line.split_once('=').ok_or_else(|| format!("not `key = value`: {line:?}"))?;
            if values.insert(key.trim(), value.trim()).is_some() {
                return Err(format!("{} is there twice", key.trim()));
            }
        }
        let value = |key: &str| values.get(key).copied().ok_or_else(|| format!("{key} is missing"));
        let number =
            |key: &str| value(key)?.parse::<u32>().map_err(|_| format!("{key} is no number"));
        let path = |key: &str, or: &str| match values.get(key) {
            Some(value) => absolute(key, value),
            None => Ok(PathBuf::from(or)),
        };
        let files = values.get("vmm_files").copied().unwrap_or("[]");
        let files = files.strip_prefix('[').and_then(|files| files.strip_suffix(']'));
        let files = files.ok_or("vmm_files is no list")?.split(',').map(str::trim);
        Ok(Self {
            owner_uid: number("owner_uid")?,
            owner_gid: number("owner_gid")?,
            state_dir: path("state_dir", "/var/lib/banger")?,
            runtime_dir: path("runtime_dir", "/run/banger")?,
            jail_dir: path("jail_dir", "/var/lib/banger-root/jail")?,
            vmm_files: files
                .filter(|file| !file.is_empty())
                .map(|file| absolute("vmm_files", file))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// A path between quotes, without anything that TOML would read as more than itself.
fn absolute(key: &str, value: &str) -> Result<PathBuf, String> {
    let text = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    let text = text.filter(|text| !text.contains(['"', '\\']) && !text.contains(char::is_control));
    let text = text.ok_or_else(|| format!("{key} is no plain text"))?;
    clean_path(text).ok_or_else(|| format!("{key} is no clean path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# by banger\nowner = \"u\"\nowner_uid = 1000\nowner_gid = 1000\n\
                        vmm_files = [\"/opt/fc/firecracker\", \"/opt/fc/jailer\"]\n";

    #[test]
    fn what_is_left_out_has_its_place() {
        let install: Install = GOOD.parse().unwrap();
        assert_eq!((install.owner_uid, install.owner_gid), (1000, 1000));
        assert_eq!(install.state_dir, PathBuf::from("/var/lib/banger"));
        assert_eq!(install.vmm_files.len(), 2);
    }

    #[test]
    fn what_is_not_plain_is_refused() {
        for bad in [
            "owner_uid = 1000",
            "owner_uid = 1000\nowner_gid = x",
            &format!("{GOOD}owner_uid = 0"),
            &format!("{GOOD}state_dir = \"x\""),
            &format!("{GOOD}state_dir = \"/a/../b\""),
            &format!("{GOOD}state_dir = '/a'"),
            &format!("{GOOD}state_dir = \"/a//b\""),
            &format!("{GOOD}state_dir = \"/a\\u0041\""),
            &format!("{GOOD}words"),
            &GOOD.replace("[\"/opt", "\"/opt"),
        ] {
            assert!(bad.parse::<Install>().is_err(), "{bad}");
        }
    }
}
