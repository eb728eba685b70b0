//! `doctor --fix`: what belongs to no machine goes, what only looks so stays.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use banger_harness::{Contents, Environment, wait_for};
use serde_json::Value;

/// A QEMU of the daemon's user with sockets of another banger.
struct Stranger(Child);

impl Stranger {
    fn start(environment: &Environment) -> Self {
        let uid = environment.daemon().unwrap().status("Uid").unwrap();
        let uid: u32 = uid.split_whitespace().next().unwrap().parse().unwrap();
        let folder = environment.home().join("vms/0123456789ab");
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::chown(&folder, Some(uid), Some(uid)).unwrap();
        let socket = folder.join("agent.sock");
        let chardev = format!("socket,id=agent,path={},server=on,wait=off", socket.display());
        let qemu = banger_harness::find_program("qemu-system-x86_64").unwrap();
        let mut command = Command::new(qemu);
        command.args(["-M", "none", "-accel", "tcg", "-display", "none", "-nodefaults", "-S"]);
        command.args(["-chardev", &chardev]).uid(uid).gid(uid).current_dir("/");
        let stranger = Self(command.spawn().unwrap());
        wait_for("its socket", banger_harness::GUEST_DEADLINE, || socket.exists().then_some(()));
        stranger
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn leftovers(report: &Value) -> Vec<String> {
    let checks = report["checks"].as_array().unwrap().iter();
    let found = checks.filter(|check| check["name"] == "leftovers" && check["status"] == "WARN");
    found.map(|check| check["detail"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_both_store_and_handles_have_lost_is_listed_and_removed() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("kept");
    environment.start_busybox("lost");
    environment.exec("kept", ["sh", "-c", "echo kept > /root/f"]).ok();
    let id = environment.show("lost")["id"].as_str().unwrap().to_owned();
    let vmm = environment.vmm("lost");
    let mut stranger = Stranger::start(&environment);
    let notes = environment.state().join("vms/notes");
    std::fs::create_dir(&notes).unwrap();

    // Handles alone, lost or garbled: the store serves.
    let folder = environment.state().join("vms").join(&id);
    environment.stop_daemon();
    std::fs::write(folder.join("handles.json"), "{").unwrap();
    environment.exec("lost", ["true"]).ok();
    environment.stop_daemon();
    std::fs::remove_file(folder.join("handles.json")).unwrap();
    environment.exec("lost", ["true"]).ok();
    let report = environment.banger(["doctor", "--json"]).run().json();
    assert_eq!(leftovers(&report), [""; 0]);

    // Both: nobody knows it any more.
    environment.stop_daemon();
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(environment.state().join(format!("banger.db{suffix}")));
    }
    std::fs::remove_file(folder.join("vm.json")).unwrap();
    let report = environment.banger(["doctor", "--json"]).run().json();
    let found = leftovers(&report);
    let vmm_words = format!("VMM process {}", vmm.pid);
    let mut all = vec![vmm_words.as_str(), "sockets ", "VM directory "];
    // Only root's machines have one.
    all.extend(banger_harness::is_root().then_some("tap "));
    assert_eq!(found.len(), all.len(), "{found:?}");
    for words in &all {
        assert!(found.iter().any(|line| line.starts_with(words)), "{words}: {found:?}");
    }
    assert!(vmm.is_alive(), "looking changes nothing");

    let fixed = environment.banger(["doctor", "--fix", "--json"]).run().json();
    assert_eq!(fixed["fix"]["removed"].as_array().unwrap().len(), all.len(), "{fixed}");
    assert_eq!(fixed["fix"]["kept"].as_array().unwrap().len(), 0, "{fixed}");
    assert_eq!(leftovers(&fixed), [""; 0]);
    assert!(!vmm.is_alive() && !folder.exists());
    assert!(notes.is_dir(), "it is not ours");
    assert!(stranger.0.try_wait().unwrap().is_none(), "nor is that process");
    assert_eq!(environment.vms(), ["kept"]);
    assert_eq!(environment.exec("kept", ["cat", "/root/f"]).ok().out(), "kept\n");
    std::fs::remove_dir(notes).unwrap();
    drop(stranger);
    environment.finish();
}
