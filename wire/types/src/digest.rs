//! Digests of content, as registries write them.

use crate::string_type::checked_string;

/// Why a digest was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Another algorithm, or none.
    #[error("a digest begins with `sha256:`; other algorithms are not supported")]
    Algorithm,
    /// Not 64 lower-case hexadecimal digits.
    #[error("a sha256 digest has 64 lower-case hexadecimal digits")]
    Digits,
}

const ALGORITHM: &str = "sha256:";

fn check_digest(text: &str) -> Result<(), DigestError> {
    let digits = text.strip_prefix(ALGORITHM).ok_or(DigestError::Algorithm)?;
    if digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(());
    }
    Err(DigestError::Digits)
}

checked_string! {
    /// The SHA-256 of some content, `sha256:` and 64 lower-case hexadecimal digits (OCI image
    /// specification, descriptor.md, "Digests").
    Digest, DigestError, check_digest
}

impl Digest {
    /// Takes the 32 bytes of a SHA-256.
    #[must_use]
    pub fn from_sha256(bytes: [u8; 32]) -> Self {
        use std::fmt::Write;
        let mut text = String::with_capacity(ALGORITHM.len() + 64);
        text.push_str(ALGORITHM);
        for byte in bytes {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// Returns the 64 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[ALGORITHM.len()..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256_in_its_one_spelling_is_a_digest() {
        let digits = "ab".repeat(32);
        let good: Digest = format!("sha256:{digits}").parse().unwrap();
        assert_eq!(good.hex(), digits);
        assert_eq!(good, Digest::from_sha256([0xab; 32]));
        for bad in [
            String::new(),
            digits.clone(),
            format!("sha512:{digits}"),
            format!("SHA256:{digits}"),
            format!("sha256:{}", digits.to_uppercase()),
            format!("sha256:{}", &digits[1..]),
            format!("sha256:{digits}0"),
            format!("sha256:../{}", &digits[3..]),
            format!("sha256:{}é", &digits[2..]),
            format!(" sha256:{digits}"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
    }
}
