//! Checked byte strings that a guest's system calls take: arguments, environment, paths, users.
//!
//! Linux strings are bytes without NUL, not UTF-8, so a value is written as a JSON string where it
//! is UTF-8 and as an array of bytes where it is not; both are read.

use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a string is not acceptable to the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A NUL byte would end the string early in the guest.
    #[error("a NUL byte is not allowed")]
    Nul,
    /// Empty where something must be named.
    #[error("must not be empty")]
    Empty,
    /// Longer than the guest's kernel accepts.
    #[error("at most {limit} bytes are allowed")]
    TooLong {
        /// Most bytes allowed.
        limit: usize,
    },
    /// An environment entry has no `=`, or begins with it.
    #[error("an environment entry is NAME=VALUE")]
    NoEquals,
    /// A guest path must begin with `/`.
    #[error("a guest path must be absolute")]
    NotAbsolute,
    /// A guest path must not climb.
    #[error("a guest path must not contain '..'")]
    ParentComponent,
    /// A user is `name`, `uid`, `name:group` or `uid:gid`.
    #[error("a user is NAME or UID, with an optional :GROUP or :GID")]
    User,
    /// Not an even number of hexadecimal digits.
    #[error("must be an even number of hexadecimal digits")]
    Hex,
}

macro_rules! checked_bytes {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Vec<u8>);

        impl $name {
            /// Checks `bytes`.
            pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, TextError> {
                let bytes = bytes.into();
                $check(&bytes)?;
                Ok(Self(bytes))
            }

            /// Returns the checked bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = TextError;

            fn from_str(text: &str) -> Result<Self, TextError> {
                Self::new(text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{:?}", String::from_utf8_lossy(&self.0))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&printable_excerpt(&String::from_utf8_lossy(&self.0), 256))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match std::str::from_utf8(&self.0) {
                    Ok(text) => serializer.serialize_str(text),
                    Err(_) => serializer.collect_seq(&self.0),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let bytes = deserializer.deserialize_any(BytesVisitor)?;
                Self::new(bytes).map_err(D::Error::custom)
            }
        }
    };
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string or an array of bytes")
    }

    fn visit_str<E>(self, text: &str) -> Result<Vec<u8>, E> {
        Ok(text.as_bytes().to_vec())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<u8>, A::Error> {
        // No capacity from the peer's size hint: the message's own cap bounds this.
        let mut bytes = Vec::new();
        while let Some(byte) = sequence.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes)
    }
}

checked_bytes! {
    /// One command line argument: bytes without NUL.
    Argument, check_nul
}

checked_bytes! {
    /// One environment entry, `NAME=VALUE`.
    EnvironmentEntry, check_environment
}

checked_bytes! {
    /// An absolute path in the guest without `..`, at most 4095 bytes (`PATH_MAX`).
    GuestPath, check_path
}

fn check_nul(bytes: &[u8]) -> Result<(), TextError> {
    if bytes.contains(&0) { Err(TextError::Nul) } else { Ok(()) }
}

fn check_environment(bytes: &[u8]) -> Result<(), TextError> {
    check_nul(bytes)?;
    match bytes.iter().position(|&byte| byte == b'=') {
        Some(position) if position > 0 => Ok(()),
        _ => Err(TextError::NoEquals),
    }
}

fn check_path(bytes: &[u8]) -> Result<(), TextError> {
    const PATH_LIMIT: usize = 4095;
    check_nul(bytes)?;
    if bytes.first() != Some(&b'/') {
        return Err(TextError::NotAbsolute);
    }
    if bytes.len() > PATH_LIMIT {
        return Err(TextError::TooLong { limit: PATH_LIMIT });
    }
    if bytes.split(|&byte| byte == b'/').any(|component| component == b"..") {
        return Err(TextError::ParentComponent);
    }
    Ok(())
}

/// A user to run as: a name or number from the guest's own `/etc/passwd`, optionally with a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserSpec {
    user: String,
    group: Option<String>,
}

impl UserSpec {
    /// Returns the user's name or number.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Returns the group's name or number, where one was given.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }
}

impl std::str::FromStr for UserSpec {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        const NAME_LIMIT: usize = 64;
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        for name in std::iter::once(user).chain(group) {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-$@".contains(c);
            if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(allowed) {
                return Err(TextError::User);
            }
        }
        Ok(Self { user: user.to_owned(), group: group.map(str::to_owned) })
    }
}

impl TryFrom<String> for UserSpec {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        text.parse()
    }
}

impl From<UserSpec> for String {
    fn from(spec: UserSpec) -> Self {
        spec.to_string()
    }
}

impl fmt::Display for UserSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.user)?;
        match &self.group {
            Some(group) => write!(formatter, ":{group}"),
            None => Ok(()),
        }
    }
}

/// Up to 4096 bytes written as hexadecimal text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hex(Vec<u8>);

impl Hex {
    const LIMIT: usize = 4096;

    /// Wraps `bytes`, at most 4096 of them.
    pub fn new(bytes: Vec<u8>) -> Result<Self, TextError> {
        if bytes.len() > Self::LIMIT {
            return Err(TextError::TooLong { limit: Self::LIMIT });
        }
        Ok(Self(bytes))
    }

    /// Returns the bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::str::FromStr for Hex {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        if !text.len().is_multiple_of(2) {
            return Err(TextError::Hex);
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let bytes = text
            .as_bytes()
            .chunks_exact(2)
            .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
            .collect::<Option<Vec<u8>>>()
            .ok_or(TextError::Hex)?;
        Self::new(bytes)
    }
}

impl TryFrom<String> for Hex {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        text.parse()
    }
}

impl From<Hex> for String {
    fn from(hex: Hex) -> Self {
        hex.to_string()
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// Returns at most `limit` characters of a text that came from a guest, with every control
/// character replaced, so that it cannot steer the terminal it is shown on.
#[must_use]
pub fn printable_excerpt(text: &str, limit: usize) -> String {
    // Bidirectional overrides and line separators disguise text as well as escapes do.
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().take(limit).map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_is_refused_everywhere() {
        assert_eq!(Argument::new("a\0b").unwrap_err(), TextError::Nul);
        assert_eq!(EnvironmentEntry::new("A=\0").unwrap_err(), TextError::Nul);
        assert_eq!(GuestPath::new("/a\0").unwrap_err(), TextError::Nul);
    }

    #[test]
    fn bytes_that_are_not_utf8_survive_json() {
        let argument = Argument::new(vec![b'a', 0xff, b'b']).unwrap();
        let json = serde_json::to_string(&argument).unwrap();
        assert_eq!(json, "[97,255,98]");
        assert_eq!(serde_json::from_str::<Argument>(&json).unwrap(), argument);
        assert_eq!(serde_json::to_string(&Argument::new("ok").unwrap()).unwrap(), "\"ok\"");
    }

    #[test]
    fn paths_are_absolute_and_do_not_climb() {
        for bad in ["", "a", "./a", "/a/../b", "/..", &format!("/{}", "x".repeat(4096))] {
            assert!(GuestPath::new(bad).is_err(), "{bad:?}");
            assert!(serde_json::from_value::<GuestPath>(bad.into()).is_err(), "{bad:?}");
        }
        for good in ["/", "/root/repo", "/a..b", "/..a"] {
            assert!(GuestPath::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn environment_entries_have_a_name() {
        for bad in ["", "=", "=x", "A"] {
            assert!(EnvironmentEntry::new(bad).is_err(), "{bad:?}");
        }
        assert!(EnvironmentEntry::new("A=").is_ok());
    }

    #[test]
    fn users_are_names_or_numbers() {
        for bad in ["", ":", "a:", ":b", "a:b:c", "a b", "root\n", &"x".repeat(65)] {
            assert!(bad.parse::<UserSpec>().is_err(), "{bad:?}");
        }
        let spec: UserSpec = "1000:adm".parse().unwrap();
        assert_eq!((spec.user(), spec.group()), ("1000", Some("adm")));
        assert_eq!(spec.to_string(), "1000:adm");
    }

    #[test]
    fn hex_round_trips_and_refuses_what_is_not() {
        for bad in ["a", "zz", "0x12", &"00".repeat(4097)] {
            assert!(bad.parse::<Hex>().is_err(), "{bad:?}");
        }
        assert_eq!("00ffA0".parse::<Hex>().unwrap().to_string(), "00ffa0");
    }

    #[test]
    fn guest_text_cannot_steer_a_terminal() {
        assert_eq!(printable_excerpt("a\x1b[2Jb\u{202e}c", 100), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(printable_excerpt("aaaa", 2), "aa");
    }
}
