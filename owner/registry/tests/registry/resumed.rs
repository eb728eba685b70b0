//! What breaks off: documents are asked for again, and what is left of a layer is gone on with.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use banger_registry::Access;

use crate::hostile::{contents, is_layer, serve, wait_for_hang_up, with_answer};
use crate::server::{Request, Server, answer};
use crate::support::{
    Cache, MANIFEST, digest, image, noise, pull, pull_all, read, reference, settings,
};

#[tokio::test]
async fn documents_that_break_off_are_asked_for_again() {
    let (manifest, config) = image(&[b"layer"]);
    let by_digest = format!("manifests/{}", digest(&manifest));
    for (wanted, name) in [
        ("manifests/latest".to_owned(), "x".to_owned()),
        (by_digest, format!("x@{}", digest(&manifest))),
        (format!("blobs/{}", digest(&config)), "x".to_owned()),
    ] {
        for (cuts, asked, arrives) in [(1, 2, true), (2, 3, true), (usize::MAX, 3, false)] {
            let (tries, path) = (AtomicUsize::new(0), wanted.clone());
            let answers = move |_: &Request, stream: &mut TcpStream, bytes: &[u8]| {
                let whole = tries.fetch_add(1, Ordering::SeqCst) >= cuts;
                let end = if whole { bytes.len() } else { bytes.len() / 2 };
                let length = bytes.len().to_string();
                let headers = [("Content-Type", MANIFEST), ("Content-Length", &length)];
                answer(stream, 200, &headers, &bytes[..end]);
            };
            let server = with_answer(&[b"layer"], move |name| name == path, answers);
            let cache = Cache::new();
            let name = reference(&server.authority, &name);
            let pulled = pull_all(settings(), Access::default(), &cache, &name).await;
            match pulled {
                Ok(read) => assert!(arrives && read == [b"layer".to_vec()], "{wanted} {cuts}"),
                Err(error) => assert!(!arrives && error.contains("read from"), "{error}"),
            }
            let requests = server.requests();
            let requests = requests.iter().filter(|request| request.target.ends_with(&wanted));
            assert_eq!(requests.count(), asked, "{wanted} {cuts}");
            assert!(cache.files("partial").is_empty());
        }
    }
}

#[tokio::test]
async fn what_is_left_of_a_layer_is_gone_on_with_unless_it_is_damaged() {
    let layer = noise(9, 500_000);
    for damaged in [false, true] {
        let contents = contents(&[&layer]);
        let server = Server::start(move |request, stream| serve(&contents, request, stream));
        let cache = Cache::new();
        let hex = digest(&layer).replace("sha256:", "");
        let mut left = layer[..200_000].to_vec();
        left[1000] ^= u8::from(damaged);
        std::fs::write(cache.directory.path().join("blobs/partial").join(hex), left).unwrap();
        let reference = reference(&server.authority, "x");
        let read = pull_all(settings(), Access::default(), &cache, &reference).await.unwrap();
        assert!(read == [layer.clone()]);
        let from: Vec<usize> = server
            .requests()
            .iter()
            .filter(|request| request.target.ends_with(&digest(&layer)))
            .map(Request::from)
            .collect();
        assert_eq!(from, if damaged { vec![200_000, 0] } else { vec![200_000] });
    }
}

#[tokio::test]
async fn a_blob_that_was_damaged_is_noticed_and_fetched_anew() {
    let layer = noise(10, 300_000);
    let contents = contents(&[&layer]);
    let server = Server::start(move |request, stream| serve(&contents, request, stream));
    let cache = Cache::new();
    let name = reference(&server.authority, "x");
    pull_all(settings(), Access::default(), &cache, &name).await.unwrap();
    let hex = digest(&layer).replace("sha256:", "");
    let path = cache.directory.path().join("blobs/sha256").join(hex);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[299_999] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let begun = pull(settings(), Access::default(), &cache, &name).await.unwrap();
    let (begun, layers) = read(begun).await;
    assert!(layers.is_err() && begun.may_be_repeated());
    drop(begun);
    let read = pull_all(settings(), Access::default(), &cache, &name).await.unwrap();
    assert!(read == [layer]);
}

#[tokio::test]
async fn a_pull_that_is_dropped_wakes_its_readers_and_leaves_what_came() {
    let layer = noise(11, 400_000);
    let server = with_answer(&[&layer], is_layer(&layer), |_, stream, bytes| {
        let _ = stream.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 400000\r\n\r\n");
        let _ = stream.write_all(&bytes[..100_000]);
        wait_for_hang_up(stream);
    });
    let mut patient = settings();
    patient.deadlines.stall = Duration::from_secs(600);
    patient.deadlines.window = Duration::from_secs(600);
    let cache = Cache::new();
    let name = reference(&server.authority, "x");
    let begun = pull(patient, Access::default(), &cache, &name).await.unwrap();
    let mut reader = begun.layers()[0].open();
    let (sender, half) = tokio::sync::oneshot::channel();
    let reading = tokio::task::spawn_blocking(move || {
        let mut first = vec![0; 100_000];
        std::io::Read::read_exact(&mut reader, &mut first).unwrap();
        let _ = sender.send(());
        std::io::Read::read(&mut reader, &mut first)
    });
    half.await.unwrap();
    assert_eq!(cache.store.prune(true).unwrap().count, 2, "what a pull holds is not counted");
    drop(begun);
    assert!(reading.await.unwrap().unwrap_err().to_string().contains("called off"));
    let left = cache.files("partial");
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].1, 100_000);
    assert_eq!(cache.store.prune(true).unwrap().count, 3);
    assert_eq!(cache.store.prune(false).unwrap().count, 3);
    assert!(cache.files("partial").is_empty() && cache.files("sha256").is_empty());
}
