//! What may be executed.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use banger_gates::VmmKind;
use banger_host::HostError;
use banger_privileged_tests::OWNER;
use serde_json::json;

use banger_privileged_tests::vmm::{PROGRAMS, Scene, idle_program, place, scene, set_mode};

fn resolve(scene: &Scene) -> Result<std::path::PathBuf, HostError> {
    let place = place(&format!("{PROGRAMS}/firecracker"), VmmKind::Firecracker, scene.policy());
    scene.host().resolve_firecracker_binary(&[place])
}

/// Both the question and the launch refuse it, and the launch changes nothing.
fn refused(scene: &Scene, rule: &str) {
    let error = resolve(scene).unwrap_err();
    assert!(matches!(error, HostError::Refused(_)), "{error:?}");
    assert!(error.to_string().contains(rule), "{error}");
    let before = scene.everything();
    let error = scene.launch(scene.params("one")).unwrap_err();
    assert!(matches!(error, HostError::Refused(_)), "{error:?}");
    assert!(error.to_string().starts_with("binary_path: "), "{error}");
    assert_eq!(scene.everything(), before, "{rule}");
}

#[test]
fn only_what_root_alone_can_change_is_executed() {
    let Some(scene) = scene() else { return };
    let path = format!("{PROGRAMS}/firecracker");
    let path = Path::new(&path);
    assert_eq!(resolve(&scene).unwrap(), path);
    for mode in [0o775, 0o757, 0o777] {
        set_mode(path, mode);
        refused(&scene, "can be written to by others than root");
    }
    set_mode(path, 0o644);
    refused(&scene, "is not executable");
    set_mode(path, 0o100);
    assert_eq!(resolve(&scene).unwrap(), path);
    set_mode(path, 0o755);
    chown(path, Some(OWNER), None).unwrap();
    refused(&scene, "is not root's");
    chown(path, Some(0), None).unwrap();
    set_mode(path, 0o755);
    for (parent, rule) in [(PROGRAMS, "banger can be"), ("/usr/local/lib", "lib can be")] {
        for mode in [0o775, 0o757, 0o1777] {
            set_mode(parent, mode);
            refused(&scene, rule);
        }
        set_mode(parent, 0o755);
        chown(parent, Some(OWNER), None).unwrap();
        refused(&scene, "is not root's");
        chown(parent, Some(0), None).unwrap();
    }
    let real = Path::new(PROGRAMS).join("real");
    fs::rename(path, &real).unwrap();
    refused(&scene, "firecracker is not there");
    for target in [real.as_path(), Path::new("/bin/bash"), path] {
        symlink(target, path).unwrap();
        refused(&scene, "is a symbolic link");
        fs::remove_file(path).unwrap();
    }
    fs::create_dir(path).unwrap();
    set_mode(path, 0o755);
    refused(&scene, "is not a regular file");
    fs::remove_dir(path).unwrap();
    fs::rename(&real, path).unwrap();
    let moved = "/usr/local/lib/moved";
    fs::rename(PROGRAMS, moved).unwrap();
    symlink(moved, PROGRAMS).unwrap();
    let error = resolve(&scene).unwrap_err();
    assert!(error.to_string().contains("is a symbolic link"), "{error}");
    fs::remove_file(PROGRAMS).unwrap();
    fs::rename(moved, PROGRAMS).unwrap();

    // The first that is good is taken, whatever came before.
    let places = ["/usr/bin", "/opt/firecracker", PROGRAMS].map(|folder| {
        place(&format!("{folder}/firecracker"), VmmKind::Firecracker, scene.policy())
    });
    assert_eq!(scene.host().resolve_firecracker_binary(&places).unwrap(), path);
    let pid = scene.launch(scene.params("one")).unwrap();
    scene.end("one", pid);
    scene.assert_clean();
}

/// Firecracker's "missing exec file", and files that cannot be executed.
#[test]
fn what_cannot_be_executed_leaves_nothing() {
    let Some(scene) = scene() else { return };
    let path = Path::new(PROGRAMS).join("firecracker");
    fs::remove_file(&path).unwrap();
    refused(&scene, "firecracker is not there");
    fs::write(&path, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    set_mode(&path, 0o755);
    let before = scene.everything();
    let error = scene.launch(scene.params("one")).unwrap_err().to_string();
    assert!(error.contains("not an ELF file"), "{error}");
    assert_eq!(scene.everything(), before);
    // A program that runs and never answers, with its end not waited for but asked for.
    fs::write(&path, idle_program()).unwrap();
    set_mode(&path, 0o100);
    let error = scene.launch(scene.params("one")).unwrap_err();
    assert!(matches!(error, HostError::Failed { operation: "start" | "jail", .. }), "{error:?}");
    scene.assert_clean();
    let jailer = Path::new(PROGRAMS).join("jailer");
    fs::write(&jailer, idle_program()).unwrap();
    set_mode(&jailer, 0o700);
    fs::remove_file(&jailer).unwrap();
    let error = scene.launch(scene.params("one")).unwrap_err();
    assert!(error.to_string().starts_with("jailer.binary: no such file"), "{error:?}");
    scene.assert_clean();
}

/// A program with an interpreter finds its libraries in the jail, and they go with it.
#[test]
fn a_dynamic_program_sees_the_libraries_read_only() {
    let Some(scene) = scene() else { return };
    let path = Path::new(PROGRAMS).join("firecracker");
    fs::copy("/usr/bin/sleep", &path).unwrap();
    set_mode(&path, 0o755);
    let error = scene.launch(scene.params("one")).unwrap_err();
    let HostError::Failed { source, .. } = error else { panic!("{error:?}") };
    // It runs, and only then finds the words of Firecracker strange.
    assert!(source.to_string().contains("unrecognized option '--id"), "{source}");
    scene.assert_clean();
}

/// Firecracker's "exec destination is a symlink or hard link": the jail is always a new one.
#[test]
fn a_jail_that_is_there_is_not_used() {
    let Some(scene) = scene() else { return };
    let outside = scene.write("outside", b"keep me");
    let prepare = |kind: &str| {
        let root = scene.jail("one").join("root");
        fs::create_dir_all(&root).unwrap();
        match kind {
            "symlink" => symlink(&outside, root.join("firecracker")).unwrap(),
            _ => fs::hard_link(&outside, root.join("firecracker")).unwrap(),
        }
    };
    for kind in ["symlink", "hard link"] {
        prepare(kind);
        let before = scene.everything();
        let error = scene.launch(scene.params("one")).unwrap_err();
        assert!(error.to_string().contains("there is a jail of this id"), "{error}");
        assert_eq!(scene.everything(), before, "{kind}");
        scene.clean_up("one").unwrap();
        assert_eq!(fs::read(&outside).unwrap(), b"keep me", "{kind}");
    }
    let mut params = scene.params("one");
    params["kernel_args"] = json!("");
    let pid = scene.launch(params).unwrap();
    scene.end("one", pid);
    scene.assert_clean();
}
