//! The root helper of direct mode is killed, and nobody but the next command starts it again.

use banger_harness::Inventory;

use super::scene::{Scene, kill};

fn kill_helper(scene: &Scene) {
    kill(Some(&scene.service("bangerd-root").expect("it runs")));
}

/// What there is of machines in this network: taps, and what the firewall knows.
fn beyond(scene: &Scene, before: &Inventory) -> Vec<String> {
    Inventory::take(scene.environment.base()).beyond(before)
}

#[test]
fn the_next_command_starts_a_dead_helper_again() {
    let Some(scene) = Scene::new("qemu") else { return };
    scene.create("box").ok();
    let daemon = scene.service("bangerd").expect("it runs").pid;
    kill_helper(&scene);
    // Each of these needs it.
    scene.create("other").ok();
    assert_ne!(scene.service("bangerd").expect("it runs").pid, daemon);
    kill_helper(&scene);
    scene.banger(&["vm", "set", "box", "--group", "web"]).ok();
    kill_helper(&scene);
    scene.banger(&["vm", "stop", "box"]).ok();
    kill_helper(&scene);
    let doctor = scene.banger(&["doctor"]).run().out();
    assert!(doctor.contains("root helper: answers"), "{doctor}");
    kill_helper(&scene);
    scene.banger(&["vm", "delete", "box", "other"]).ok();
    scene.finish();
}

#[test]
fn what_a_stop_could_not_remove_is_told_and_removed_by_the_next_daemon() {
    let Some(scene) = Scene::new("qemu") else { return };
    scene.create("box").ok();
    scene.banger(&["vm", "stop", "box"]).ok();
    let resting = Inventory::take(scene.environment.base());
    let hook = scene.environment.state().join("fault");
    for fault in ["detach_network=refused", "detach_root_disk=timeout", "clean_runtime=enospc"] {
        scene.banger(&["vm", "start", "box"]).ok();
        std::fs::write(&hook, fault).unwrap();
        for _ in 0..2 {
            let stop = scene.banger(&["vm", "stop", "box"]).run();
            assert_ne!(stop.exit_code(), Some(0), "{fault}");
            let words = stop.err();
            assert!(words.contains("is left on the host"), "{fault}: {words}");
            assert!(words.contains("banger vm stop box"), "{fault}: {words}");
        }
        let doctor = scene.banger(&["doctor"]).run().out();
        assert!(doctor.contains("left of VM box"), "{fault}: {doctor}");
        if fault.starts_with("detach_network") {
            let left = beyond(&scene, &resting);
            assert!(left.iter().any(|one| one.starts_with("interface tap-fc-")), "{left:?}");
        }
        std::fs::remove_file(&hook).unwrap();
        scene.banger(&["daemon", "stop"]).ok();
        let shown = scene.banger(&["vm", "show", "box", "--json"]).ok().json();
        assert!(shown["notes"]["leftovers"].is_null(), "{fault}: {shown}");
        assert_eq!(beyond(&scene, &resting), [""; 0], "{fault}");
    }
    scene.banger(&["vm", "delete", "box"]).ok();
    scene.finish();
}
