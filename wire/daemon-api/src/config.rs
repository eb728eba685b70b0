//! The daemon's settings: typed keys, the same for the command line, the API and the file.

use std::net::IpAddr;
use std::path::PathBuf;

use banger_types::{KernelName, RegistryHost, RegistryMirror, Subnet};
use serde::{Deserialize, Serialize};

/// All settings; what is missing has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What VMs boot.
    pub kernel: KernelConfig,
    /// The guests' network.
    pub network: NetworkConfig,
    /// How registries are reached.
    pub registry: RegistryConfig,
    /// How users log in by SSH.
    pub ssh: SshConfig,
    /// How much of the host's disk VMs may have.
    pub storage: StorageConfig,
}

/// How much of the host's disk VMs may have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Whether one VM may have disks that the host could not hold once they are full.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub overcommit: bool,
}

/// How users log in by SSH.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SshConfig {
    /// The private key, beside which is its `.pub`. The command line reads them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// How registries are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Where else images may be had, asked in this order before their own registry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<RegistryMirror>,
    /// Registries that are spoken to in plain HTTP; those on this machine are, too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub insecure: Vec<RegistryHost>,
    /// A file of certificate authorities beside the host's own, PEM. The command line reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// Settings of what VMs boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KernelConfig {
    /// The kernel of VMs for which neither they nor their image say another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<KernelName>,
}

/// Settings of the guests' network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Which network VMs get.
    pub mode: NetworkMode,
    /// The bridge's subnet; a free one is chosen without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
    /// Who answers guests' questions for names outside; the host's own resolvers without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// How many taps wait for VMs.
    #[serde(skip_serializing_if = "is_zero")]
    pub tap_pool: u16,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u16) -> bool {
    *number == 0
}

/// Which network VMs get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// The bridge where there can be one, else QEMU's own network.
    #[default]
    Auto,
    /// The bridge, or no VM starts.
    Bridge,
    /// QEMU's own network.
    User,
}

impl NetworkMode {
    const ALL: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("bridge", Self::Bridge), ("user", Self::User)];

    /// Returns the word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).map_or("auto", |(word, _)| word)
    }
}

/// The most name servers that can be set.
const MOST_SERVERS: usize = 3;
/// The most taps that wait: a bridge has at most 1,024 ports (`BR_MAX_PORTS` of Linux).
const MOST_TAPS: u16 = 256;

/// The most mirrors, and the most insecure registries.
const MOST_REGISTRIES: usize = 32;

/// Why a setting was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No setting has this key.
    #[error("no setting is called {key:?}; there are {}", known())]
    Key {
        /// The key.
        key: String,
    },
    /// The value breaks the key's rule.
    #[error("{key} cannot be {value:?}: {rule}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// The rule.
        rule: String,
    },
}

/// The key of [`KernelConfig::default`].
pub const KERNEL_DEFAULT: &str = "kernel.default";

/// The key of [`SshConfig::key`].
pub const SSH_KEY: &str = "ssh.key";

/// The key of [`StorageConfig::overcommit`].
pub const STORAGE_OVERCOMMIT: &str = "storage.overcommit";

/// The settings' keys and what each is for.
pub const KEYS: [(&str, &str); 10] = [
    (
        KERNEL_DEFAULT,
        "the kernel of machines for which nothing else is said, or auto: banger's own choice",
    ),
    ("network.mode", "auto, bridge or user: which network machines get"),
    ("network.subnet", "the bridge's address and prefix such as 172.16.0.1/24, or auto"),
    ("network.dns", "name servers for guests with NAT, with commas, or auto: the host's own"),
    ("network.tap_pool", "how many taps wait for machines that start; 0, which is auto, for none"),
    (
        "registry.mirrors",
        "REGISTRY=URL, with commas: asked for that registry's images before it; auto for none",
    ),
    (
        "registry.insecure",
        "registries spoken to in plain HTTP, with commas, beside those on this host; auto for none",
    ),
    (
        "registry.ca_file",
        "a PEM file of certificate authorities to know registries by, beside the host's own, or auto",
    ),
    (
        SSH_KEY,
        "your private key for machines, with its .pub beside it, or auto: one of banger's own",
    ),
    (
        STORAGE_OVERCOMMIT,
        "true lets one machine have larger disks than this host could hold; false, which is auto, not",
    ),
];

fn known() -> String {
    KEYS.map(|(key, _)| key).join(", ")
}

fn key(text: &str) -> Result<&'static str, ConfigError> {
    let found = KEYS.iter().find(|(key, _)| *key == text);
    found
        .map(|(key, _)| *key)
        .ok_or_else(|| ConfigError::Key { key: text.chars().take(64).collect() })
}

/// The word for a default.
const AUTO: &str = "auto";

impl Config {
    /// Returns a setting as text.
    pub fn get(&self, name: &str) -> Result<String, ConfigError> {
        let auto = || AUTO.to_owned();
        Ok(match key(name)? {
            KERNEL_DEFAULT => self.kernel.default.as_ref().map_or_else(auto, ToString::to_string),
            "network.mode" => self.network.mode.word().to_owned(),
            "network.subnet" => self.network.subnet.map_or_else(auto, |subnet| subnet.to_string()),
            "network.tap_pool" if self.network.tap_pool == 0 => auto(),
            "network.tap_pool" => self.network.tap_pool.to_string(),
            "registry.mirrors" => list(&self.registry.mirrors),
            "registry.insecure" => list(&self.registry.insecure),
            "registry.ca_file" => path_text(self.registry.ca_file.as_ref()),
            SSH_KEY => path_text(self.ssh.key.as_ref()),
            STORAGE_OVERCOMMIT if self.storage.overcommit => true.to_string(),
            STORAGE_OVERCOMMIT => auto(),
            _ => list(&self.network.dns),
        })
    }

    /// Changes a setting; `auto` brings its default back. Nothing is changed on a failure.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let key = key(name)?;
        let refused = |rule: String| ConfigError::Value {
            key,
            value: value.chars().take(64).collect(),
            rule,
        };
        match key {
            KERNEL_DEFAULT if value == AUTO => self.kernel.default = None,
            KERNEL_DEFAULT => {
                let name = value.parse::<KernelName>();
                self.kernel.default = Some(name.map_err(|error| refused(error.to_string()))?);
            }
            "network.mode" => {
                let found = NetworkMode::ALL.iter().find(|(word, _)| *word == value);
                let found = found.ok_or_else(|| refused("use auto, bridge or user".to_owned()))?;
                self.network.mode = found.1;
            }
            "network.subnet" if value == AUTO => self.network.subnet = None,
            "network.subnet" => {
                let subnet = value.parse::<Subnet>().map_err(|error| refused(error.to_string()))?;
                self.network.subnet = Some(subnet);
            }
            "network.tap_pool" if value == AUTO => self.network.tap_pool = 0,
            "network.tap_pool" => {
                let number = value.parse::<u16>().ok().filter(|number| *number <= MOST_TAPS);
                let rule = || format!("a number of taps from 0 to {MOST_TAPS}");
                self.network.tap_pool = number.ok_or_else(|| refused(rule()))?;
            }
            "registry.mirrors" if value == AUTO => self.registry.mirrors.clear(),
            "registry.mirrors" => self.registry.mirrors = registries(value).map_err(refused)?,
            "registry.insecure" if value == AUTO => self.registry.insecure.clear(),
            "registry.insecure" => self.registry.insecure = registries(value).map_err(refused)?,
            "registry.ca_file" if value == AUTO => self.registry.ca_file = None,
            "registry.ca_file" => self.registry.ca_file = Some(absolute(value).map_err(refused)?),
            SSH_KEY if value == AUTO => self.ssh.key = None,
            SSH_KEY => self.ssh.key = Some(absolute(value).map_err(refused)?),
            STORAGE_OVERCOMMIT if value == AUTO => self.storage.overcommit = false,
            STORAGE_OVERCOMMIT => {
                let allowed = value.parse().map_err(|_| refused("use true or false".to_owned()))?;
                self.storage.overcommit = allowed;
            }
            _ if value == AUTO => self.network.dns.clear(),
            _ => self.network.dns = servers(value).map_err(refused)?,
        }
        Ok(())
    }
}

fn path_text(path: Option<&PathBuf>) -> String {
    path.map_or_else(|| AUTO.to_owned(), |path| path.display().to_string())
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.is_absolute() && !text.chars().any(char::is_control) {
        true => Ok(path),
        false => Err("an absolute path".to_owned()),
    }
}

/// Writes a list, and its default without entries.
fn list<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return AUTO.to_owned();
    }
    let words: Vec<String> = values.iter().map(ToString::to_string).collect();
    words.join(",")
}

fn registries<T>(text: &str) -> Result<Vec<T>, String>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let words: Vec<&str> = text.split(',').map(str::trim).collect();
    if words.len() > MOST_REGISTRIES {
        return Err(format!("at most {MOST_REGISTRIES} of them"));
    }
    words.into_iter().map(|word| word.parse().map_err(|error: T::Err| error.to_string())).collect()
}

fn servers(text: &str) -> Result<Vec<IpAddr>, String> {
    let servers: Vec<IpAddr> = text
        .split(',')
        .map(|word| word.trim().parse().map_err(|_| format!("{word:?} is no IP address")))
        .collect::<Result<_, String>>()?;
    if servers.len() > MOST_SERVERS {
        return Err(format!("at most {MOST_SERVERS} name servers"));
    }
    match servers.iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
        Some(nobody) => Err(format!("nobody listens at {nobody}")),
        None => Ok(servers),
    }
}

/// One setting: the body of `PATCH /v1/config` and an entry of `GET /v1/config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Its key: `network.subnet`.
    pub key: String,
    /// Its value; `auto` is the default.
    pub value: String,
    /// Where the value is from, in an answer: a file and a line of it, `FILE:LINE`; nothing for the
    /// default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_are_refused_with_the_rule_and_change_nothing() {
        let mut config = Config::default();
        config.set("network.subnet", "10.9.8.1/24").unwrap();
        let before = config.clone();
        for (key, value, part) in [
            ("kernel.default", "../x", "not allowed"),
            ("network.mode", "tap", "auto, bridge or user"),
            ("network.subnet", "10.9.8.0/24", "broadcast"),
            ("network.subnet", "8.8.8.1/24", "lies in"),
            ("network.subnet", "x", "such as 172.16.0.1/24"),
            ("network.dns", "one", "no IP address"),
            ("network.dns", "1.1.1.1,,", "no IP address"),
            ("network.dns", "0.0.0.0", "nobody"),
            ("network.dns", "1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4", "at most 3"),
            ("network.tap_pool", "-1", "from 0 to 256"),
            ("network.tap_pool", "257", "from 0 to 256"),
            ("network.tap_pool", "many", "from 0 to 256"),
            ("registry.mirrors", "docker.io", "no mirror"),
            ("registry.mirrors", "docker.io=https://m/path", "no registry's address"),
            ("registry.insecure", "http://x", "no registry"),
            ("registry.insecure", "", "no registry"),
            ("registry.ca_file", "ca.pem", "absolute"),
            ("ssh.key", "id_ed25519", "absolute"),
            ("storage.overcommit", "yes", "true or false"),
            ("network", "auto", "no setting"),
            ("", "", "network.mode"),
        ] {
            let error = config.set(key, value).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!(config, before);
        assert!(config.get("x").is_err());
    }

    #[test]
    fn settings_read_back_as_they_were_set() {
        let mut config = Config::default();
        for (key, _) in KEYS {
            assert_eq!(config.get(key).unwrap(), "auto");
        }
        for (key, value) in [
            ("kernel.default", "own"),
            ("network.mode", "user"),
            ("network.subnet", "10.9.8.1/24"),
            ("network.dns", "1.1.1.1,fd00::53"),
            ("network.tap_pool", "8"),
            ("registry.mirrors", "docker.io=https://m.example,ghcr.io=http://n.example:5000"),
            ("registry.insecure", "registry.example:5000,10.0.0.1"),
            ("registry.ca_file", "/etc/ssl/corporate.pem"),
            ("ssh.key", "/home/user/.ssh/id_ed25519"),
            ("storage.overcommit", "true"),
        ] {
            config.set(key, value).unwrap();
            assert_eq!(config.get(key).unwrap(), value);
        }
        for (key, _) in KEYS {
            config.set(key, "auto").unwrap();
        }
        assert_eq!(config, Config::default());
    }
}
