//! How registries are reached: what the host's owner set, and what one request brings along.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use banger_types::{OciReference, RegistryAddress, RegistryHost, RegistryMirror};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::credentials::{Credentials, Secret};

/// The host that answers for `docker.io`.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// What the owner set.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where else images may be had, asked in this order before their own registry.
    pub mirrors: Vec<RegistryMirror>,
    /// Registries that are spoken to in plain HTTP; those on this machine are, too.
    pub insecure: Vec<RegistryHost>,
    /// How long things may take.
    pub deadlines: Deadlines,
}

impl Settings {
    /// Returns whether plain HTTP may be spoken to this host.
    pub(crate) fn is_plain(&self, host: &RegistryHost) -> bool {
        host.is_loopback() || self.insecure.contains(host)
    }

    /// Returns where to ask for an image, in order; the registry itself is the last.
    pub(crate) fn places(&self, reference: &OciReference) -> Vec<Place> {
        let Ok(registry) = reference.registry().parse::<RegistryHost>() else { return Vec::new() };
        let mirrors = self.mirrors.iter().filter(|mirror| mirror.registry == registry);
        let mut places: Vec<Place> = mirrors
            .filter_map(|mirror| {
                let host = mirror.address.authority().parse().ok()?;
                Some(Place { address: mirror.address.clone(), host })
            })
            .collect();
        let scheme = if self.is_plain(&registry) { "http" } else { "https" };
        let authority = match registry.as_str() {
            banger_types::DEFAULT_REGISTRY => DOCKER_HUB,
            other => other,
        };
        if let Ok(address) = format!("{scheme}://{authority}").parse() {
            places.push(Place { address, host: registry });
        }
        places
    }
}

/// A registry or mirror that has an image.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Where it listens.
    pub(crate) address: RegistryAddress,
    /// Whose credentials it gets.
    pub(crate) host: RegistryHost,
}

/// How long things may take, and what is slow. Each wait has one.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// A connection: name, TCP, proxy and TLS.
    pub connect: Duration,
    /// The head of an answer.
    pub answer: Duration,
    /// The body of a manifest, token or configuration in all.
    pub document: Duration,
    /// The next bytes of a layer.
    pub stall: Duration,
    /// In this time a layer must advance by `least`.
    pub window: Duration,
    /// See `window`, in bytes.
    pub least: u64,
    /// In this time, pauses and repetitions included, a layer must bring `floor`, or the pull ends.
    pub floor_window: Duration,
    /// See `floor_window`, in bytes; more for large layers.
    pub floor: u64,
    /// How often a request is repeated that failed for a reason that may pass. A layer that has
    /// advanced since counts anew.
    pub retries: u32,
    /// The pause before the first repetition; each further one is twice as long.
    pub pause: Duration,
    /// The longest pause that a server may ask for (`Retry-After`).
    pub longest_pause: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            answer: Duration::from_secs(60),
            document: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            window: Duration::from_secs(120),
            least: 64 << 10,
            floor_window: Duration::from_secs(900),
            floor: 3 << 20,
            retries: 5,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(120),
        }
    }
}

/// How many `floor_window`s a layer has at most: a week of them.
const MOST_WINDOWS: u64 = 7 * 24 * 4;

impl Deadlines {
    /// Returns how many bytes of a layer of `size` must come in each `floor_window`.
    pub(crate) fn floor_of(&self, size: u64) -> u64 {
        self.floor.max(size / MOST_WINDOWS)
    }
}

/// What one request brings along.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// For the registry and its mirrors.
    pub credentials: Vec<Credentials>,
    /// The proxies of whoever asks.
    pub proxies: Proxies,
    /// Certificate authorities beside the host's own, PEM.
    pub authorities: Option<String>,
}

/// Why a proxy was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is no proxy's address: http://[USER:PASSWORD@]HOST[:PORT]")]
pub struct ProxyError {
    /// The variable.
    pub name: &'static str,
}

/// The proxies that the environment names: `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` as curl has
/// them. The value may hold a password, so it is not shown.
#[derive(Clone, Default)]
pub struct Proxies {
    https: Option<Proxy>,
    http: Option<Proxy>,
    exempt: Vec<String>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Proxies")
            .field("https", &self.https.as_ref().map(|proxy| &proxy.host))
            .field("http", &self.http.as_ref().map(|proxy| &proxy.host))
            .field("exempt", &self.exempt)
            .finish()
    }
}

/// A proxy that speaks plain HTTP to us.
#[derive(Clone, Debug)]
pub(crate) struct Proxy {
    pub(crate) host: RegistryHost,
    /// The value of `Proxy-Authorization`.
    pub(crate) authorization: Option<Secret>,
}

impl Proxies {
    /// Takes the values of `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`.
    ///
    /// # Errors
    /// A value that names no HTTP proxy.
    pub fn new(
        https: Option<&str>,
        http: Option<&str>,
        exempt: Option<&str>,
    ) -> Result<Self, ProxyError> {
        let parse = |name, value: Option<&str>| {
            let value = value.map(str::trim).filter(|value| !value.is_empty());
            value.map(|value| proxy(value).ok_or(ProxyError { name })).transpose()
        };
        let words = exempt.unwrap_or_default().split([',', ' ']).map(str::trim);
        let words = words.filter(|word| !word.is_empty()).take(256);
        Ok(Self {
            https: parse("HTTPS_PROXY", https)?,
            http: parse("HTTP_PROXY", http)?,
            exempt: words.map(str::to_ascii_lowercase).collect(),
        })
    }

    /// Returns the proxy for a host, if there is one. This machine is never behind one.
    pub(crate) fn of(&self, https: bool, host: &RegistryHost) -> Option<&Proxy> {
        let proxy = if https { self.https.as_ref() } else { self.http.as_ref() }?;
        let name = host.host().to_ascii_lowercase();
        let address: Option<IpAddr> = name.trim_matches(['[', ']']).parse().ok();
        let exempt = self.exempt.iter().any(|word| {
            if let Some((network, length)) = network(word) {
                return address.is_some_and(|address| is_within(address, network, length));
            }
            let (word, port) = match word.rsplit_once(':') {
                Some((word, port)) if !word.contains(':') => (word, port.parse::<u16>().ok()),
                _ => (word.as_str(), None),
            };
            if port.is_some() && port != host.port() {
                return false;
            }
            let domain = word.trim_start_matches("*.").trim_start_matches('.');
            word == "*"
                || name == domain
                || (!domain.is_empty() && name.ends_with(&format!(".{domain}")))
        });
        (!exempt && !host.is_loopback()).then_some(proxy)
    }
}

/// A word of `NO_PROXY` like `10.0.0.0/8` or `fd00::/8`.
fn network(word: &str) -> Option<(IpAddr, u32)> {
    let (address, length) = word.split_once('/')?;
    let address: IpAddr = address.trim_matches(['[', ']']).parse().ok()?;
    let length = length.parse().ok()?;
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

fn is_within(address: IpAddr, network: IpAddr, length: u32) -> bool {
    // What is shifted by all of its bits has none left.
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let differ = address.to_bits() ^ network.to_bits();
            differ.checked_shr(32 - length).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let differ = address.to_bits() ^ network.to_bits();
            differ.checked_shr(128 - length).unwrap_or(0) == 0
        }
        _ => false,
    }
}

fn proxy(text: &str) -> Option<Proxy> {
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return None,
        None => text,
    };
    let rest = rest.trim_end_matches('/');
    let (user, host) = match rest.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, rest),
    };
    let authorization = match user {
        Some(user) => {
            let user = percent_decoded(user)?;
            Some(Secret::new(format!("Basic {}", STANDARD.encode(user))))
        }
        None => None,
    };
    Some(Proxy { host: host.parse().ok()?, authorization })
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        decoded.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_comes_after_its_mirrors_and_is_encrypted_unless_it_is_known() {
        let settings = Settings {
            mirrors: vec![
                "docker.io=https://mirror.example".parse().unwrap(),
                "ghcr.io=http://other.example:5000".parse().unwrap(),
            ],
            insecure: vec!["plain.example:5000".parse().unwrap()],
            ..Settings::default()
        };
        let places = |text: &str| -> Vec<String> {
            let places = settings.places(&text.parse().unwrap());
            places.iter().map(|place| place.address.to_string()).collect()
        };
        assert_eq!(places("alpine"), ["https://mirror.example", "https://registry-1.docker.io"]);
        assert_eq!(places("ghcr.io/x"), ["http://other.example:5000", "https://ghcr.io"]);
        assert_eq!(places("plain.example:5000/x"), ["http://plain.example:5000"]);
        assert_eq!(places("plain.example/x"), ["https://plain.example"]);
        assert_eq!(places("127.0.0.1:1/x"), ["http://127.0.0.1:1"]);
        assert_eq!(places("localhost/x"), ["http://localhost"]);
    }

    #[test]
    fn a_layer_has_at_most_a_week() {
        let deadlines = Deadlines::default();
        assert_eq!(deadlines.floor_of(5), 3 << 20);
        let largest = 256 << 30;
        let windows = largest / deadlines.floor_of(largest);
        let most = deadlines.floor_window.as_secs() * windows;
        assert_eq!(most, 7 * 24 * 3600);
    }

    #[test]
    fn proxies_are_those_of_the_environment() {
        let proxies = Proxies::new(
            Some("http://alice:p%40ss@proxy.example:3128/"),
            Some("proxy.example"),
            Some(
                "corp.example, .inner.example,exact.example:444,10.0.0.0/8,192.168.7.1,fd00::/8,\
                 172.16.0.0/33",
            ),
        )
        .unwrap();
        let used = |https, host: &str| proxies.of(https, &host.parse().unwrap()).is_some();
        assert!(used(true, "ghcr.io") && used(false, "ghcr.io"));
        assert!(used(true, "notcorp.example") && used(true, "exact.example"));
        for exempt in [
            "corp.example",
            "a.corp.example:5000",
            "x.inner.example",
            "exact.example:444",
            "localhost",
            "127.0.0.1:1",
            "10.200.1.2:5000",
            "192.168.7.1",
            "[fd00::1]:5000",
        ] {
            assert!(!used(true, exempt), "{exempt}");
        }
        for proxied in ["11.0.0.1", "192.168.7.2", "[fe80::1]", "172.16.0.1", "10.example"] {
            assert!(used(true, proxied), "{proxied}");
        }
        let proxy = proxies.of(true, &"ghcr.io".parse().unwrap()).unwrap();
        assert_eq!(proxy.authorization.as_ref().unwrap().reveal(), "Basic YWxpY2U6cEBzcw==");
        let shown = format!("{proxies:?} {proxy:?}");
        assert!(!shown.contains("p@ss") && !shown.contains("p%40ss") && !shown.contains("YWxp"));
        assert!(Proxies::new(Some("socks5://x:1"), None, None).is_err());
        assert!(Proxies::new(None, Some("http://"), None).is_err());
        let all = Proxies::new(Some("p.example"), None, Some("*")).unwrap();
        assert!(all.of(true, &"ghcr.io".parse().unwrap()).is_none());
    }
}
