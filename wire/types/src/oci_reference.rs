//! Names of images in registries: `registry[:port]/repository[:tag][@digest]`.
//!
//! The grammar and its limits are those of the distribution project
//! (<https://github.com/distribution/reference>), which `docker` and `skopeo` use.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};
use crate::name::ImageName;

/// The registry of a reference that names none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// What comes before a repository without a slash on [`DEFAULT_REGISTRY`].
const OFFICIAL: &str = "library/";
/// The tag of a reference with neither tag nor digest.
const DEFAULT_TAG: &str = "latest";

/// The longest registry: a DNS name (RFC 1035 section 2.3.4), a colon and a port.
const LONGEST_REGISTRY: usize = 253 + 6;
/// The longest repository (`RepositoryNameTotalMaxLength`).
const LONGEST_REPOSITORY: usize = 255;
const LONGEST_TAG: usize = 128;
/// Longer than any reference: two limits, a digest and what separates them.
const LONGEST: usize = LONGEST_REGISTRY + LONGEST_REPOSITORY + LONGEST_TAG + 80;

/// Why a reference was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OciReferenceError {
    /// There is no repository.
    #[error("a reference needs a repository, such as alpine or ghcr.io/owner/image:tag")]
    Empty,
    /// A part is longer than the grammar allows.
    #[error("the {part} has at most {limit} characters, this one has {length}")]
    TooLong {
        /// Which part.
        part: &'static str,
        /// Most characters allowed.
        limit: usize,
        /// Characters given.
        length: usize,
    },
    /// The registry is no host.
    #[error("{0:?} is no registry: a host name or address, with :PORT where it is not 443")]
    Registry(String),
    /// The repository breaks its grammar.
    #[error(
        "{0:?} is no repository: lower-case letters and digits, separated by one '.', one or two \
         '_', or '-', and '/' between parts"
    )]
    Repository(String),
    /// The repository looks like an image's id.
    #[error("{0:?} looks like an id; registries know images by repository, tag and digest")]
    Identifier(String),
    /// The tag breaks its grammar.
    #[error("{0:?} is no tag: letters, digits, '_', '.' and '-', not beginning with '.' or '-'")]
    Tag(String),
    /// The digest breaks its rule.
    #[error("the digest: {0}")]
    Digest(#[source] DigestError),
}

/// An image in a registry, with all defaults filled in.
///
/// It is written out in full (`docker.io/library/alpine:latest`), and that text is the same
/// reference again. With a digest, the digest says which image it is; a tag beside it is for people.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct OciReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl OciReference {
    /// Reads the source of an image that came from a registry: a reference in full, with a digest. No
    /// other source (`mmdebstrap:bookworm`) looks like that.
    #[must_use]
    pub fn recorded(source: &str) -> Option<Self> {
        let reference: Self = source.parse().ok()?;
        (reference.digest.is_some() && reference.to_string() == source).then_some(reference)
    }

    /// Returns the registry's host, with its port where one is given: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the repository in the registry: `library/alpine`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag; there is none where only a digest was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest of the manifest or index, where it is pinned.
    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns the same image, pinned to `digest`.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// Returns the same image by its tag alone; one without a tag stays as it is.
    #[must_use]
    pub fn unpinned(&self) -> Self {
        let digest = if self.tag.is_some() { None } else { self.digest.clone() };
        Self { digest, ..self.clone() }
    }

    /// Returns the local name it gets unless the user chooses one: the repository's last part and
    /// the tag (`debian:bookworm` is `debian-bookworm`), without the tag `latest`, or with 12 digits
    /// of the digest where there is no tag. `None` where that is no [`ImageName`].
    #[must_use]
    pub fn default_name(&self) -> Option<ImageName> {
        let last = self.repository.rsplit('/').next().unwrap_or_default();
        let name = match (&self.tag, &self.digest) {
            (Some(tag), _) if tag == DEFAULT_TAG => last.to_owned(),
            (Some(tag), _) => format!("{last}-{}", tag.to_ascii_lowercase()),
            (None, Some(digest)) => format!("{last}-{}", &digest.hex()[..12]),
            (None, None) => last.to_owned(),
        };
        name.trim_end_matches(['-', '_', '.']).parse().ok()
    }
}

impl FromStr for OciReference {
    type Err = OciReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        within("reference", text, LONGEST)?;
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(OciReferenceError::Digest)?))
            }
            None => (text, None),
        };
        if rest.is_empty() {
            return Err(OciReferenceError::Empty);
        }
        let (registry, rest) = split_registry(rest);
        check_registry(registry)?;
        // A colon of a port is gone with the registry.
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if repository.is_empty() {
            return Err(OciReferenceError::Empty);
        }
        let official = registry == DEFAULT_REGISTRY && !repository.contains('/');
        if official && repository.len() == 64 && repository.bytes().all(is_hex) {
            return Err(OciReferenceError::Identifier(repository.to_owned()));
        }
        let repository =
            if official { format!("{OFFICIAL}{repository}") } else { repository.to_owned() };
        within("repository", &repository, LONGEST_REPOSITORY)?;
        if !repository.split('/').all(is_path_component) {
            return Err(OciReferenceError::Repository(repository));
        }
        if let Some(tag) = tag {
            within("tag", tag, LONGEST_TAG)?;
            if !is_tag(tag) {
                return Err(OciReferenceError::Tag(tag.to_owned()));
            }
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl fmt::Display for OciReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for OciReference {
    type Error = OciReferenceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<OciReference> for String {
    fn from(reference: OciReference) -> Self {
        reference.to_string()
    }
}

fn within(part: &'static str, text: &str, limit: usize) -> Result<(), OciReferenceError> {
    let length = text.len();
    if length > limit {
        return Err(OciReferenceError::TooLong { part, limit, length });
    }
    Ok(())
}

/// Splits the registry off. What comes before the first slash is one if it has a dot, a colon or a
/// capital, or is `localhost`; that is docker's rule.
fn split_registry(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (if first == "index.docker.io" { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, text),
    }
}

pub(crate) fn check_registry(text: &str) -> Result<(), OciReferenceError> {
    within("registry", text, LONGEST_REGISTRY)?;
    let refused = || OciReferenceError::Registry(text.to_owned());
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(refused)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| refused())?;
        (None, rest.strip_prefix(':').or(if rest.is_empty() { None } else { Some("x") }))
    } else {
        match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        }
    };
    let host_is_good = host.is_none_or(|host| host.split('.').all(is_domain_component));
    let port_is_good = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if host_is_good && port_is_good { Ok(()) } else { Err(refused()) }
}

fn is_domain_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63
        && text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && text.chars().all(|c| alphanumeric(c) || c == '-')
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.starts_with(alphanumeric) || !text.ends_with(alphanumeric) {
        return false;
    }
    text.split(alphanumeric).filter(|separator| !separator.is_empty()).all(|separator| {
        matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    })
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> OciReference {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn defaults_are_filled_in() {
        for (text, full, name) in [
            ("alpine", "docker.io/library/alpine:latest", "alpine"),
            ("debian:bookworm", "docker.io/library/debian:bookworm", "debian-bookworm"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest", "alpine"),
            ("owner/image", "docker.io/owner/image:latest", "image"),
            ("ghcr.io/a/b/app:V1.2", "ghcr.io/a/b/app:V1.2", "app-v1.2"),
            ("localhost/x", "localhost/x:latest", "x"),
            ("localhost:5000/x:1", "localhost:5000/x:1", "x-1"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest", "b"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "x"),
            ("Reg/x", "Reg/x:latest", "x"),
            ("x:a-", "docker.io/library/x:a-", "x-a"),
        ] {
            let reference = parse(text);
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.default_name().unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_digest_takes_the_default_tags_place() {
        let reference = parse(&format!("alpine@{DIGEST}"));
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.to_string(), format!("docker.io/library/alpine@{DIGEST}"));
        assert_eq!(reference.default_name().unwrap().as_str(), "alpine-e3b0c44298fc");
        assert_eq!(reference.unpinned(), reference);
        let both = parse(&format!("alpine:3.20@{DIGEST}"));
        assert_eq!(both.tag(), Some("3.20"));
        assert_eq!(both.unpinned(), parse("alpine:3.20"));
        assert_eq!(parse("alpine:3.20").pinned(DIGEST.parse().unwrap()), both);
    }

    #[test]
    fn only_a_full_reference_is_an_images_source() {
        let full = format!("docker.io/library/alpine:3.20@{DIGEST}");
        assert_eq!(OciReference::recorded(&full), Some(parse(&full)));
        for other in ["mmdebstrap:bookworm", "docker.io/library/alpine:3.20", "", "a b"] {
            assert_eq!(OciReference::recorded(other), None, "{other}");
        }
        assert_eq!(OciReference::recorded(&format!("import:a@{DIGEST}")), None);
    }

    #[test]
    fn what_the_grammar_refuses_is_refused_with_its_part() {
        let long = |length: usize| "x".repeat(length);
        for (text, part) in [
            (String::new(), "needs a repository"),
            (":tag".to_owned(), "needs a repository"),
            (format!("@{DIGEST}"), "needs a repository"),
            ("a.b/".to_owned(), "needs a repository"),
            ("Alpine".to_owned(), "no repository"),
            ("a//b".to_owned(), "no repository"),
            ("a/../b".to_owned(), "no repository"),
            ("a/..".to_owned(), "no repository"),
            ("a..b".to_owned(), "no repository"),
            ("a___b".to_owned(), "no repository"),
            ("a._b".to_owned(), "no repository"),
            ("-a".to_owned(), "no repository"),
            ("a b".to_owned(), "no repository"),
            ("a%2fb".to_owned(), "no repository"),
            ("a?x".to_owned(), "no repository"),
            ("a\n".to_owned(), "no repository"),
            ("ä".to_owned(), "no repository"),
            ("/a".to_owned(), "no repository"),
            ("http://a.b/c".to_owned(), "no registry"),
            ("-a.b/c".to_owned(), "no registry"),
            ("a..b/c".to_owned(), "no registry"),
            ("a.b:/c".to_owned(), "no registry"),
            ("a.b:0/c".to_owned(), "no registry"),
            ("a.b:65536/c".to_owned(), "no registry"),
            ("a.b:+1/c".to_owned(), "no registry"),
            ("user@a.b/c".to_owned(), "digest"),
            ("[::1/c".to_owned(), "no registry"),
            ("[::x]/c".to_owned(), "no registry"),
            ("[::x]:1/c".to_owned(), "no registry"),
            ("[::1]x/c".to_owned(), "no registry"),
            ("a:".to_owned(), "no tag"),
            ("a:.b".to_owned(), "no tag"),
            ("a:b:c".to_owned(), "no tag"),
            ("a:b c".to_owned(), "no tag"),
            (format!("a:{}", long(129)), "at most 128"),
            (long(256), "at most 255"),
            (format!("{}.example/a", long(254)), "at most 259"),
            (format!("{}.example/a", long(64)), "no registry"),
            (long(2000), "at most"),
            ("a@".to_owned(), "digest"),
            ("a@sha256:abc".to_owned(), "digest"),
            ("a@sha512:abc".to_owned(), "digest"),
            ("a@md5:abc".to_owned(), "digest"),
            ("e".repeat(64), "looks like an id"),
        ] {
            let error = text.parse::<OciReference>().expect_err(&text).to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_is_left_to_the_user() {
        assert_eq!(parse(&format!("a:{}", "x".repeat(80))).default_name(), None);
        assert!(parse("a:_").default_name().is_some_and(|name| name.as_str() == "a"));
    }

    proptest::proptest! {
        #[test]
        fn a_reference_is_written_and_read_back(
            registry in "([a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?\\.[a-z]{1,5}(:[1-9][0-9]{0,3})?/)?",
            repository in "([a-z0-9]{1,9}/){0,3}[a-z0-9]{1,9}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,3}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
            digest in "(@sha256:[0-9a-f]{64})?",
        ) {
            let reference = parse(&format!("{registry}{repository}{tag}{digest}"));
            proptest::prop_assert_eq!(parse(&reference.to_string()), reference);
        }

        #[test]
        fn whatever_is_accepted_is_read_back_and_stays_in_its_path(text in "[a-zA-Z0-9:/@._%?#\\[\\] -]{0,60}") {
            if let Ok(reference) = text.parse::<OciReference>() {
                proptest::prop_assert_eq!(parse(&reference.to_string()), reference.clone());
                for part in reference.repository().split('/') {
                    proptest::prop_assert!(!part.is_empty() && part != "." && part != "..");
                    proptest::prop_assert!(!part.contains(['?', '#', '%', ' ', '@']));
                }
            }
        }
    }
}
