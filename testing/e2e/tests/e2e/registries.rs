//! `image pull` from registries: Debian's own, and one that stops in the middle.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use banger_harness::{Contents, Environment, GUEST_DEADLINE, Registry, RootfsTar, skip, wait_for};
use rustix::process::Signal;
use serde_json::json;

fn base() -> Vec<u8> {
    RootfsTar::default()
        .folder("etc", 0o755)
        .file("etc/hostname", 0o644, b"base\n")
        .file("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\n")
        .finish()
}

/// A layer that hides a file of the base, and brings `size` bytes that do not compress.
fn upper(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect();
    RootfsTar::default()
        .file("etc/.wh.passwd", 0o644, b"")
        .file("etc/hostname", 0o644, b"upper\n")
        .file("blob", 0o644, &noise)
        .finish()
}

fn registry(environment: &Environment, login: bool) -> Option<Registry> {
    let started = Registry::start(&environment.base().join("registry"), login);
    if started.is_none() {
        skip("docker-registry", "the registry that images are pulled from, and skopeo");
    }
    started
}

fn usage(environment: &Environment) -> serde_json::Value {
    environment.banger(["system", "df", "--json"]).ok().json()
}

#[test]
fn images_come_from_a_registry_and_their_blobs_are_shared_and_pruned() {
    let environment = Environment::new(Contents::Empty);
    let Some(registry) = registry(&environment, false) else { return };
    let (base, upper) = (base(), upper(300_000));
    let config = json!({"Env": ["A=b"], "Cmd": ["/bin/app"]});
    registry.push("team/app:1", &[&base, &upper], &config);
    let reference = format!("{}/team/app:1", registry.authority());

    // Two at once, of the same and of another name.
    let pull = |name: &str| environment.banger(["image", "pull", &reference, "--name", name]);
    let running = [pull("a").spawn(), pull("a").spawn(), pull("b").spawn()];
    for (running, name) in running.into_iter().zip(["a", "a", "b"]) {
        assert_eq!(running.finish().code(0).out().trim(), name);
    }
    let shown = environment.banger(["image", "show", "a", "--json"]).ok().json();
    assert!(shown["source"].as_str().unwrap().starts_with(&format!("{reference}@sha256:")));
    assert_eq!(shown["config"]["Env"], json!(["A=b"]));
    assert_eq!(shown["layers"].as_array().unwrap().len(), 2);
    let disk = environment.state().join("images/a/rootfs.ext4");
    let disk = disk.to_str().unwrap();
    environment.host("e2fsck", &["-fn", disk]);
    let read = |command: &str| environment.host("debugfs", &["-R", command, disk]);
    assert_eq!(read("cat /etc/hostname").out(), "upper\n");
    assert!(!read("ls -p /etc").out().contains("/passwd/"));
    let list = environment.banger(["image", "list"]).ok().out();
    assert!(list.contains(&reference) && !list.contains("sha256"), "{list}");

    // Manifest, configuration, two layers.
    let before = usage(&environment);
    assert_eq!((&before["blobs"]["count"], &before["images"]["count"]), (&json!(4), &json!(2)));
    // Unchanged: the image stays what it is. With a name of its own, it is the same pull.
    pull("a").ok();
    assert_eq!(environment.banger(["image", "show", "a", "--json"]).ok().json()["id"], shown["id"]);
    environment.banger(["image", "pull", &reference]).ok();
    environment.banger(["image", "show", "app-1"]).ok();

    let prune = |more: &[&str]| {
        environment.banger([&["image", "cache", "prune"], more].concat()).ok().out()
    };
    assert!(prune(&["--dry-run"]).starts_with("would remove 4 blobs"));
    assert_eq!(usage(&environment)["blobs"]["count"], 4);
    assert!(prune(&[]).starts_with("removed 4 blobs"));
    assert_eq!(usage(&environment)["blobs"]["count"], 0);
    environment.host("e2fsck", &["-fn", disk]);

    // The tag moves on, and so does the image; another image does not take its place.
    registry.push("team/app:1", &[&base], &config);
    pull("a").ok();
    let newer = environment.banger(["image", "show", "a", "--json"]).ok().json();
    assert_ne!(newer["id"], shown["id"]);
    assert_eq!(newer["layers"].as_array().unwrap().len(), 1);
    registry.push("team/other:1", &[&upper], &config);
    let other = format!("{}/team/other:1", registry.authority());
    let taken = environment.banger(["image", "pull", &other, "--name", "a"]);
    taken.run().code(1).is_a_clear_error().says(&["already", "--force"]);
    environment.banger(["image", "pull", &other, "--name", "a", "--force"]).ok();

    let missing = format!("{}/team/app:none", registry.authority());
    let run = environment.banger(["image", "pull", &missing]).run();
    run.code(1).is_a_clear_error().says(&["manifest unknown"]);
    let run = environment.banger(["vm", "create", "--image", &missing]).run();
    run.code(1).is_a_clear_error().says(&["manifest unknown"]);
    for bad in ["a//b", "A/b:c:d", "x@sha256:1"] {
        environment.banger(["image", "pull", bad]).run().code(2).is_a_clear_error();
    }
    drop(registry);
    environment.finish();
}

/// Returns whether any file below a directory holds these bytes. File systems, which are gigabytes
/// of holes, are left out.
fn holds(directory: &Path, secret: &[u8]) -> bool {
    std::fs::read_dir(directory).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            return holds(&path, secret);
        }
        let is_disk = path.extension().is_some_and(|extension| extension == "ext4");
        kind.is_file()
            && !is_disk
            && std::fs::read(&path).unwrap().windows(secret.len()).any(|part| part == secret)
    })
}

#[test]
fn logins_are_read_from_where_docker_keeps_them_and_kept_nowhere() {
    let environment = Environment::new(Contents::Empty);
    let Some(registry) = registry(&environment, true) else { return };
    registry.push("x:1", &[&base()], &json!({}));
    let reference = format!("{}/x:1", registry.authority());
    let run = environment.banger(["image", "pull", &reference]).run();
    run.code(1).is_a_clear_error().says(&["docker login"]);

    let docker = environment.home().join("docker");
    std::fs::create_dir(&docker).unwrap();
    let login = |auth: &str| {
        let config = json!({"auths": {registry.authority(): {"auth": auth}}});
        std::fs::write(docker.join("config.json"), config.to_string()).unwrap();
        environment.banger(["image", "pull", &reference, "--force"]).env("DOCKER_CONFIG", &docker)
    };
    // alice:wrong, alice:secret
    login("YWxpY2U6d3Jvbmc=").run().code(1).is_a_clear_error().says(&["log in again"]);
    login("YWxpY2U6c2VjcmV0").ok();

    // A program that keeps it instead.
    let helper = environment.home().join("docker-credential-test");
    let answer = r#"{"Username":"alice","Secret":"secret"}"#;
    std::fs::write(&helper, format!("#!/bin/sh\nread server\nprintf '%s' '{answer}'\n")).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(docker.join("config.json"), r#"{"credsStore":"test"}"#).unwrap();
    let path = format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", environment.home().display());
    environment
        .banger(["image", "pull", &reference, "--name", "y"])
        .env("DOCKER_CONFIG", &docker)
        .env("PATH", path)
        .ok();
    for directory in [environment.state(), environment.cache(), environment.runtime()] {
        for secret in ["alice:secret", "YWxpY2U6c2VjcmV0", "alice:wrong", "YWxpY2U6d3Jvbmc"] {
            assert!(!holds(&directory, secret.as_bytes()), "{secret} in {}", directory.display());
        }
    }
    drop(registry);
    environment.finish();
}

/// Passes requests on to a registry; of the large blob it gives only a part while it is told to
/// stop, and remembers where each request for it began.
#[derive(Clone)]
struct Stopping {
    authority: String,
    stop: Arc<Mutex<bool>>,
    begins: Arc<Mutex<Vec<usize>>>,
}

const PART: usize = 200_000;

impl Stopping {
    fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stopping = Self {
            authority: listener.local_addr().unwrap().to_string(),
            stop: Arc::new(Mutex::new(true)),
            begins: Arc::default(),
        };
        let serving = stopping.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (serving, to) = (serving.clone(), to.clone());
                std::thread::spawn(move || serving.pass_on(stream, &to));
            }
        });
        stopping
    }

    fn pass_on(&self, mut client: TcpStream, to: &str) -> Option<()> {
        let mut head = String::new();
        let mut reader = BufReader::new(client.try_clone().ok()?);
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).ok().filter(|count| *count > 0)?;
        }
        let from = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let from = value.strip_prefix("bytes=")?.strip_suffix('-')?;
            name.eq_ignore_ascii_case("range").then(|| from.parse::<usize>().ok())?
        });
        let mut server = TcpStream::connect(to).ok()?;
        let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        server.write_all(head.as_bytes()).ok()?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).ok()?;
        if answer.len() < PART {
            return client.write_all(&answer).ok();
        }
        self.begins.lock().unwrap().push(from.unwrap_or(0));
        if !*self.stop.lock().unwrap() {
            return client.write_all(&answer).ok();
        }
        client.write_all(&answer[..PART]).ok()?;
        // Until the client hangs up.
        client.read(&mut [0]).ok().map(drop)
    }
}

#[test]
fn a_pull_that_was_interrupted_or_killed_goes_on_where_it_stopped() {
    let environment = Environment::new(Contents::Empty);
    let Some(registry) = registry(&environment, false) else { return };
    registry.push("x:1", &[&base(), &upper(1_000_000)], &json!({}));
    let stopping = Stopping::start(registry.authority().to_owned());
    let reference = format!("{}/x:1", stopping.authority);
    let partial = environment.cache().join("blobs/partial");
    let arrived = || {
        let files = std::fs::read_dir(&partial).into_iter().flatten().flatten();
        files.map(|file| file.metadata().map_or(0, |metadata| metadata.len())).sum::<u64>()
    };
    let pull = || environment.banger(["image", "pull", &reference]);

    let running = pull().spawn();
    let first = wait_for("a part of the layer", GUEST_DEADLINE, || {
        Some(arrived()).filter(|bytes| *bytes > PART as u64 / 2)
    });
    let pruned = environment.banger(["image", "cache", "prune"]).ok().out();
    assert!(pruned.starts_with("removed"), "{pruned}");
    assert!(arrived() >= first, "what a pull needs is not pruned");
    running.signal(Signal::INT);
    running.finish().code(130).says(&["goes on with what has arrived"]);
    assert!(arrived() >= first);
    let images = std::fs::read_dir(environment.state().join("images")).unwrap();
    assert_eq!(images.count(), 0, "nothing is left of the image");

    let running = pull().spawn();
    wait_for("the next request", GUEST_DEADLINE, || {
        (stopping.begins.lock().unwrap().len() == 2).then_some(())
    });
    environment.daemon().unwrap().signal(Signal::KILL);
    let killed = running.finish();
    assert_ne!(killed.exit_code(), Some(0));

    *stopping.stop.lock().unwrap() = false;
    pull().ok();
    let begins = stopping.begins.lock().unwrap().clone();
    assert!(begins[0] == 0 && begins[1..].iter().all(|begin| *begin as u64 >= first), "{begins:?}");
    let disk = environment.state().join("images/x-1/rootfs.ext4");
    environment.host("e2fsck", &["-fn", disk.to_str().unwrap()]);
    drop(registry);
    environment.finish();
}
