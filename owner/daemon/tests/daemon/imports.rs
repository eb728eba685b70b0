//! Imports: uploads that are good, bad, cut short, cancelled, joined or never come.

use std::io::Write;
use std::path::PathBuf;

use crate::support::{Answer, Place, is_root};
use serde_json::json;

/// Whether the builder's own tool is here.
fn e2fsck() -> bool {
    let here = ["/usr/sbin/e2fsck", "/sbin/e2fsck"].iter().any(|path| PathBuf::from(path).exists());
    if !here {
        println!("SKIP: e2fsprogs: e2fsck is not installed");
    }
    here
}

/// A tar archive with `files` of `size` bytes and the beginnings of a system.
fn archive(files: usize, size: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_cksum();
        tar.append_data(&mut header, path, content).unwrap();
    };
    add("etc/os-release", 0o644, b"ID=test\nVERSION_ID=1\n");
    add("bin/sh", 0o755, b"#!");
    add("root/.profile", 0o644, b"# hello\n");
    for number in 0..files {
        add(&format!("data/{number}"), 0o644, &vec![b'x'; size]);
    }
    tar.into_inner().unwrap()
}

fn begin(place: &Place, name: &str) -> (String, bool) {
    let body = json!({"name": name, "source": "test", "default_kernel": "k"}).to_string();
    let answer = place.request("POST", "/v1/images", body.as_bytes());
    assert_eq!(answer.status, 202, "{}", answer.text());
    let started = answer.json();
    let id = started["operation"]["id"].as_str().unwrap().to_owned();
    (id, started["joined"].as_bool().unwrap())
}

fn upload(place: &Place, id: &str, bytes: &[u8]) -> Answer {
    place.request("PUT", &format!("/v1/operations/{id}/upload"), bytes)
}

fn nothing_is_left(place: &Place) {
    let left: Vec<_> = std::fs::read_dir(place.path("state/images"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_archive_becomes_an_image_that_can_be_listed_shown_and_deleted() {
    if !e2fsck() {
        return;
    }
    let place = Place::new();
    let _daemon = place.start();
    let (id, joined) = begin(&place, "test");
    assert!(!joined);
    let answer = upload(&place, &id, &archive(100, 10_000));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let operation = place.operation_ended(&id);
    assert_eq!(operation["state"], "succeeded", "{operation}");
    assert_eq!(operation["kind"], "image_import");

    let image = place.get("/v1/images/test");
    assert_eq!(image["os"], "test 1");
    assert_eq!(image["default_kernel"], "k");
    assert_eq!(image["has_init"], false);
    assert_eq!(place.get("/v1/images"), json!([image]));

    // The name is taken now, for another import too.
    let body = json!({"name": "test", "source": "again"}).to_string();
    place.request("POST", "/v1/images", body.as_bytes()).error("already_exists");
    // Every line of the event stream of an ended operation is its end.
    let events = place.request("GET", &format!("/v1/operations/{id}/events"), b"").text();
    assert_eq!(events.lines().count(), 1);
    assert!(events.contains("\"succeeded\""), "{events}");

    assert_eq!(place.request("DELETE", "/v1/images/test", b"").status, 200);
    place.request("DELETE", "/v1/images/test", b"").error("not_found");
    nothing_is_left(&place);
}

#[test]
fn bad_archives_are_refused_and_leave_nothing() {
    let place = Place::new();
    let _daemon = place.start();
    let whole = archive(100, 10_000);
    for bytes in [&b""[..], b"not a tar", &vec![7; 100_000], &whole[..whole.len() / 2]] {
        let (id, _) = begin(&place, "bad");
        upload(&place, &id, bytes);
        let operation = place.operation_ended(&id);
        assert_eq!(operation["state"], "failed", "{operation}");
        assert_eq!(operation["error"]["code"], "bad_archive", "{operation}");
        assert_eq!(operation["error"]["op_id"], id.as_str());
        nothing_is_left(&place);
    }
    // A kernel is no better.
    let body = json!({"name": "bad", "source": "test"}).to_string();
    let started = place.request("POST", "/v1/kernels", body.as_bytes()).json();
    let id = started["operation"]["id"].as_str().unwrap();
    upload(&place, id, b"!<arch>\nrubbish");
    assert_eq!(place.operation_ended(id)["error"]["code"], "bad_archive");
    assert!(place.get("/v1/kernels").as_array().unwrap().is_empty());
}

#[test]
fn a_lost_upload_cancels_the_import_and_the_name_is_free_again() {
    if !e2fsck() {
        return;
    }
    let place = Place::new();
    let _daemon = place.start();
    let whole = archive(1000, 10_000);
    let (id, _) = begin(&place, "test");
    // Another client joins and watches.
    let (same, joined) = begin(&place, "test");
    assert!(joined && same == id);

    let mut stream = place.connect();
    let head = format!(
        "PUT /v1/operations/{id}/upload HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        whole.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&whole[..whole.len() / 2]).unwrap();
    while place.get(&format!("/v1/operations/{id}"))["state"] == "pending" {
        std::thread::yield_now();
    }
    // A second upload to the same operation is refused.
    upload(&place, &id, b"").error("in_use");
    drop(stream);
    let operation = place.operation_ended(&id);
    assert_eq!(operation["state"], "cancelled", "{operation}");
    nothing_is_left(&place);

    // The one who watched takes over.
    let (next, joined) = begin(&place, "test");
    assert!(!joined && next != id);
    upload(&place, &next, &whole);
    assert_eq!(place.operation_ended(&next)["state"], "succeeded");
}

#[test]
fn a_cancelled_import_ends_before_during_and_after_its_upload() {
    let place = Place::new();
    let _daemon = place.start();
    let (id, _) = begin(&place, "test");
    assert_eq!(place.request("DELETE", &format!("/v1/operations/{id}"), b"").status, 200);
    assert_eq!(place.operation_ended(&id)["state"], "cancelled");
    upload(&place, &id, b"late").error("cancelled");

    let (id, _) = begin(&place, "test");
    let mut stream = place.connect();
    let head = format!(
        "PUT /v1/operations/{id}/upload HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let whole = archive(10, 10_000);
    stream.write_all(format!("{:x}\r\n", whole.len()).as_bytes()).unwrap();
    stream.write_all(&whole[..50_000]).unwrap();
    // The client stalls, and somebody cancels.
    assert_eq!(place.request("DELETE", &format!("/v1/operations/{id}"), b"").status, 200);
    assert_eq!(place.operation_ended(&id)["state"], "cancelled");
    Answer::read(stream).error("cancelled");
    nothing_is_left(&place);
}

#[test]
fn a_daemon_that_ends_or_dies_during_an_import_leaves_nothing_for_the_next() {
    let place = Place::new();
    let whole = archive(10, 10_000);
    for kill in [false, true] {
        let daemon = place.start();
        let (id, _) = begin(&place, "test");
        let mut stream = place.connect();
        let head = format!(
            "PUT /v1/operations/{id}/upload HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            whole.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&whole[..50_000]).unwrap();
        while place.get(&format!("/v1/operations/{id}"))["state"] == "pending" {
            std::thread::yield_now();
        }
        if kill {
            daemon.kill();
        } else {
            daemon.signal(rustix::process::Signal::TERM);
            assert_eq!(daemon.ended().code(), Some(0));
            nothing_is_left(&place);
        }
    }
    let _daemon = place.start();
    nothing_is_left(&place);
}

#[test]
fn a_full_disk_is_said_with_numbers_and_leaves_nothing() {
    if !is_root() {
        println!("SKIP: root: only root can mount a small file system");
        return;
    }
    let place = Place::new();
    let Some(_mount) = SmallDisk::mount(&place.path("state")) else {
        println!("SKIP: mount: a tmpfs cannot be mounted here");
        return;
    };
    let _daemon = place.start();
    let (id, _) = begin(&place, "big");
    upload(&place, &id, &archive(100, 1 << 20));
    let operation = place.operation_ended(&id);
    assert_eq!(operation["error"]["code"], "no_space", "{operation}");
    let hint = operation["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("are free below"), "{hint}");
    nothing_is_left(&place);
}

/// A tmpfs of 16 MiB.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &std::path::Path) -> Option<Self> {
        let data = format!("size=16m,mode=700,uid={0},gid={0}", crate::support::DROPPED_UID);
        let data = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount(
            "tmpfs",
            path,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            data.as_c_str(),
        )
        .ok()?;
        Some(Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
