//! Servers that lie, lead astray, stall and break off: each a clear error, and nothing of it kept.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use banger_registry::{Access, Credentials, Proxies, Secret};
use serde_json::json;

use crate::server::{Request, Server, answer};
use crate::support::{
    Cache, INDEX, MANIFEST, digest, image, noise, pull, pull_all, reference, settings,
};

/// What a well-behaved registry has, by path below the repository.
pub fn contents(layers: &[&[u8]]) -> HashMap<String, (&'static str, Vec<u8>)> {
    let (manifest, config) = image(layers);
    let mut all = HashMap::new();
    all.insert(format!("manifests/{}", digest(&manifest)), (MANIFEST, manifest.clone()));
    all.insert("manifests/latest".to_owned(), (MANIFEST, manifest));
    for blob in layers.iter().map(|layer| layer.to_vec()).chain([config]) {
        all.insert(format!("blobs/{}", digest(&blob)), ("application/octet-stream", blob));
    }
    all
}

pub fn serve(
    contents: &HashMap<String, (&'static str, Vec<u8>)>,
    request: &Request,
    stream: &mut TcpStream,
) {
    let path = request.target.strip_prefix("/v2/x/").unwrap_or_default();
    let Some((media_type, bytes)) = contents.get(path) else {
        let body =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such \u001b[2Jthing"}]}"#;
        return answer(stream, 404, &[], body);
    };
    let from = request.from();
    if from > 0 {
        let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        return answer(stream, 206, &[("Content-Range", &range)], &bytes[from..]);
    }
    let found = digest(bytes);
    let mut headers = vec![("Content-Type", *media_type)];
    if path.starts_with("manifests/") {
        headers.push(("Docker-Content-Digest", &found));
    }
    let length = bytes.len().to_string();
    headers.push(("Content-Length", &length));
    answer(stream, 200, &headers, if request.method == "HEAD" { b"" } else { bytes });
}

/// A registry with one image, whose answer to `path` is `handler`'s.
pub fn with_answer(
    layers: &[&[u8]],
    path: impl Fn(&str) -> bool + Send + Sync + 'static,
    handler: impl Fn(&Request, &mut TcpStream, &[u8]) + Send + Sync + 'static,
) -> Server {
    let contents = contents(layers);
    Server::start(move |request, stream| {
        let name = request.target.strip_prefix("/v2/x/").unwrap_or_default();
        if path(name) {
            let bytes = contents.get(name).map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
            return handler(request, stream, bytes);
        }
        serve(&contents, request, stream);
    })
}

fn is_manifest(path: &str) -> bool {
    path.starts_with("manifests/")
}

/// Whether this is the blob of the layer, not of the configuration.
pub fn is_layer(layer: &[u8]) -> impl Fn(&str) -> bool + Send + Sync + 'static {
    let wanted = format!("blobs/{}", digest(layer));
    move |path| path == wanted
}

async fn refused(server: &Server, part: &str) -> Cache {
    let cache = Cache::new();
    let reference = reference(&server.authority, "x");
    let result = pull_all(settings(), Access::default(), &cache, &reference).await;
    let error = result.expect_err(part);
    assert!(error.contains(part), "{error:?} lacks {part:?}");
    cache
}

#[tokio::test]
async fn a_good_image_is_read_whole_and_the_second_pull_asks_once() {
    let layers = [noise(1, 300_000), noise(2, 70_000), Vec::new()];
    let contents = contents(&[&layers[0], &layers[1], &layers[2]]);
    let server = Server::start(move |request, stream| serve(&contents, request, stream));
    let cache = Cache::new();
    let reference = reference(&server.authority, "x");
    for pulls in 0..2 {
        let before = server.requests().len();
        let read = pull_all(settings(), Access::default(), &cache, &reference).await.unwrap();
        assert_eq!(read, layers);
        let requests = server.requests();
        if pulls == 1 {
            assert_eq!(requests.len() - before, 1);
            assert_eq!(requests[before].method, "HEAD");
        }
    }
    assert!(cache.files("partial").is_empty());
    // Manifest, configuration, layers.
    assert_eq!(cache.files("sha256").len(), 5);
}

#[tokio::test]
async fn redirects_end_and_lead_nowhere_else() {
    let server = with_answer(&[b"a"], is_manifest, |request, stream, _| {
        answer(stream, 302, &[("Location", &request.target.clone())], b"");
    });
    refused(&server, "too many").await;
    for (location, part) in [
        ("http://registry.example/x", "registry.insecure"),
        ("ftp://127.0.0.1/x", "no address"),
        ("http://user@127.0.0.1/x", "no address"),
        ("", "no address"),
    ] {
        let server = with_answer(&[b"a"], is_manifest, move |_, stream, _| {
            answer(stream, 307, &[("Location", location)], b"");
        });
        refused(&server, part).await;
    }
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let contents = contents(&[b"layer"]);
    let other = {
        let contents = contents.clone();
        Server::start(move |request, stream| serve(&contents, request, stream))
    };
    let target = other.authority.clone();
    let server = Server::start(move |request, stream| {
        if request.header("authorization") != Some("Basic YWxpY2U6c2VjcmV0") {
            return answer(stream, 401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b"");
        }
        if request.target.contains("blobs/") {
            let location = format!("http://{target}{}", request.target);
            return answer(stream, 307, &[("Location", &location)], b"");
        }
        serve(&contents, request, stream);
    });
    let access = Access {
        credentials: vec![Credentials::Password {
            registry: server.authority.parse().unwrap(),
            user: "alice".to_owned(),
            password: Secret::new("secret".to_owned()),
        }],
        ..Access::default()
    };
    let reference = reference(&server.authority, "x");
    let cache = Cache::new();
    let read = pull_all(settings(), access, &cache, &reference).await.unwrap();
    assert_eq!(read, [b"layer".to_vec()]);
    let seen = other.requests();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|request| request.header("authorization").is_none()), "{seen:?}");
    // Without them it says how to log in.
    let error = pull(settings(), Access::default(), &Cache::new(), &reference).await.unwrap_err();
    assert!(error.to_string().contains("refuses"), "{error}");
}

#[tokio::test]
async fn a_token_is_got_from_where_the_registry_says_and_used() {
    let contents = contents(&[b"layer"]);
    let tokens = Server::start(|request, stream| {
        let wanted = "/token?service=s&scope=repository%3Ax%3Apull";
        if request.target != wanted || request.header("authorization").is_none() {
            return answer(stream, 401, &[], b"");
        }
        answer(stream, 200, &[], br#"{"token":"t0k","expires_in":300}"#);
    });
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", tokens.authority);
    let server = Server::start(move |request, stream| {
        if request.header("authorization") != Some("Bearer t0k") {
            return answer(stream, 401, &[("WWW-Authenticate", &realm)], b"");
        }
        serve(&contents, request, stream);
    });
    let access = Access {
        credentials: vec![Credentials::Password {
            registry: server.authority.parse().unwrap(),
            user: "alice".to_owned(),
            password: Secret::new("secret".to_owned()),
        }],
        ..Access::default()
    };
    let reference = reference(&server.authority, "x");
    let cache = Cache::new();
    pull_all(settings(), access, &cache, &reference).await.unwrap();
    assert_eq!(tokens.requests().len(), 1, "one token serves all");
    let error = pull(settings(), Access::default(), &Cache::new(), &reference).await.unwrap_err();
    assert!(error.to_string().contains("a token"), "{error}");
}

#[tokio::test]
async fn token_servers_that_are_none_are_refused() {
    let huge = vec![b' '; (1 << 20) + 1];
    for (body, part) in [
        (b"{}".to_vec(), "no token"),
        (b"nonsense".to_vec(), "no token"),
        (br#"{"token":"a\nb"}"#.to_vec(), "no token"),
        (huge, "more than"),
    ] {
        let tokens = Server::start(move |_, stream| answer(stream, 200, &[], &body));
        let realm = format!("Bearer realm=\"http://{}/t\"", tokens.authority);
        let server = Server::start(move |_, stream| {
            answer(stream, 401, &[("WWW-Authenticate", &realm)], b"");
        });
        refused(&server, part).await;
    }
    for realm in ["Bearer realm=\"file:///etc/passwd\"", "Bearer realm=\"nonsense\""] {
        let server = Server::start(move |_, stream| {
            answer(stream, 401, &[("WWW-Authenticate", realm)], b"");
        });
        refused(&server, "a token server").await;
    }
    // One that wants a token for the token does not make us go round.
    let server = Server::start(|_, stream| {
        answer(stream, 401, &[("WWW-Authenticate", "Negotiate")], b"");
    });
    refused(&server, "refuses").await;
}

#[tokio::test]
async fn documents_that_are_none_are_refused_and_not_kept() {
    let (manifest, _) = image(&[b"layer"]);
    let index = |entry: &str, size: usize| {
        json!({"schemaVersion": 2, "manifests": [{"mediaType": INDEX, "digest": entry,
            "size": size, "platform": {"os": "linux", "architecture": "amd64"}}]})
        .to_string()
        .into_bytes()
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (MANIFEST, b"{\"schemaVersion\":2".to_vec(), "no document"),
        ("text/html", b"<html>".to_vec(), "no document"),
        ("text/html", manifest.clone(), "calls itself"),
        (INDEX, manifest, "calls itself"),
        (MANIFEST, vec![b' '; (4 << 20) + 1], "more than 4194304 bytes"),
        (INDEX, index(&digest(b"other"), 9), "has no manifest"),
    ];
    for (media_type, body, part) in cases {
        let server = with_answer(
            &[b"layer"],
            |path| path == "manifests/latest",
            move |_, stream, _| {
                answer(stream, 200, &[("Content-Type", media_type)], &body);
            },
        );
        let cache = refused(&server, part).await;
        assert!(cache.files("tags").is_empty(), "{part}");
    }
}

#[tokio::test]
async fn indexes_that_nest_for_ever_are_refused() {
    // A digest cannot lead back to itself, so a cycle is one of lies: each must be noticed.
    let body = |entry: &str| {
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": INDEX,
            "digest": entry, "size": 1000}]})
        .to_string()
        .into_bytes()
    };
    let a = body(&digest(b"b"));
    let served = body(&digest(&a));
    let server = Server::start(move |_, stream| {
        answer(stream, 200, &[("Content-Type", INDEX)], &served);
    });
    refused(&server, "its digest is").await;
    // An honest chain that is too deep.
    let mut chain = HashMap::new();
    let mut last = image(&[b"layer"]).0;
    for depth in 0..7 {
        let bytes = last.clone();
        chain.insert(digest(&bytes), bytes.clone());
        let media_type = if depth == 0 { MANIFEST } else { INDEX };
        last = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{
            "mediaType": media_type, "digest": digest(&bytes), "size": bytes.len()}]})
        .to_string()
        .into_bytes();
    }
    chain.insert("latest".to_owned(), last);
    let server = Server::start(move |request, stream| {
        let name = request.target.rsplit('/').next().unwrap_or_default();
        answer(stream, 200, &[], chain.get(name).map(Vec::as_slice).unwrap_or_default());
    });
    refused(&server, "too deeply").await;
}

#[tokio::test]
async fn a_manifest_of_another_digest_is_refused() {
    let server = with_answer(&[b"layer"], is_manifest, |_, stream, bytes| {
        let headers = [("Content-Type", MANIFEST), ("Docker-Content-Digest", &digest(b"other"))];
        answer(stream, 200, &headers, bytes);
    });
    refused(&server, "its digest is").await;
    let reference = reference(&server.authority, &format!("x@{}", digest(b"other")));
    let cache = Cache::new();
    let server_error = pull(settings(), Access::default(), &cache, &reference).await.unwrap_err();
    assert!(
        server_error.to_string().contains("no manifest")
            || server_error.to_string().contains("digest")
    );
}

#[tokio::test]
async fn layers_that_lie_are_refused_and_leave_nothing() {
    let layer = noise(3, 200_000);
    let wrong = noise(4, 200_000);
    type Lie = Box<dyn Fn(&Request, &mut TcpStream, &[u8]) + Send + Sync>;
    let cases: Vec<(&str, Lie)> = vec![
        ("its digest is", Box::new(move |_, stream, _| answer(stream, 200, &[], &wrong))),
        (
            "more than its",
            Box::new(|_, stream, bytes| {
                // Chunked: no length to compare.
                let head = "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n";
                let body = [bytes, bytes].concat();
                let _ = write!(stream, "{head}{:x}\r\n", body.len());
                let _ = stream.write_all(&body).and_then(|()| stream.write_all(b"\r\n0\r\n\r\n"));
            }),
        ),
        (
            "not the 200000",
            Box::new(|_, stream, bytes| {
                answer(stream, 200, &[("Content-Length", "200001")], bytes);
            }),
        ),
        (
            "not the 200000",
            Box::new(|_, stream, bytes| {
                answer(stream, 200, &[("Content-Length", "5")], &bytes[..5]);
            }),
        ),
        ("status 500", Box::new(|_, stream, _| answer(stream, 500, &[], b"x"))),
        ("has no layer 1", Box::new(|_, stream, _| answer(stream, 404, &[], b"x"))),
    ];
    for (part, lie) in cases {
        let server = with_answer(&[&layer], is_layer(&layer), lie);
        let cache = refused(&server, part).await;
        assert_eq!(cache.files("partial"), [], "{part}");
        let kept = cache.files("sha256");
        assert_eq!(kept.len(), 2, "{part}: manifest and configuration, {kept:?}");
    }
}

#[tokio::test]
async fn a_layer_that_is_cut_off_again_and_again_arrives() {
    let layer = noise(5, 1_000_000);
    let expected = layer.clone();
    let server = with_answer(&[&layer], is_layer(&layer), |request, stream, bytes| {
        let from = request.from();
        let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        let length = (bytes.len() - from).to_string();
        let end = (from + 150_000).min(bytes.len());
        let status = if from > 0 { 206 } else { 200 };
        let headers = [("Content-Range", range.as_str()), ("Content-Length", &length)];
        answer(stream, status, &headers, &bytes[from..end]);
    });
    let cache = Cache::new();
    let reference = reference(&server.authority, "x");
    let read = pull_all(settings(), Access::default(), &cache, &reference).await.unwrap();
    assert!(read == [expected]);
    let ranged = server.requests().iter().filter(|request| request.from() > 0).count();
    assert_eq!(ranged, 6);
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_its_beginning_on() {
    let layer = noise(6, 400_000);
    let expected = layer.clone();
    let tries = AtomicUsize::new(0);
    let server = with_answer(&[&layer], is_layer(&layer), move |_, stream, bytes| {
        let length = bytes.len().to_string();
        let end = if tries.fetch_add(1, Ordering::SeqCst) == 0 { 100_000 } else { bytes.len() };
        answer(stream, 200, &[("Content-Length", &length)], &bytes[..end]);
    });
    let reference = reference(&server.authority, "x");
    let cache = Cache::new();
    let read = pull_all(settings(), Access::default(), &cache, &reference).await.unwrap();
    assert!(read == [expected]);
}

#[tokio::test]
async fn another_range_than_asked_for_is_refused() {
    let layer = noise(7, 400_000);
    let server = with_answer(&[&layer], is_layer(&layer), |request, stream, bytes| {
        let length = bytes.len().to_string();
        if request.from() == 0 {
            return answer(stream, 200, &[("Content-Length", &length)], &bytes[..100_000]);
        }
        answer(stream, 206, &[("Content-Range", "bytes 5-9/10")], &bytes[..300_000]);
    });
    refused(&server, "another part").await;
}

#[tokio::test]
async fn servers_that_stall_are_left() {
    let layer = noise(8, 200_000);
    let server = with_answer(&[b"a"], is_manifest, |_, stream, _| wait_for_hang_up(stream));
    refused(&server, "does not answer").await;
    let server = with_answer(&[b"a"], is_manifest, |_, stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 500\r\n\r\n{");
        wait_for_hang_up(stream);
    });
    refused(&server, "does not finish").await;
    let server = with_answer(&[&layer], is_layer(&layer), |_, stream, bytes| {
        let _ = stream.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 200000\r\n\r\n");
        let _ = stream.write_all(&bytes[..1000]);
        wait_for_hang_up(stream);
    });
    refused(&server, "sends nothing").await;
    // One that is never silent, and never gets anywhere.
    let server = with_answer(&[&layer], is_layer(&layer), |request, stream, bytes| {
        let from = request.from();
        let length = bytes.len() - from;
        let status = if from > 0 { 206 } else { 200 };
        let _ = write!(
            stream,
            "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nContent-Range: bytes {from}-/*\r\n\r\n"
        );
        for byte in bytes[from..].chunks(16) {
            if stream.write_all(byte).is_err() {
                return;
            }
            // The pace is what is tested; the client's window ends it.
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    refused(&server, "next to nothing").await;
}

/// Keeps a connection open until the client gives up.
pub fn wait_for_hang_up(stream: &mut TcpStream) {
    let _ = std::io::Read::read(stream, &mut [0; 1]);
}

#[tokio::test]
async fn a_server_that_asks_for_patience_gets_some() {
    let contents = contents(&[b"layer"]);
    let tries = AtomicUsize::new(0);
    let server = Server::start(move |request, stream| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => answer(stream, 429, &[("Retry-After", "1")], b""),
        1 => answer(stream, 503, &[], b""),
        _ => serve(&contents, request, stream),
    });
    let reference = reference(&server.authority, "x");
    let cache = Cache::new();
    pull_all(settings(), Access::default(), &cache, &reference).await.unwrap();
    let server = Server::start(|_, stream| answer(stream, 429, &[("Retry-After", "3600")], b""));
    refused(&server, "3600 s").await;
    let server = Server::start(|_, stream| answer(stream, 503, &[], b""));
    refused(&server, "status 503").await;
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn what_a_server_says_is_shown_without_its_tricks() {
    let server = Server::start(|request, stream| serve(&HashMap::new(), request, stream));
    refused(&server, "no such ?[2Jthing").await;
}

#[tokio::test]
async fn nobody_who_listens_is_said() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cache = Cache::new();
    let reference = reference(&closed.to_string(), "x");
    let error = pull_all(settings(), Access::default(), &cache, &reference).await.unwrap_err();
    assert!(error.contains("reach") && error.contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_asked_for_in_the_order_in_which_they_are_read() {
    const COUNT: usize = 12;
    let layers: Vec<Vec<u8>> = (0..COUNT).map(|seed| noise(seed as u64, 20_000)).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let contents = contents(&layers);
    let names: Vec<String> =
        layers.iter().map(|layer| format!("/v2/x/blobs/{}", digest(layer))).collect();
    let server = Server::start(move |request, stream| {
        // Long enough that all who may ask at once have.
        std::thread::sleep(Duration::from_millis(100));
        serve(&contents, request, stream);
    });
    let name = reference(&server.authority, "x");
    pull_all(settings(), Access::default(), &Cache::new(), &name).await.unwrap();
    let asked: Vec<usize> = server
        .requests()
        .iter()
        .filter_map(|request| names.iter().position(|name| *name == request.target))
        .collect();
    assert_eq!(asked.len(), COUNT);
    // Three are on their way at a time, and may overtake each other.
    for (turn, layer) in asked.iter().enumerate() {
        assert!(layer.abs_diff(COUNT - 1 - turn) <= 2, "{asked:?}");
    }
}

#[tokio::test]
async fn an_image_that_the_disk_has_no_room_for_is_not_begun() {
    let server = with_answer(&[b"layer"], is_manifest, |_, stream, bytes| {
        let large = |manifest: &str| manifest.replace("\"size\":5", "\"size\":200000000000");
        let manifest = large(std::str::from_utf8(bytes).unwrap());
        answer(stream, 200, &[("Content-Type", MANIFEST)], manifest.as_bytes());
    });
    refused(&server, "200000000000 bytes").await;
    assert_eq!(server.requests().len(), 2, "the manifest and the configuration");
}

#[tokio::test]
async fn a_proxy_gets_the_requests_that_are_not_for_this_machine() {
    let contents = contents(&[b"layer"]);
    let proxy = Server::start(move |request, stream| {
        if request.method == "CONNECT" {
            return answer(stream, 403, &[], b"");
        }
        let target = request.target.strip_prefix("http://registry.test:5000").map(str::to_owned);
        let request = Request { target: target.unwrap_or_default(), ..request.clone() };
        serve(&contents, &request, stream);
    });
    let address = format!("http://alice:secret@{}", proxy.authority);
    let proxies = Proxies::new(Some(&address), Some(&address), Some("direct.test")).unwrap();
    let access = Access { proxies, ..Access::default() };
    let mut plain = settings();
    plain.insecure.push("registry.test:5000".parse().unwrap());
    let name = reference("registry.test:5000", "x");
    pull_all(plain, access.clone(), &Cache::new(), &name).await.unwrap();
    let seen = proxy.requests();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| request.header("proxy-authorization").is_some()));
    let error = pull_all(settings(), access, &Cache::new(), &reference("registry.test", "x"))
        .await
        .unwrap_err();
    assert!(error.contains("no tunnel") && error.contains("403"), "{error}");
    assert_eq!(proxy.requests().last().unwrap().target, "registry.test:443");
    assert_eq!(proxy.requests().len(), 4, "it is not asked again");
}
