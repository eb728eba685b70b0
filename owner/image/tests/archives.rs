//! What images come in and go out as: archives told apart, exports that are the same image again.

mod support;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use banger_harness::tree::{Mounted, cannot_compare, differences, umoci_unpack, walk};
use banger_image::{
    BuildOptions, CancelFlag, ExportFormat, Image, ImageStoreError, NewImage, NoProgress, Selection,
};
use banger_types::{ImageConfig, ImageConfigFields};
use support::layered::plain;
use support::layout::write_layout;
use support::{Header, Store, archive, chain, content, directory, file, link, pax};

impl Store {
    fn take(&self, name: &str, bytes: &[u8], selection: &Selection) -> Result<Image, String> {
        let new = NewImage {
            name: name.parse().expect("a name"),
            source: "test".into(),
            kernel: None,
            replace: false,
        };
        let options = BuildOptions { size: 64 << 20, free: 1 << 20, ..BuildOptions::default() };
        let cancel = CancelFlag::default();
        self.store
            .import_any(&new, selection, bytes, &options, &NoProgress, &cancel)
            .map_err(|error| chain(&error))
    }

    fn give(&self, image: &Image, format: ExportFormat) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.store
            .export(&image.manifest.name, format, &CancelFlag::default())
            .expect("an export")
            .write(&mut bytes)
            .expect("memory");
        bytes
    }
}

fn config() -> ImageConfig {
    let fields = ImageConfigFields {
        user: "33:33".into(),
        env: vec!["A=b".into()],
        cmd: vec!["serve".into(), "it now".into()],
        exposed_ports: ["80/tcp".to_owned()].into(),
        stop_signal: "SIGQUIT".into(),
        ..ImageConfigFields::default()
    };
    ImageConfig::try_from(fields).expect("a configuration")
}

/// A tree with all that an archive can carry.
fn everything() -> Vec<u8> {
    let capability = [1_u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("d/{}", "long/".repeat(40));
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, 1000),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 4, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let large = vec![b'v'; 3000];
    let sparse_map = support::padded(b"1\n1048576\n5\n".to_vec());
    let mut sparse = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"9000000"),
        ("mtime", b"7"),
    ]);
    let mut stored = sparse_map;
    stored.extend(b"piece");
    sparse.extend(file("x", &stored));
    archive(&[
        pax(&[("mtime", b"1600000000.123456789")]),
        Header::new(b"./", b'5', 0).octal(100, 8, 0o751).octal(108, 8, 7).finish(),
        directory("d"),
        pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.large", &large),
        ]),
        file("d/capable", &[3; 100_000]),
        pax(&[("SCHILY.xattr.system.posix_acl_access", &acl)]),
        file("d/listed", b"x"),
        link("d/again", b'1', "d/capable"),
        link("d/link", b'2', "../d/capable"),
        link("d/link-again", b'1', "d/link"),
        pax(&[("linkpath", "t/".repeat(100).as_bytes()), ("mtime", b"-3.5")]),
        link("d/far", b'2', "x"),
        pax(&[("path", long.as_bytes())]),
        directory("x"),
        pax(&[("path", b"not\xffutf8\n"), ("uid", b"3000000000")]),
        file("x", b"bytes"),
        Header::new(b"null", b'3', 0).octal(329, 8, 1).octal(337, 8, 3).finish(),
        Header::new(b"disk", b'4', 0).octal(329, 8, 259).octal(337, 8, 70_000).finish(),
        Header::new(b"pipe", b'6', 0).finish(),
        sparse,
        directory("root"),
        file("root/.profile", b"seed"),
    ])
}

#[test]
fn an_export_is_the_same_image_again() {
    let store = Store::new();
    let image = store.build_with(vec![plain(&everything())], config()).expect("an image");
    assert_eq!(image.manifest.config, Some(config()));
    let layout = store.give(&image, ExportFormat::Layout);
    let again = store.take("again", &layout, &Selection::default()).expect("a layout");
    assert_eq!(again.manifest.config, Some(config()));
    assert!(again.manifest.manifest_digest.is_some());
    let bundle = store.give(&image, ExportFormat::Bundle);
    let third = store.take("third", &bundle, &Selection::default()).expect("a bundle");
    assert_eq!(third.manifest.config, Some(config()));
    assert!(third.manifest.has_work_seed && again.manifest.has_work_seed);
    assert_eq!(third.manifest.id, image.manifest.id);
    assert!(third.manifest.allocated < 8 << 20, "{}", third.manifest.allocated);
    // The same layer a second time: exports are reproducible.
    let relayed = store.give(&again, ExportFormat::Layout);
    let fourth = store.take("fourth", &relayed, &Selection::default()).expect("a layout");
    assert_eq!(fourth.manifest.tar_sha256, again.manifest.tar_sha256);

    if let Some(reason) = cannot_compare() {
        println!("SKIP: {reason}");
        return;
    }
    let first = Mounted::new(&image.root());
    let expected = walk(first.0.path());
    for other in [&again, &third] {
        let mounted = Mounted::new(&other.root());
        let said = differences(&walk(mounted.0.path()), &expected);
        assert!(said.is_empty(), "{}", said.join("\n"));
    }
    // Others read it too.
    let scratch = tempfile::tempdir().expect("a directory");
    let tar = scratch.path().join("layout.tar");
    std::fs::write(&tar, &layout).expect("a file");
    let unpacked = scratch.path().join("layout");
    std::fs::create_dir(&unpacked).expect("a directory");
    run(Command::new("/usr/bin/tar").arg("-xf").arg(&tar).arg("-C").arg(&unpacked));
    let shown = run(Command::new("/usr/bin/skopeo")
        .args(["inspect", "--config"])
        .arg(format!("oci:{}:test", unpacked.display())));
    assert!(shown.contains("\"StopSignal\": \"SIGQUIT\""), "{shown}");
    let theirs = umoci_unpack(&unpacked, &scratch.path().join("bundle")).expect("umoci");
    let said = differences(&expected, &walk(&theirs));
    assert!(said.is_empty(), "{}", said.join("\n"));
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("a program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A tar of a directory, as anyone would make it.
fn tar_of(path: &Path) -> Vec<u8> {
    let output = Command::new("/usr/bin/tar").arg("-C").arg(path).args(["-c", "."]).output();
    output.expect("tar").stdout
}

#[test]
fn what_others_write_is_told_apart_and_taken() {
    if let Some(reason) = cannot_compare() {
        println!("SKIP: {reason}");
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let layers = [
        plain(&archive(&[directory("etc"), file("etc/a", b"old"), file("gone", b"x")])),
        plain(&archive(&[file("etc/a", b"new"), file(".wh.gone", b"")])),
    ];
    let layout = scratch.path().join("layout");
    write_layout(&layout, &layers, r#"{"Cmd":["serve"]}"#);
    let store = Store::new();
    let oci = store.take("oci", &tar_of(&layout), &Selection::default()).expect("a layout");

    let saved = scratch.path().join("saved.tar");
    run(Command::new("/usr/bin/skopeo")
        .args(["copy", "--insecure-policy"])
        .arg(format!("oci:{}:test", layout.display()))
        .arg(format!("docker-archive:{}:example/name:1", saved.display())));
    let saved = std::fs::read(saved).expect("a file");
    let named = |name: &str| Selection { reference: Some(name.into()), ..Selection::default() };
    let from_docker =
        store.take("docker", &saved, &named("example/name:1")).expect("what docker saves");
    // Short and whole names are the same.
    let full = named("docker.io/example/name:1");
    store.take("docker-again", &saved, &full).expect("what docker saves");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&saved).expect("memory");
    let packed = encoder.finish().expect("memory");
    let zipped = store.take("zipped", &packed, &Selection::default()).expect("compressed");
    for image in [&oci, &from_docker, &zipped] {
        assert_eq!(content(&image.root(), "/etc/a"), b"new");
        assert_eq!(content(&image.root(), "/gone"), b"");
        assert_eq!(image.manifest.config.as_ref().expect("a configuration").cmd, ["serve"]);
        assert_eq!(image.manifest.layers.len(), 2);
    }
    // A root file system is not taken for anything else.
    let root = archive(&[directory("blobs"), directory("blobs/sha256"), file("etc", b"x")]);
    let image = store.take("root", &root, &Selection::default()).expect("a root file system");
    assert_eq!(image.manifest.config, None);
    let wanted = Selection { platform: "linux/arm64".into(), ..Selection::default() };
    let error = store.take("arm", &tar_of(&layout), &wanted).expect_err("another platform");
    assert!(error.contains("is not for linux/arm64; it is for linux/amd64"), "{error}");
    let wanted = Selection { reference: Some("other".into()), ..Selection::default() };
    let error = store.take("other", &tar_of(&layout), &wanted).expect_err("another name");
    assert!(error.contains("has no image other; it has test"), "{error}");
    let left = store.left();
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
}

#[test]
fn a_registered_file_stays_where_it_is_until_it_is_promoted() {
    let store = Store::new();
    let image = store.build(vec![plain(&everything())]).expect("an image");
    let scratch = tempfile::tempdir().expect("a directory");
    let own = scratch.path().join("own.ext4");
    std::fs::copy(image.root(), &own).expect("a copy");
    let new = NewImage {
        name: "own".parse().expect("a name"),
        source: "register:own.ext4".into(),
        kernel: None,
        replace: false,
    };
    let cancel = CancelFlag::default();
    let registered = store.store.register(&new, &own, &cancel).expect("a file system");
    assert_eq!(registered.root(), own.canonicalize().expect("a path"));
    assert!(registered.manifest.has_work_seed);
    assert!(store.store.promote(&new.name, &cancel).expect("a copy"));
    assert!(!store.store.promote(&new.name, &cancel).expect("nothing to do"));
    std::fs::remove_file(&own).expect("removed");
    let promoted = store.store.get(&new.name).expect("an image");
    assert_eq!(content(&promoted.root(), "/d/listed"), b"x");

    let other = NewImage { name: "bad".parse().expect("a name"), ..new };
    std::fs::write(&own, b"no file system").expect("a file");
    for (path, expected) in [
        (own.as_path(), "holds no ext4 file system"),
        (Path::new("relative.ext4"), "not absolute"),
        (scratch.path(), "not a regular file"),
        (Path::new("/nonexistent/x"), "No such file"),
    ] {
        let error = store.store.register(&other, path, &cancel).expect_err("no image");
        assert!(chain(&error).contains(expected), "{}", chain(&error));
    }
    let taken = store.store.register(
        &NewImage { name: "own".parse().expect("a name"), ..other },
        &own,
        &cancel,
    );
    assert!(matches!(taken, Err(ImageStoreError::Shelf(_))));
    let left = store.left();
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
}
