//! `vm cp`: files and trees into a machine and out of it.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use banger_harness::{Contents, Environment};

#[test]
fn trees_go_in_and_come_back_the_same() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let home = environment.home().to_owned();
    let top = home.join("site");
    std::fs::create_dir_all(top.join("d/empty")).unwrap();
    for (name, size) in [("a", 0), ("d/b", 5), ("d/odd \u{e4}\n name", 100_000), ("d/big", 9 << 20)]
    {
        let bytes: Vec<u8> =
            (0..size).map(|i: usize| (i.wrapping_mul(31) >> 3).to_le_bytes()[0]).collect();
        std::fs::write(top.join(name), bytes).unwrap();
    }
    std::fs::write(top.join("d").join("n".repeat(200)), "long").unwrap();
    std::fs::set_permissions(top.join("d/b"), PermissionsExt::from_mode(0o750)).unwrap();
    std::fs::set_permissions(top.join("d"), PermissionsExt::from_mode(0o705)).unwrap();
    std::fs::hard_link(top.join("d/b"), top.join("h")).unwrap();
    symlink("../no//where", top.join("s")).unwrap();
    environment.host("touch", &["-d", "2001-02-03 04:05:06", top.join("d/b").to_str().unwrap()]);

    let copy =
        |source: &str, target: &str| environment.banger(["vm", "cp", source, target]).folder(&home);
    let inside = |script: &str| environment.exec("box", ["sh", "-c", script]).ok().out();
    copy("site", "box:/srv").ok();
    assert_eq!(
        inside("stat -c '%a %u %Y %h' /srv/d/b; readlink /srv/s"),
        "750 0 981173106 2\n../no//where\n"
    );
    // There is a directory now, so it goes into that.
    copy("site/.", "box:/srv").ok();
    assert_eq!(inside("ls /srv | sort"), "a\nd\nh\ns\n");
    copy("./site", "box:/srv/").ok();
    assert_eq!(inside("ls /srv/site | wc -l").trim(), "4");
    copy("box:/srv/site", "back").ok();
    environment.host(
        "diff",
        &["-r", "--no-dereference", top.to_str().unwrap(), home.join("back").to_str().unwrap()],
    );
    let metadata = |name: &str| home.join("back").join(name).symlink_metadata().unwrap();
    assert_eq!((metadata("d/b").mode() & 0o7777, metadata("d/b").mtime()), (0o750, 981_173_106));
    assert_eq!(metadata("d").mode() & 0o7777, 0o705);
    assert_eq!(metadata("d/b").ino(), metadata("h").ino());

    // Single files, under a new name and over an old one.
    std::fs::write(home.join("note"), "one").unwrap();
    copy("note", "box:").ok();
    copy("note", "box:/tmp/other").ok();
    assert_eq!(inside("cat /root/note /tmp/other"), "oneone");
    copy("box:/tmp/other", "site/a").ok();
    assert_eq!(std::fs::read_to_string(top.join("a")).unwrap(), "one");
    let owned = environment.banger(["vm", "cp", "--owner", "alice", "note", "box:/tmp/hers"]);
    owned.folder(&home).ok();
    assert_eq!(inside("stat -c %u /tmp/hers"), "1000\n");

    // Tar streams both ways.
    let tar = environment.banger(["vm", "cp", "box:/srv/site/d", "-"]).ok();
    environment.banger(["vm", "cp", "-", "box:/tmp"]).input(tar.stdout).ok();
    assert_eq!(inside("cmp /tmp/d/big /srv/d/big && echo same"), "same\n");

    // What makes no sense says so, and leaves nothing.
    for (source, target, words) in [
        ("missing", "box:/tmp", "missing"),
        ("box:/missing", "x", "/missing"),
        ("site", "box:/tmp/other", "no directory"),
        ("note", "box:/no/where/x", "mkdir -p /no/where"),
        ("note", "box:/no/where/", "no such directory"),
        ("box:/srv", "note", "no directory"),
        ("box:/srv", "no/where/x", "no/where"),
        ("box:/dev/null", "x", "nothing"),
    ] {
        copy(source, target).run().code(1).is_a_clear_error().says(&[words]);
    }
    for (source, target) in [("note", "x"), ("box:/a", "box:/b"), ("-", "x"), ("box:../x", "x")] {
        copy(source, target).run().code(2).is_a_clear_error();
    }
    assert!(!home.join("x").exists());
    environment.finish();
}
