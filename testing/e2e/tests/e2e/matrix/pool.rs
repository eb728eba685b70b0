//! Taps that wait for machines (`network.tap_pool`), with guests that are held.

use std::collections::BTreeSet;

use banger_harness::{find_program, wait_for};
use rustix::process::Signal;

use super::scene::{REST, Scene};

/// The taps of this thread's network.
fn taps() -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    names.filter(|name| name.starts_with("tap-")).collect()
}

/// The tap that the firewall has for a guest's MAC.
fn tap_of(mac: &str) -> Option<String> {
    let nft = find_program("nft").unwrap();
    let mut command = std::process::Command::new(nft);
    let listed = command.args(["list", "table", "bridge", "banger"]).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let before = text.split_once(&format!("\" . {mac}"))?.0;
    before.rsplit('"').next().map(str::to_owned)
}

/// Waits until so many taps are there.
fn come_to(count: usize) -> BTreeSet<String> {
    wait_for("taps that wait", REST, || (taps().len() == count).then_some(()));
    taps()
}

#[test]
fn machines_take_taps_that_wait_and_others_come_and_nobodys_are_left() {
    let Some(scene) = Scene::new("qemu") else { return };
    let size = |size: &str| {
        scene.banger(&["config", "set", "network.tap_pool", size]).ok();
    };
    let kill = || {
        let daemon = scene.service("bangerd").unwrap();
        daemon.signal(Signal::KILL);
        wait_for("its death", REST, || (!daemon.is_alive()).then_some(()));
    };
    assert_eq!(taps().len(), 0);
    size("10");
    let waiting = come_to(10);
    assert!(waiting.iter().all(|name| name.starts_with("tap-pool-")), "{waiting:?}");
    let doctor = scene.banger(&["doctor"]).run().out();
    assert!(doctor.contains("10 taps wait for VMs"), "{doctor}");

    // One that waited is a machine's, with its rules, and another comes.
    scene.create("box").ok();
    let shown = scene.banger(&["vm", "show", "box", "--json"]).ok().json();
    let mac = shown["mac"].as_str().unwrap();
    let tap = tap_of(mac).unwrap();
    assert!(waiting.contains(&tap), "{tap}");
    assert!(come_to(11).contains(&tap));

    // The daemon dies: the next one knows whose it is, and what waits for nobody.
    kill();
    scene.banger(&["vm", "set", "box", "--group", "web"]).ok();
    assert_eq!(tap_of(mac).as_deref(), Some(tap.as_str()));
    assert!(come_to(11).contains(&tap));

    // What it gave back is nobody's any more, in the firewall too.
    scene.banger(&["vm", "stop", "box"]).ok();
    assert_eq!(tap_of(mac), None);
    let is_given_back = || taps().len() == 10 && !taps().contains(&tap);
    wait_for("the tap's end, and ten that wait", REST, || is_given_back().then_some(()));
    scene.banger(&["vm", "start", "box"]).ok();
    let tap = tap_of(mac).unwrap();
    assert!(tap.starts_with("tap-pool-"), "{tap}");

    // With the daemon's end only machines' stay; one that dies while it makes some leaves none that
    // the next one does not end or use.
    scene.banger(&["daemon", "stop"]).ok();
    assert_eq!(taps(), [tap.clone()].into());
    size("40");
    kill();
    assert_eq!(scene.list().len(), 1);
    assert!(come_to(41).contains(&tap));
    let notes = scene.environment.state().join("taps.json");
    wait_for("the last one's name", REST, || {
        let known: serde_json::Value = serde_json::from_slice(&std::fs::read(&notes).ok()?).ok()?;
        taps().iter().all(|name| !known[name].is_null()).then_some(())
    });

    // Nor does one that has lost its notes take what is a machine's, or another daemon's.
    let stranger = "tap-pool-77777";
    let add = format!("tuntap add dev {stranger} mode tap user 1 group 1 vnet_hdr");
    scene.environment.host("ip", &add.split(' ').collect::<Vec<_>>());
    kill();
    std::fs::remove_file(&notes).unwrap();
    size("3");
    let left = come_to(5);
    assert!(left.contains(&tap) && left.contains(stranger), "{left:?}");
    scene.environment.host("ip", &["link", "delete", stranger]);
    scene.banger(&["vm", "stop", "box"]).ok();
    kill();
    assert_eq!(scene.list().len(), 1);
    come_to(3);

    size("0");
    come_to(0);
    scene.banger(&["vm", "delete", "box"]).ok();
    scene.finish();
}
