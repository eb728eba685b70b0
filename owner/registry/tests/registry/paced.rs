//! Layers that never stand still and hardly move, in a time that the test moves on.

use std::io::Write;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use banger_registry::{Access, RegistryError, Settings};

use crate::hostile::{is_layer, with_answer};
use crate::support::{Cache, noise, pull, reference};

/// Less than any wait for the next bytes.
const STEP: Duration = Duration::from_secs(50);

/// Has a layer of `size` bytes come by `part` bytes in each [`STEP`], with the deadlines that people
/// have; returns after how many parts it ended, and how.
async fn come_by(part: usize, size: usize) -> (usize, Option<RegistryError>) {
    let layer = noise(12, size);
    let (sender, parts) = mpsc::channel::<usize>();
    let parts = Mutex::new(parts);
    let server = with_answer(&[&layer], is_layer(&layer), move |_, stream, mut bytes| {
        let head = format!("HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n", bytes.len());
        let _ = stream.write_all(head.as_bytes());
        for part in parts.lock().unwrap().iter() {
            let (now, later) = bytes.split_at(part.min(bytes.len()));
            if stream.write_all(now).is_err() || later.is_empty() {
                return;
            }
            bytes = later;
        }
    });
    let cache = Cache::new();
    let name = reference(&server.authority, "x");
    let pull = pull(Settings::default(), Access::default(), &cache, &name).await.unwrap();
    let mut progress = pull.progress();
    let mut count = 0;
    loop {
        sender.send(part).unwrap();
        count += 1;
        let sent = (count * part).min(size) as u64;
        while pull.failure().is_none() && progress.now()[0].0 < sent {
            assert!(progress.advanced().await);
        }
        if pull.failure().is_some() || sent == size as u64 {
            return (count, pull.failure());
        }
        if count == 1 {
            // The connections are made, which takes time of its own. From here on the writer's
            // thread keeps tokio from moving the time on by itself.
            tokio::time::pause();
        }
        tokio::time::advance(STEP).await;
    }
}

#[tokio::test]
async fn a_layer_that_hardly_comes_ends_the_pull_after_a_while() {
    let (count, failure) = come_by(40 << 10, 4 << 20).await;
    let failure = failure.expect("an end before the last part");
    assert!(failure.to_string().contains("too little of a layer in 900 s"), "{failure}");
    // 18 steps are those 900 s; the client may say so a part later.
    assert!((19..=21).contains(&count), "{count}");
}

#[tokio::test]
async fn a_layer_that_comes_slowly_arrives() {
    let (count, failure) = come_by(200 << 10, 6 << 20).await;
    assert!(failure.is_none(), "{failure:?}");
    // More than one window of 900 s.
    assert_eq!(count, 31);
}
