//! The daemon's settings: typed keys, the same for the command line, the API and the file.

use std::net::IpAddr;

use banger_types::Subnet;
use serde::{Deserialize, Serialize};

/// All settings; what is missing has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The guests' network.
    pub network: NetworkConfig,
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

/// The settings' keys and what each is for.
pub const KEYS: [(&str, &str); 4] = [
    ("network.mode", "auto, bridge or user: which network machines get"),
    ("network.subnet", "the bridge's address and prefix such as 172.16.0.1/24, or auto"),
    ("network.dns", "name servers for guests with NAT, with commas, or auto: the host's own"),
    ("network.tap_pool", "how many taps wait for machines that start; 0, which is auto, for none"),
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
            "network.mode" => self.network.mode.word().to_owned(),
            "network.subnet" => self.network.subnet.map_or_else(auto, |subnet| subnet.to_string()),
            "network.tap_pool" if self.network.tap_pool == 0 => auto(),
            "network.tap_pool" => self.network.tap_pool.to_string(),
            _ if self.network.dns.is_empty() => auto(),
            _ => {
                let servers: Vec<String> =
                    self.network.dns.iter().map(ToString::to_string).collect();
                servers.join(",")
            }
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
            _ if value == AUTO => self.network.dns.clear(),
            _ => self.network.dns = servers(value).map_err(refused)?,
        }
        Ok(())
    }
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
            ("network.mode", "user"),
            ("network.subnet", "10.9.8.1/24"),
            ("network.dns", "1.1.1.1,fd00::53"),
            ("network.tap_pool", "8"),
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
