//! Other names for machines.

use banger_harness::{Contents, Environment};

#[test]
fn a_machine_is_renamed_while_it_runs_and_when_it_does_not() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let id = environment.show("box")["id"].clone();
    let pid = environment.vmm("box").pid;
    assert_eq!(environment.banger(["vm", "rename", "box", "web"]).ok().out(), "web\n");
    assert_eq!(environment.show("web")["id"], id);
    assert_eq!(environment.vmm("web").pid, pid, "it goes on");
    let names = "hostname; cat /etc/hostname; grep -c 127.0.1.1 /etc/hosts; tail -n 1 /etc/hosts";
    let said = environment.exec("web", ["sh", "-c", names]).ok().out();
    assert_eq!(said, "web\nweb\n1\n127.0.1.1\tweb\n");
    let gone = environment.banger(["vm", "show", "box"]).run().code(1).is_a_clear_error();
    assert!(gone.err().contains("box"), "{}", gone.err());
    // Taken, wrong, and its own.
    let taken = environment.banger(["vm", "create", "--image", "busybox", "--name", "web"]).run();
    assert_ne!(taken.exit_code(), Some(0));
    environment.banger(["vm", "rename", "web", "a_b"]).run().code(2);
    environment.banger(["vm", "rename", "web", "web"]).ok();
    environment.banger(["vm", "stop", "web"]).ok();
    environment.banger(["vm", "rename", "web", "db"]).ok();
    environment.stop_daemon();
    environment.banger(["vm", "start", "db"]).ok();
    assert_eq!(environment.exec("db", ["hostname"]).ok().out(), "db\n");
    assert_eq!(environment.show("db")["id"], id);
    // What runs is nothing to prune.
    environment.banger(["vm", "prune", "--force"]).ok();
    assert_eq!(environment.vms(), ["db"]);
    environment.finish();
}
