//! To whom a login is sent, and to whom not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use banger_registry::{Access, Credentials, Secret};

use crate::hostile::{contents, is_layer, serve, with_answer};
use crate::server::{Server, answer};
use crate::support::{Cache, pull_all, reference, settings};

fn login(server: &Server, is_token: bool) -> Access {
    let registry = server.authority.parse().unwrap();
    let credentials = if is_token {
        Credentials::IdentityToken { registry, token: Secret::new("refresh-me".to_owned()) }
    } else {
        let (user, password) = ("alice".to_owned(), Secret::new("secret".to_owned()));
        Credentials::Password { registry, user, password }
    };
    Access { credentials: vec![credentials], ..Access::default() }
}

/// Where a redirect leads may ask for a login of its own: for the registry's, by its own token server.
#[tokio::test]
async fn who_is_led_to_by_a_redirect_asks_in_vain_for_the_registrys_login() {
    for is_token in [false, true] {
        for is_basic in [false, true] {
            let tokens = Server::start(|_, stream| {
                answer(stream, 200, &[], br#"{"token":"t0k","expires_in":300}"#);
            });
            let challenge = match is_basic {
                true => "Basic realm=\"x\"".to_owned(),
                false => format!("Bearer realm=\"http://{}/token\"", tokens.authority),
            };
            let other = Server::start(move |_, stream| {
                answer(stream, 401, &[("WWW-Authenticate", &challenge)], b"");
            });
            let target = other.authority.clone();
            let server = with_answer(&[b"layer"], is_layer(b"layer"), move |request, stream, _| {
                let location = format!("http://{target}{}", request.target);
                answer(stream, 307, &[("Location", &location)], b"");
            });
            let reference = reference(&server.authority, "x");
            let result =
                pull_all(settings(), login(&server, is_token), &Cache::new(), &reference).await;
            let error = result.unwrap_err();
            assert!(error.contains(&other.authority) && error.contains("401"), "{error}");
            assert!(tokens.requests().is_empty(), "{:?}", tokens.requests());
            let seen = other.requests();
            assert_eq!(seen.len(), 1, "{seen:?}");
            assert!(seen[0].header("authorization").is_none(), "{seen:?}");
        }
    }
}

#[tokio::test]
async fn a_token_server_that_asks_for_patience_gets_some() {
    for (seconds, asked) in [("1", 2), ("3600", 1)] {
        let tries = AtomicUsize::new(0);
        let tokens = Server::start(move |_, stream| match tries.fetch_add(1, Ordering::SeqCst) {
            0 => answer(stream, 429, &[("Retry-After", seconds)], b""),
            _ => answer(stream, 200, &[], br#"{"token":"t0k","expires_in":300}"#),
        });
        let realm = format!("Bearer realm=\"http://{}/token\"", tokens.authority);
        let contents = contents(&[b"layer"]);
        let server = Server::start(move |request, stream| {
            if request.header("authorization") == Some("Bearer t0k") {
                return serve(&contents, request, stream);
            }
            answer(stream, 401, &[("WWW-Authenticate", &realm)], b"");
        });
        let reference = reference(&server.authority, "x");
        let began = Instant::now();
        let result = pull_all(settings(), Access::default(), &Cache::new(), &reference).await;
        match result {
            // Its own pause is a hundredth of that.
            Ok(_) => assert!(seconds == "1" && began.elapsed().as_secs() >= 1),
            Err(error) => assert!(seconds == "3600" && error.contains("3600 s"), "{error}"),
        }
        assert_eq!(tokens.requests().len(), asked);
    }
}
