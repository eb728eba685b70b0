//! Hosts of registries, and where else their images may be had.

use std::fmt;
use std::str::FromStr;

use crate::oci_reference::check_registry;
use crate::string_type::checked_string;

/// Why the host or address of a registry was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No host.
    #[error("{0:?} is no registry: a host name or address, with :PORT where it is not 443")]
    Host(String),
    /// No address of a registry.
    #[error("{0:?} is no registry's address, such as https://mirror.example:5000")]
    Address(String),
    /// No mirror.
    #[error("{0:?} is no mirror, such as docker.io=https://mirror.example")]
    Mirror(String),
}

fn check_host(text: &str) -> Result<(), RegistryError> {
    check_registry(text).map_err(|_| RegistryError::Host(text.chars().take(64).collect()))
}

checked_string! {
    /// A registry's host as it stands in a reference, with its port where one is given:
    /// `ghcr.io`, `localhost:5000`.
    RegistryHost, RegistryError, check_host
}

impl RegistryHost {
    /// Returns the host without its port: `localhost`, `[::1]`.
    #[must_use]
    pub fn host(&self) -> &str {
        match self.as_str().rsplit_once(':') {
            Some((host, _)) if !host.starts_with('[') || host.ends_with(']') => host,
            _ => self.as_str(),
        }
    }

    /// Returns the port, where one is given.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.as_str()[self.host().len()..].strip_prefix(':')?.parse().ok()
    }

    /// Returns whether this is this machine: `localhost`, 127.0.0.0/8 or `[::1]`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        host.eq_ignore_ascii_case("localhost")
            || address
                .unwrap_or(host)
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }
}

fn check_address(text: &str) -> Result<(), RegistryError> {
    let refused = || RegistryError::Address(text.chars().take(80).collect());
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    check_host(rest.ok_or_else(refused)?).map_err(|_| refused())
}

checked_string! {
    /// Where a registry listens: `https://HOST[:PORT]` or `http://HOST[:PORT]`, without a path.
    RegistryAddress, RegistryError, check_address
}

impl RegistryAddress {
    /// Returns whether the connection is encrypted.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.as_str().starts_with("https:")
    }

    /// Returns the host, with its port where one is given.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.as_str().split_once("://").map_or("", |(_, authority)| authority)
    }
}

/// A place that is asked for a registry's images before the registry itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegistryMirror {
    /// Whose images it has.
    pub registry: RegistryHost,
    /// Where it is.
    pub address: RegistryAddress,
}

impl FromStr for RegistryMirror {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (registry, address) = text
            .split_once('=')
            .ok_or_else(|| RegistryError::Mirror(text.chars().take(80).collect()))?;
        Ok(Self { registry: registry.parse()?, address: address.parse()? })
    }
}

impl fmt::Display for RegistryMirror {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.registry, self.address)
    }
}

impl TryFrom<String> for RegistryMirror {
    type Error = RegistryError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RegistryMirror> for String {
    fn from(mirror: RegistryMirror) -> Self {
        mirror.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_ports_and_may_be_this_machine() {
        for (text, host, port, loopback) in [
            ("ghcr.io", "ghcr.io", None, false),
            ("localhost:5000", "localhost", Some(5000), true),
            ("127.1.2.3", "127.1.2.3", None, true),
            ("[::1]:80", "[::1]", Some(80), true),
            ("[fd00::1]", "[fd00::1]", None, false),
            ("localhost.example", "localhost.example", None, false),
            ("128.0.0.1:1", "128.0.0.1", Some(1), false),
        ] {
            let parsed: RegistryHost = text.parse().unwrap();
            assert_eq!((parsed.host(), parsed.port()), (host, port), "{text}");
            assert_eq!(parsed.is_loopback(), loopback, "{text}");
        }
    }

    #[test]
    fn mirrors_are_written_and_read_back() {
        let text = "docker.io=https://mirror.example:5000";
        let mirror: RegistryMirror = text.parse().unwrap();
        assert_eq!(mirror.to_string(), text);
        assert!(mirror.address.is_https());
        assert_eq!(mirror.address.authority(), "mirror.example:5000");
        for bad in [
            "",
            "docker.io",
            "docker.io=",
            "docker.io=mirror",
            "docker.io=ftp://m",
            "=https://m",
            "docker.io=https://m/path",
            "docker.io=https://user@m",
            "docker.io=https://",
            "docker.io=https://m?x",
            "a b=https://m",
        ] {
            assert!(bad.parse::<RegistryMirror>().is_err(), "{bad:?}");
        }
    }
}
