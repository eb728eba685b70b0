//! What `image pull` makes of images of other tools, through a registry, against what `umoci unpack`
//! makes of them: the same trees.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_harness::tree::{JUST_NOW, Mounted, cannot_compare, differences, umoci_unpack, walk};
use banger_harness::{Contents, Environment, Registry, RootfsTar, find_program, skip};
use rustix::fs::{AtFlags, FileType, Mode, Timespec, Timestamps, XattrFlags};
use serde_json::json;

/// Runs a tool and returns its first line.
#[track_caller]
fn tool(program: &str, words: &[&str]) -> String {
    let program = find_program(program).unwrap_or_else(|| panic!("{program}"));
    let output = Command::new(&program).args(words).output().expect("a tool");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {words:?}: {said}", program.display());
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// Fills a tree with one of each kind.
fn fill(root: &Path) {
    let make = |name: &str| {
        let path = root.join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        path
    };
    let bin = make("usr/bin");
    make("opaque/below");
    std::fs::write(root.join("opaque/below/old"), "old").expect("a file");
    std::fs::write(root.join("gone"), "gone").expect("a file");
    std::fs::write(bin.join("tool"), vec![7; 70_000]).expect("a file");
    std::fs::set_permissions(bin.join("tool"), PermissionsExt::from_mode(0o4755)).expect("a mode");
    std::fs::hard_link(bin.join("tool"), bin.join("other-name")).expect("a hard link");
    symlink("../usr/./bin/tool", root.join("link")).expect("a link");
    symlink("/nowhere", root.join("broken")).expect("a link");
    let capability = [1_u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let ping = bin.join("ping");
    std::fs::write(&ping, "ping").expect("a file");
    std::os::unix::fs::chown(&ping, Some(7), Some(1_000_000)).expect("an owner");
    rustix::fs::setxattr(&ping, "security.capability", &capability, XattrFlags::empty())
        .expect("a capability");
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        make("dev").join("null"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        device,
    )
    .expect("a device");
    std::fs::write(root.join("odd \u{e9}\n\u{1f600}"), "").expect("a file");
}

/// Changes it, for a layer above.
fn change(root: &Path) {
    std::fs::remove_file(root.join("gone")).expect("a file");
    std::fs::remove_dir_all(root.join("opaque")).expect("a directory");
    std::fs::create_dir(root.join("opaque")).expect("a directory");
    std::fs::write(root.join("opaque/new"), "new").expect("a file");
    std::fs::remove_file(root.join("link")).expect("a link");
    std::fs::create_dir(root.join("link")).expect("a directory");
    std::fs::set_permissions(root.join("usr"), PermissionsExt::from_mode(0o2711)).expect("a mode");
}

/// When the entries of the two layers were changed last, in seconds since 1970.
const CHANGED: [i64; 2] = [1_600_000_000, 1_650_000_000];

/// Gives what was made or changed just now a time of the past, directories too: only such times can
/// be told from those of the unpacking.
fn age(root: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    for (path, found) in walk(root) {
        if found.modified.0 > JUST_NOW {
            let path = root.join(path);
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
                .expect("a time");
        }
    }
}

/// Has umoci make an image of two layers.
fn by_umoci(folder: &Path, to: &str) {
    let (layout, bundle) = (folder.join("umoci"), folder.join("umoci-bundle"));
    let image = format!("{}:x", layout.display());
    tool("umoci", &["init", "--layout", text(&layout)]);
    tool("umoci", &["new", "--image", &image]);
    tool("umoci", &["unpack", "--image", &image, text(&bundle)]);
    for (layer, seconds) in [fill as fn(&Path), change].into_iter().zip(CHANGED) {
        layer(&bundle.join("rootfs"));
        age(&bundle.join("rootfs"), seconds);
        tool("umoci", &["repack", "--refresh-bundle", "--image", &image, text(&bundle)]);
    }
    skopeo(&format!("oci:{image}"), to, &[]);
}

/// Has buildah make one of two layers, in docker's format.
fn by_buildah(folder: &Path, to: &str) {
    let policy = folder.join("policy.json");
    let trust = json!({"default": [{"type": "insecureAcceptAnything"}]});
    std::fs::write(&policy, trust.to_string()).expect("a file");
    let (root, run) = (folder.join("buildah"), folder.join("buildah-run"));
    let places = ["--root", text(&root), "--runroot", text(&run), "--storage-driver", "vfs"];
    let buildah = |words: &[&str]| tool("buildah", &[&places[..], words].concat());
    let mut from = "scratch".to_owned();
    let layers = [(fill as fn(&Path), "one"), (change, "two")];
    for ((layer, name), seconds) in layers.into_iter().zip(CHANGED) {
        let container =
            buildah(&["from", "--pull=never", "--signature-policy", text(&policy), &from]);
        let mounted = buildah(&["mount", &container]);
        layer(Path::new(&mounted));
        age(Path::new(&mounted), seconds);
        let trusted = ["commit", "--signature-policy", text(&policy), "--format", "docker"];
        buildah(&[&trusted[..], &["-q", &container, name]].concat());
        buildah(&["rm", &container]);
        from = format!("localhost/{name}");
    }
    let trusted = ["push", "--signature-policy", text(&policy), "--tls-verify=false", "-q"];
    buildah(&[&trusted[..], &["two", to]].concat());
}

/// Has skopeo compress umoci's layers with zstd, which umoci cannot, and push them as they are then.
fn by_skopeo_with_zstd(folder: &Path, to: &str) {
    let (from, layout) = (folder.join("umoci"), folder.join("zstd"));
    let here = format!("oci:{}:x", layout.display());
    skopeo(&format!("oci:{}:x", from.display()), &here, &["--dest-compress-format", "zstd"]);
    skopeo(&here, to, &["--preserve-digests"]);
    let manifest = tool("skopeo", &["inspect", "--raw", "--tls-verify=false", to]);
    assert_eq!(manifest.matches("layer.v1.tar+zstd").count(), 2, "{manifest}");
}

/// Has skopeo push what the harness wrote.
fn by_skopeo(registry: &Registry) {
    let base = RootfsTar::default()
        .folder("etc", 0o755)
        .file("etc/passwd", 0o600, b"root:x:0:0::/root:/bin/sh\n")
        .file("etc/hostname", 0o644, b"base\n")
        .finish();
    let upper = RootfsTar::default()
        .file("etc/.wh.passwd", 0o644, b"")
        .file("etc/hostname", 0o640, b"upper\n")
        .finish();
    registry.push("skopeo:1", &[&base, &upper], &json!({}));
}

fn skopeo(from: &str, to: &str, more: &[&str]) {
    let copy = ["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"];
    tool("skopeo", &[&copy[..], more, &[from, to]].concat());
}

#[test]
fn images_of_other_tools_are_the_trees_that_umoci_makes_of_them() {
    if let Some(reason) = cannot_compare() {
        return skip("umoci", reason);
    }
    if find_program("buildah").is_none() {
        return skip("buildah", "which makes one of the images");
    }
    let environment = Environment::new(Contents::Empty);
    let folder = environment.base().join("references");
    std::fs::create_dir(&folder).expect("a directory");
    let Some(registry) = Registry::start(&environment.base().join("registry"), false) else {
        return skip("docker-registry", "the registry that images are pulled from, and skopeo");
    };
    for name in ["umoci", "zstd", "buildah", "skopeo"] {
        let reference = format!("{}/{name}:1", registry.authority());
        let docker = format!("docker://{reference}");
        match name {
            "umoci" => by_umoci(&folder, &docker),
            "zstd" => by_skopeo_with_zstd(&folder, &docker),
            "buildah" => by_buildah(&folder, &docker),
            _ => by_skopeo(&registry),
        }
        environment.banger(["image", "pull", &reference, "--name", name]).ok();
        let disk = environment.state().join("images").join(name).join("rootfs.ext4");
        environment.host("e2fsck", &["-fn", text(&disk)]);
        let layout = folder.join(format!("{name}-layout"));
        let here = format!("oci:{}:test", layout.display());
        // The umoci of Debian knows gzip alone.
        let for_umoci = ["--src-tls-verify=false", "--dest-compress-format", "gzip"];
        skopeo(&docker, &here, &for_umoci);
        let theirs: PathBuf = umoci_unpack(&layout, &folder.join(format!("{name}-unpacked")))
            .unwrap_or_else(|error| panic!("umoci: {error}"));
        let mounted = Mounted::new(&disk);
        let (ours, theirs) = (walk(mounted.0.path()), walk(&theirs));
        assert!(theirs.len() > 2, "{name}: {theirs:?}");
        // The root alone may be without an entry.
        let new = theirs
            .iter()
            .filter(|(path, found)| !path.as_os_str().is_empty() && found.is_new_directory());
        assert_eq!(new.map(|(path, _)| path).collect::<Vec<_>>(), Vec::<&PathBuf>::new(), "{name}");
        let said = differences(&ours, &theirs);
        assert!(said.is_empty(), "{name}:\n{}", said.join("\n"));
    }
    drop(registry);
    environment.finish();
}
