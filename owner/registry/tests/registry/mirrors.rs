//! Mirrors: asked first, and passed over where they are no good.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

use banger_registry::{Access, Credentials, Registry, RegistryError, Secret, Settings};

use crate::hostile::{contents, serve};
use crate::server::{Server, answer};
use crate::support::{Cache, digest, noise, pull_all, read, reference, settings};

#[tokio::test]
async fn a_mirror_is_asked_first_and_may_fail() {
    let layers: [&[u8]; 1] = [b"layer"];
    let contents = Arc::new(contents(&layers));
    let origin = {
        let contents = Arc::clone(&contents);
        Server::start(move |request, stream| serve(&contents, request, stream))
    };
    let mirror = Server::start(move |request, stream| serve(&contents, request, stream));
    let broken = Server::start(|_, stream| answer(stream, 500, &[], b""));
    let reference = reference(&origin.authority, "x");
    let mut settings = settings();
    for server in [&broken, &mirror] {
        let text = format!("{}=http://{}", origin.authority, server.authority);
        settings.mirrors.push(text.parse().unwrap());
    }
    let access = Access {
        credentials: vec![Credentials::Password {
            registry: origin.authority.parse().unwrap(),
            user: "alice".to_owned(),
            password: Secret::new("secret".to_owned()),
        }],
        ..Access::default()
    };
    let cache = Cache::new();
    pull_all(settings.clone(), access, &cache, &reference).await.unwrap();
    assert_eq!(broken.requests().len(), 1);
    assert_eq!(mirror.requests().len(), 3);
    assert_eq!(origin.requests().len(), 0);
    settings.mirrors.truncate(1);
    pull_all(settings, Access::default(), &Cache::new(), &reference).await.unwrap();
    assert_eq!(origin.requests().len(), 3);
}

/// Cut off in the middle, and with more than there is.
#[tokio::test]
async fn a_mirror_whose_layers_are_no_good_is_passed_over() {
    let layer = noise(9, 300_000);
    for is_short in [true, false] {
        let (origin, mirror, settings) = mirrored(&layer, move |stream, bytes| {
            if is_short {
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n";
                let _ = stream.write_all(&[head, &bytes[..100_000]].concat());
            } else {
                answer(stream, 200, &[], &[bytes, b"more"].concat());
            }
        });
        let reference = reference(&origin.authority, "x");
        let pulled = pull_all(settings, Access::default(), &Cache::new(), &reference).await;
        assert_eq!(pulled.unwrap(), std::slice::from_ref(&layer));
        assert_eq!(mirror.requests().len(), 3);
        let asked = origin.requests();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].header("range").is_some(), is_short);
    }
}

#[tokio::test]
async fn a_mirror_whose_documents_break_off_is_passed_over() {
    let contents = Arc::new(contents(&[b"layer"]));
    let origin = {
        let contents = Arc::clone(&contents);
        Server::start(move |request, stream| serve(&contents, request, stream))
    };
    let mirror = Server::start(|_, stream| answer(stream, 200, &[("Content-Length", "500")], b"{"));
    let mut settings = settings();
    let text = format!("{}=http://{}", origin.authority, mirror.authority);
    settings.mirrors.push(text.parse().unwrap());
    let reference = reference(&origin.authority, "x");
    let read = pull_all(settings, Access::default(), &Cache::new(), &reference).await.unwrap();
    assert_eq!(read, [b"layer".to_vec()]);
    assert_eq!((mirror.requests().len(), origin.requests().len()), (1, 3));
}

/// What was read of it cannot be taken back, so the pull fails; the next one asks elsewhere.
#[tokio::test]
async fn a_mirror_with_another_content_is_not_asked_again() {
    let layer = noise(10, 300_000);
    let (origin, mirror, settings) =
        mirrored(&layer, |stream, bytes| answer(stream, 200, &[], &vec![8; bytes.len()]));
    let (cache, reference) = (Cache::new(), reference(&origin.authority, "x"));
    let registry = Registry::new(settings, Access::default());
    let pull = registry.resolve(&reference, &cache.store).await.unwrap().pull().await.unwrap();
    let (pull, layers) = read(pull).await;
    assert!(layers.is_err() && pull.may_be_repeated());
    assert!(matches!(pull.failure(), Some(RegistryError::Digest { .. })));
    assert_eq!((mirror.requests().len(), origin.requests().len()), (3, 0));
    drop(pull);
    let pull = registry.resolve(&reference, &cache.store).await.unwrap().pull().await.unwrap();
    let (pull, layers) = read(pull).await;
    assert_eq!(layers.unwrap(), [layer]);
    assert!(!pull.may_be_repeated());
    assert_eq!(mirror.requests().len(), 3);
}

/// A registry, and a mirror of it that answers for the layer in its own way.
fn mirrored(
    layer: &[u8],
    answers: impl Fn(&mut TcpStream, &[u8]) + Send + Sync + 'static,
) -> (Server, Server, Settings) {
    let contents = Arc::new(contents(&[layer]));
    let origin = {
        let contents = Arc::clone(&contents);
        Server::start(move |request, stream| serve(&contents, request, stream))
    };
    let path = format!("/v2/x/blobs/{}", digest(layer));
    let layer = layer.to_vec();
    let mirror = Server::start(move |request, stream| {
        if request.target == path {
            answers(stream, &layer);
        } else {
            serve(&contents, request, stream);
        }
    });
    let mut settings = settings();
    let text = format!("{}=http://{}", origin.authority, mirror.authority);
    settings.mirrors.push(text.parse().unwrap());
    (origin, mirror, settings)
}
