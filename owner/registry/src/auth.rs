//! Tokens of registries (<https://distribution.github.io/distribution/spec/auth/token/>).

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use serde::Deserialize;

use crate::credentials::Credentials;

/// What a token server without an answer to that means.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token is not used this long before its end.
const MARGIN: Duration = Duration::from_secs(10);

/// A header's value, and until when it is good.
#[derive(Clone, Debug)]
pub(crate) struct Authorization {
    /// Marked sensitive, so that its `Debug` form is hidden.
    pub(crate) value: HeaderValue,
    /// A password has no end.
    pub(crate) until: Option<Instant>,
}

impl Authorization {
    pub(crate) fn is_good(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns the header of a name and a password.
pub(crate) fn basic(credentials: &Credentials) -> Option<Authorization> {
    let Credentials::Password { user, password, .. } = credentials else { return None };
    let text = STANDARD.encode(format!("{user}:{}", password.reveal()));
    Some(Authorization { value: sensitive(&format!("Basic {text}"))?, until: None })
}

/// A token server's answer.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Reads a token server's answer; `None` where there is no usable token in it.
pub(crate) fn bearer(body: &[u8]) -> Option<Authorization> {
    let answer: Token = serde_json::from_slice(body).ok()?;
    let filled = |token: &String| !token.is_empty();
    let token = answer.token.filter(filled).or(answer.access_token.filter(filled))?;
    let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
    let until = Instant::now().checked_add(life.saturating_sub(MARGIN));
    Some(Authorization { value: sensitive(&format!("Bearer {token}"))?, until })
}

/// Writes a query or a form: `key=value&...`.
pub(crate) fn form(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(key);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_under_both_names_and_hidden() {
        let token = bearer(br#"{"token":"abc","expires_in":300,"x":1}"#).unwrap();
        assert_eq!(token.value.as_bytes(), b"Bearer abc");
        assert!(token.is_good() && !format!("{token:?}").contains("abc"));
        assert!(bearer(br#"{"access_token":"abc"}"#).is_some());
        assert!(bearer(br#"{"token":"","access_token":"abc"}"#).is_some());
        assert!(!bearer(br#"{"token":"abc","expires_in":5}"#).unwrap().is_good());
        for bad in ["", "{}", "[]", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, r#"{"token":1}"#] {
            assert!(bearer(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn forms_are_escaped() {
        let text = form(&[("scope", "repository:a/b:pull"), ("x", "a&b c")]);
        assert_eq!(text, "scope=repository%3Aa%2Fb%3Apull&x=a%26b%20c");
    }
}
