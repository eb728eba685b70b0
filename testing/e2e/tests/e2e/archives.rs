//! `image import` of archives that are broken or hostile.

use banger_harness::{
    Contents, Environment, GUEST_DEADLINE, RootfsTar, compressed, skip, wait_for,
};
use tar::EntryType;

fn small() -> RootfsTar {
    RootfsTar::default().folder("bin", 0o755).folder("etc", 0o755).file(
        "etc/hostname",
        0o644,
        b"x\n",
    )
}

/// Imports and expects a clear refusal that leaves nothing.
fn refused(environment: &Environment, name: &str, archive: &[u8], words: &[&str]) {
    environment.import(name, archive).run().code(1).is_a_clear_error().says(words);
    environment.banger(["image", "show", name]).run().code(1);
    let images = environment.state().join("images");
    let left: Vec<_> = std::fs::read_dir(&images)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "a refused import leaves {left:?}");
}

#[test]
fn broken_archives_are_refused_and_leave_nothing() {
    let environment = Environment::new(Contents::Empty);
    let whole = small().file("big", 0o644, &[7; 100_000]).finish();
    refused(&environment, "nothing", b"", &["is empty"]);
    refused(&environment, "text", &b"this is not a tar archive\n".repeat(100), &[]);
    refused(&environment, "cut", &whole[..whole.len() / 2], &[]);
    for program in ["gzip", "zstd"] {
        let Some(packed) = compressed(program, &whole) else {
            return skip(program, "compresses the archive");
        };
        refused(&environment, "cut-packed", &packed[..packed.len() / 2], &[]);
    }
    environment.finish();
}

#[test]
fn hostile_archives_are_refused_or_harmless() {
    let environment = Environment::new(Contents::Empty);
    refused(&environment, "climb", &small().raw_name(b"../../etc/passwd", b"x").finish(), &[".."]);
    refused(
        &environment,
        "climb-inside",
        &small().raw_name(b"etc/../../x", b"x").finish(),
        &[".."],
    );
    refused(
        &environment,
        "no-target",
        &small().hard_link("etc/a", "etc/missing").finish(),
        &["etc/a"],
    );

    // Absolute names and links mean the image's own root.
    let archive = small()
        .raw_name(b"/etc/absolute", b"x")
        .symlink("etc/link", "/etc/shadow")
        .symlink("etc/out", "../../../../etc/passwd")
        .node("zero", EntryType::Char, 1, 5)
        .node("pipe", EntryType::Fifo, 0, 0)
        .file("etc/twice", 0o644, b"first")
        .file("etc/twice", 0o600, b"second")
        .finish();
    environment.import("odd", &archive).ok();
    let shown = environment.banger(["image", "show", "odd", "--json"]).ok().json();
    assert_eq!(shown["has_init"], false);
    let disk = environment.state().join("images/odd/rootfs.ext4");
    let disk = disk.to_str().unwrap();
    environment.host("e2fsck", &["-fn", disk]);
    let read = |command: &str| environment.host("debugfs", &["-R", command, disk]).out();
    assert_eq!(read("cat /etc/twice"), "second");
    assert_eq!(read("cat /etc/absolute"), "x");
    assert!(read("stat /zero").contains("character"), "{}", read("stat /zero"));
    assert!(read("stat /pipe").to_lowercase().contains("fifo"), "{}", read("stat /pipe"));
    assert!(read("stat /etc/link").contains("/etc/shadow"));
    environment.finish();
}

#[test]
fn a_sparse_bomb_costs_no_disk() {
    let environment = Environment::new(Contents::Empty);
    // A header that promises 1 EiB and gives nothing.
    let mut archive = small().finish();
    archive.truncate(archive.len() - 1024);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_path("bomb").unwrap();
    header.set_mode(0o644);
    header.set_size(1 << 60);
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(&[0; 4096]);
    refused(&environment, "bomb", &archive, &["bomb"]);
    environment.finish();
}

#[test]
fn an_image_name_is_taken_once() {
    let environment = Environment::new(Contents::Empty);
    let archive = small().finish();
    environment.import("one", &archive).ok();
    let refused = environment.import("one", &archive).run();
    refused.code(1).is_a_clear_error().says(&["one"]);
    environment.banger(["image", "delete", "one"]).ok();
    environment.import("one", &archive).ok();
    environment.finish();
}

#[test]
fn of_two_imports_at_once_the_first_to_be_whole_has_the_name() {
    let environment = Environment::new(Contents::Empty);
    // The first MiB is looked at before anything is made.
    let slow = small().file("slow", 0o644, &vec![1; 3 << 20]).finish();
    let (begin, rest) = slow.split_at(2 << 20);
    let mut first =
        environment.banger(["image", "import", "--name", "race", "-"]).open_input().spawn();
    first.write(begin);
    wait_for("the first import to begin", GUEST_DEADLINE, || {
        let images = environment.state().join("images");
        std::fs::read_dir(images).is_ok_and(|mut entries| entries.next().is_some()).then_some(())
    });
    let quick = small().file("quick", 0o644, b"q").finish();
    environment.import("race", &quick).ok();
    let size = || environment.banger(["image", "show", "race", "--json"]).ok().json();
    let whole = size();
    first.write(rest);
    first.close_input();
    first.finish().code(1).is_a_clear_error().says(&["race", "already"]);
    assert_eq!(size(), whole, "the second to end changed nothing");
    environment.finish();
}

#[test]
fn every_compression_gives_the_same_image() {
    let environment = Environment::new(Contents::Empty);
    let archive = small().finish();
    environment.import("plain", &archive).ok();
    let sha = |name: &str| {
        environment.banger(["image", "show", name, "--json"]).ok().json()["sha256"].clone()
    };
    let plain = sha("plain");
    for program in ["gzip", "zstd"] {
        let Some(packed) = compressed(program, &archive) else {
            return skip(program, "compresses the archive");
        };
        environment.import(program, &packed).ok();
        assert_eq!(sha(program), plain, "{program}");
    }
    environment.finish();
}

#[test]
fn a_killed_import_leaves_nothing() {
    let environment = Environment::new(Contents::Empty);
    environment.banger(["image", "list"]).ok();
    // An archive that never ends: the client waits for more of it.
    let mut import =
        environment.banger(["image", "import", "--name", "endless", "-"]).open_input().spawn();
    let archive = small().file("big", 0o644, &vec![1; 4 << 20]).finish();
    import.write(&archive[..archive.len() - 2048]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    import.signal(rustix::process::Signal::KILL);
    let _ = import.finish();
    environment.banger(["image", "show", "endless"]).run().code(1);
    environment.finish();
}
