//! Headers that need parsing: challenges, redirects, ranges and pauses.

use std::time::Duration;

use hyper::Uri;
use hyper::header::{CONTENT_RANGE, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};

/// How a registry wants to be asked (RFC 9110 section 11.6.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token of `realm` (<https://distribution.github.io/distribution/spec/auth/token/>).
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    /// Name and password.
    Basic,
}

/// Returns the best challenge that we can meet: a token before a password.
pub(crate) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let all: Vec<Challenge> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(challenges)
        .collect();
    let bearer = all.iter().find(|one| matches!(one, Challenge::Bearer { .. }));
    bearer.or_else(|| all.first()).cloned()
}

fn challenges(text: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        if end == 0 {
            break;
        }
        let word = rest[..end].to_ascii_lowercase();
        rest = rest[end..].trim_start_matches([' ', '\t']);
        match rest.strip_prefix('=') {
            Some(after) => {
                let Some((value, after)) = value(after.trim_start_matches([' ', '\t'])) else {
                    break;
                };
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word, value));
                }
                rest = after;
            }
            None => found.push((word, Vec::new())),
        }
    }
    found
        .into_iter()
        .filter_map(|(scheme, parameters)| {
            let get = |name: &str| {
                let found = parameters.iter().find(|(key, _)| key == name);
                found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
            };
            match scheme.as_str() {
                "bearer" => Some(Challenge::Bearer {
                    realm: get("realm")?,
                    service: get("service"),
                    scope: get("scope"),
                }),
                "basic" => Some(Challenge::Basic),
                _ => None,
            }
        })
        .collect()
}

/// Reads a token or a quoted string.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

/// Returns where a redirect leads, with `location` read relative to `base`.
pub(crate) fn redirected(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = base.scheme_str()?;
    let authority = base.authority()?.as_str();
    let text = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.is_empty() || location.split(['/', '?']).next()?.contains(':') {
        return None;
    } else {
        let path = base.path();
        let folder = &path[..=path.rfind('/')?];
        format!("{scheme}://{authority}{folder}{location}")
    };
    let uri: Uri = text.parse().ok()?;
    let host = uri.authority()?;
    // A user's name in an address is for deceiving people.
    (!host.as_str().contains('@')).then_some(uri)
}

/// Returns where a partial answer begins, and the whole's size where it is given.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, size) = text.split_once('/')?;
    let (from, _) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    Some((from.parse().ok()?, size))
}

/// Returns how long a server wants to be left alone: seconds or a date (RFC 9110 section 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let wait = date.duration_since(jiff::Timestamp::now());
    Some(Duration::try_from(wait).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn with(name: hyper::header::HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn challenges_are_read_as_servers_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        let of = |values: &[&str]| challenge(&with(WWW_AUTHENTICATE, values));
        assert_eq!(
            of(&[r#"Bearer realm="https://a/token",service="s",scope="repository:x:pull,push""#]),
            bearer("https://a/token", Some("s"), Some("repository:x:pull,push"))
        );
        assert_eq!(of(&[r#"Basic realm="Registry Realm""#]), Some(Challenge::Basic));
        assert_eq!(of(&["Basic"]), Some(Challenge::Basic));
        assert_eq!(
            of(&["Basic realm=x", r#"bearer  Realm = "https://b" , Service=s"#]),
            bearer("https://b", Some("s"), None)
        );
        assert_eq!(
            of(&[r#"Negotiate, Basic realm="a, b\"c", Bearer realm="r""#]),
            bearer("r", None, None)
        );
        for bad in
            ["", "Bearer", "Bearer realm=\"x", "Bearer service=x", "Digest realm=x", "=\"", ","]
        {
            assert_eq!(of(&[bad]), None, "{bad:?}");
        }
    }

    #[test]
    fn redirects_are_read_relative_to_where_they_come_from() {
        let base: Uri = "https://a.example:5000/v2/x/blobs/y?z".parse().unwrap();
        for (location, to) in [
            ("https://cdn.example/b?sig=1", Some("https://cdn.example/b?sig=1")),
            ("/b", Some("https://a.example:5000/b")),
            ("c?d", Some("https://a.example:5000/v2/x/blobs/c?d")),
            ("//other/b", Some("https://other/b")),
            ("https://a/b#c", Some("https://a/b")),
            ("ftp://a/b", None),
            ("file:///etc/passwd", None),
            ("https://user@a/b", None),
            ("", None),
            ("https://", None),
        ] {
            let found = redirected(&base, location).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), to, "{location}");
        }
    }

    #[test]
    fn pauses_are_seconds_or_a_date() {
        let of = |value: &str| retry_after(&with(RETRY_AFTER, &[value]));
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        assert!(of("Tue, 31 Dec 2199 23:59:59 GMT").unwrap() > Duration::from_secs(1 << 30));
        assert_eq!(of("soon"), None);
        assert_eq!(of("-1"), None);
    }

    #[test]
    fn ranges_say_where_they_begin() {
        let of = |value: &str| content_range(&with(CONTENT_RANGE, &[value]));
        assert_eq!(of("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(of("bytes 5-9/*"), Some((5, None)));
        assert_eq!(of("bytes */10"), None);
        assert_eq!(of("5-9/10"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_header_breaks_a_parser(text in "[ -~]{0,80}") {
            let _ = challenges(&text);
            let _ = redirected(&"https://a/b".parse().unwrap(), &text);
        }
    }
}
