//! Ports of guests that are published on the host.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// TCP or UDP.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum PortProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Why a text is no publication of a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicationError {
    /// It is not written as one.
    #[error(
        "write [HOST_IP:]HOST:GUEST[/udp], such as 8080:80, 0.0.0.0:8080:80 or [::1]:5353:53/udp"
    )]
    Form,
    /// A port is out of range.
    #[error("the guest's port is from 1 to 65535, the host's too, or 0 for any that is free")]
    Port,
    /// An IPv6 address without brackets, or what is none.
    #[error("the host's address is an IP address, IPv6 in brackets: 127.0.0.1, [::1]")]
    Address,
    /// Neither TCP nor UDP.
    #[error("the protocol is tcp or udp")]
    Protocol,
}

/// A port of a guest that is reached through a port of the host: `127.0.0.1:8080:80/tcp`.
///
/// The host's address is 127.0.0.1 and the protocol TCP where they are not written. The host's port
/// 0 is any that is free, another one at each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Publication {
    /// The host's address and port.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: NonZeroU16,
    /// TCP or UDP.
    pub protocol: PortProtocol,
}

/// Takes `/tcp` or `/udp` off the end.
fn split_protocol(text: &str) -> Result<(&str, PortProtocol), PublicationError> {
    match text.rsplit_once('/') {
        None => Ok((text, PortProtocol::Tcp)),
        Some((rest, "tcp")) => Ok((rest, PortProtocol::Tcp)),
        Some((rest, "udp")) => Ok((rest, PortProtocol::Udp)),
        Some(_) => Err(PublicationError::Protocol),
    }
}

/// Reads a port number: digits alone.
fn port(text: &str) -> Result<u16, PublicationError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PublicationError::Form);
    }
    text.parse().map_err(|_| PublicationError::Port)
}

/// Reads `HOST_IP`, where an IPv6 address has brackets.
fn address(text: &str) -> Result<IpAddr, PublicationError> {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match inner {
        Some(inner) => inner.parse().map(IpAddr::V6).map_err(|_| PublicationError::Address),
        None => text.parse().map(IpAddr::V4).map_err(|_| PublicationError::Address),
    }
}

impl FromStr for Publication {
    type Err = PublicationError;

    fn from_str(text: &str) -> Result<Self, PublicationError> {
        let (rest, protocol) = split_protocol(text)?;
        let (rest, guest) = rest.rsplit_once(':').ok_or(PublicationError::Form)?;
        let guest = NonZeroU16::new(port(guest)?).ok_or(PublicationError::Port)?;
        let (ip, host) = match rest.rsplit_once(':') {
            Some((ip, host)) => (address(ip)?, host),
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
        };
        Ok(Self { host: SocketAddr::new(ip, port(host)?), guest, protocol })
    }
}

impl fmt::Display for Publication {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&format!("{}:{}/{}", self.host, self.guest, self.protocol))
    }
}

impl TryFrom<String> for Publication {
    type Error = PublicationError;

    fn try_from(text: String) -> Result<Self, PublicationError> {
        text.parse()
    }
}

impl From<Publication> for String {
    fn from(publication: Publication) -> Self {
        publication.to_string()
    }
}

/// Which published ports are meant: `8080`, `8080/udp`, or one as it was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PublishedPort {
    /// The host's port on whatever address.
    Host(NonZeroU16, PortProtocol),
    /// This one.
    Exactly(Publication),
}

impl PublishedPort {
    /// Whether `publication`, whose host's port is `bound` while it is open, is meant.
    #[must_use]
    pub fn is(&self, publication: &Publication, bound: Option<u16>) -> bool {
        match self {
            Self::Host(port, protocol) => {
                let known = bound.unwrap_or(publication.host.port());
                known == port.get() && publication.protocol == *protocol
            }
            Self::Exactly(other) => {
                let mut shown = *publication;
                shown.host.set_port(bound.unwrap_or(publication.host.port()));
                other == publication || *other == shown
            }
        }
    }
}

impl FromStr for PublishedPort {
    type Err = PublicationError;

    fn from_str(text: &str) -> Result<Self, PublicationError> {
        let (rest, protocol) = split_protocol(text)?;
        if rest.contains(':') {
            return text.parse().map(Self::Exactly);
        }
        let port = NonZeroU16::new(port(rest)?).ok_or(PublicationError::Port)?;
        Ok(Self::Host(port, protocol))
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(port, protocol) => formatter.pad(&format!("{port}/{protocol}")),
            Self::Exactly(publication) => publication.fmt(formatter),
        }
    }
}

impl TryFrom<String> for PublishedPort {
    type Error = PublicationError;

    fn try_from(text: String) -> Result<Self, PublicationError> {
        text.parse()
    }
}

impl From<PublishedPort> for String {
    fn from(port: PublishedPort) -> Self {
        port.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publications_are_read_and_written_in_full() {
        for (text, full) in [
            ("8080:80", "127.0.0.1:8080:80/tcp"),
            ("8080:80/tcp", "127.0.0.1:8080:80/tcp"),
            ("0:80", "127.0.0.1:0:80/tcp"),
            ("0.0.0.0:5353:53/udp", "0.0.0.0:5353:53/udp"),
            ("[::1]:65535:65535", "[::1]:65535:65535/tcp"),
        ] {
            let parsed: Publication = text.parse().unwrap();
            assert_eq!(parsed.to_string(), full);
            assert_eq!(full.parse::<Publication>().unwrap(), parsed);
        }
    }

    #[test]
    fn what_is_no_publication_is_refused_with_the_rule() {
        for (text, error) in [
            ("", PublicationError::Form),
            ("80", PublicationError::Form),
            ("8080:", PublicationError::Form),
            (":80", PublicationError::Form),
            ("8080:+80", PublicationError::Form),
            ("8080: 80", PublicationError::Form),
            ("8080:0", PublicationError::Port),
            ("8080:65536", PublicationError::Port),
            ("99999:80", PublicationError::Port),
            ("::1:8080:80", PublicationError::Address),
            ("localhost:8080:80", PublicationError::Address),
            ("[127.0.0.1]:8080:80", PublicationError::Address),
            (":8080:80", PublicationError::Address),
            ("8080:80/sctp", PublicationError::Protocol),
            ("8080:80/", PublicationError::Protocol),
        ] {
            assert_eq!(text.parse::<Publication>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_published_port_is_named_by_its_host_port_or_in_full() {
        let any: Publication = "0:80".parse().unwrap();
        let fixed: Publication = "0.0.0.0:8080:80".parse().unwrap();
        let is = |text: &str, publication, bound| {
            text.parse::<PublishedPort>().unwrap().is(publication, bound)
        };
        assert!(is("8080", &fixed, Some(8080)) && is("8080", &fixed, None));
        assert!(is("0.0.0.0:8080:80", &fixed, None) && !is("8080:80", &fixed, None));
        assert!(!is("8080/udp", &fixed, None));
        assert!(is("4711", &any, Some(4711)) && !is("4711", &any, None));
        assert!(is("0:80", &any, Some(4711)) && is("127.0.0.1:4711:80/tcp", &any, Some(4711)));
        for bad in ["", "0", "x", "8080/x", "80:"] {
            assert!(bad.parse::<PublishedPort>().is_err(), "{bad}");
        }
    }
}
