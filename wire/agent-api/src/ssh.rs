//! Keys of SSH, as one side tells them to the other: each is written into a file that an OpenSSH
//! program reads by lines and words, so a key is nothing but a key.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest key: of RSA with 16384 bits it has 2,800 bytes.
const KEY_LIMIT: usize = 8192;

/// A public key, as `authorized_keys` has it without options and comment (sshd(8)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(String);

/// A text that is no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no public key of SSH, such as 'ssh-ed25519 AAAA...'")]
pub struct PublicKeyError;

impl PublicKey {
    /// Returns the key as a file has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    /// Reads the line of a `.pub` file; its comment is dropped.
    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let mut words = text.trim_end_matches('\n').split(' ');
        let (Some(algorithm), Some(key)) = (words.next(), words.next()) else {
            return Err(PublicKeyError);
        };
        let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-@.".contains(c);
        let known = ["ssh-", "ecdsa-sha2-", "sk-"].iter().any(|start| algorithm.starts_with(start));
        let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
        // The key repeats its algorithm's name behind four bytes of length, two of them zero.
        let good = text.len() <= KEY_LIMIT
            && !text.trim_end_matches('\n').contains(char::is_control)
            && known
            && algorithm.chars().all(name)
            && key.starts_with("AAAA")
            && key.chars().all(base64);
        if good { Ok(Self(format!("{algorithm} {key}"))) } else { Err(PublicKeyError) }
    }
}

impl TryFrom<String> for PublicKey {
    type Error = PublicKeyError;

    fn try_from(text: String) -> Result<Self, PublicKeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Runs the image's sshd for one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshCall {
    /// The one key that may log in.
    pub key: PublicKey,
}

/// The sshd runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshReply {
    /// The machine's own key.
    pub host_key: PublicKey,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_nothing_but_a_key() {
        for good in
            ["ssh-ed25519 AAAAC3Nza", "ssh-rsa AAAAB3 me@home\n", "ecdsa-sha2-nistp256 AAAA="]
        {
            let key: PublicKey = good.parse().unwrap();
            let words: Vec<&str> = good.split_whitespace().collect();
            assert_eq!(key.as_str(), words[..2].join(" "));
        }
        let long = format!("ssh-rsa AAAA{}", "A".repeat(KEY_LIMIT));
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 ",
            "ssh-ed25519  AAAA",
            "ssh-ed25519 BBBB",
            "ssh-ed25519 AAAA\nbox ssh-ed25519 AAAA",
            "ssh-ed25519 AAAA x\ny",
            "ssh-ed25519 AAAA\tx",
            "command=\"x\" ssh-ed25519 AAAA",
            "* ssh-ed25519 AAAA",
            "@cert-authority AAAA",
            "ssh-\u{e4} AAAA",
            "ssh-rsa AAAA,BBBB",
            &long,
        ] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<PublicKey>(bad.into()).is_err(), "{bad:?}");
        }
    }
}
