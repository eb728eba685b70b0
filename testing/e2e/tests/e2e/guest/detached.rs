//! Commands that go on in a machine without a client.

use banger_harness::{Contents, Environment, GUEST_DEADLINE, wait_for};

#[test]
fn a_detached_command_outlives_its_client_and_the_daemon() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let detach = |script: &str| {
        let words = ["vm", "exec", "--detach", "box", "--", "sh", "-c", script];
        environment.banger(words).ok().out().trim().to_owned()
    };
    let script =
        "echo out; echo err >&2; until [ -e /tmp/go ]; do sleep 0.1; done; echo late; exit 7";
    let id = detach(script);
    let logs = |more: &[&str]| {
        let words = [&["vm", "logs", "box", "--exec", &id], more].concat();
        environment.banger(words)
    };
    wait_for("the first output", GUEST_DEADLINE, || {
        let so_far = logs(&[]).ok();
        (so_far.out() == "out\n" && so_far.err() == "err\n").then_some(())
    });
    let list = || environment.banger(["vm", "exec", "--list", "--json", "box"]).ok().json();
    assert_eq!(list()[0]["exit_code"], serde_json::Value::Null, "it runs");
    let following = logs(&["--follow"]).spawn();
    let waiting = environment.banger(["vm", "wait", "--exec", &id, "box"]).spawn();
    environment.stop_daemon();
    assert_ne!(following.finish().exit_code(), Some(0), "the way there is gone");
    assert_ne!(waiting.finish().exit_code(), Some(0));
    let waiting = environment.banger(["vm", "wait", "--exec", &id, "box"]).spawn();
    environment.exec("box", ["touch", "/tmp/go"]).ok();
    assert_eq!(waiting.finish().code(0).out(), format!("{id} 7\n"));
    let whole = logs(&["-f"]).ok();
    assert_eq!((whole.out().as_str(), whole.err().as_str()), ("out\nlate\n", "err\n"));
    assert_eq!(list()[0]["exit_code"], 7);
    let table = environment.banger(["vm", "exec", "--list", "box"]).ok().out();
    assert!(table.contains("exit 7") && table.contains("sh -c echo out"), "{table}");
    // A name that is made to harm is harmless to list.
    let hostile = detach("printf '\\033]0;x\\007' # \u{1b}[2J\u{202e}");
    environment.banger(["vm", "wait", "box", "--exec", &hostile]).ok();
    let table = environment.banger(["vm", "exec", "--list", "box"]).ok().out();
    assert!(!table.contains('\u{1b}') && !table.contains('\u{202e}'), "{table:?}");
    let none = environment.banger(["vm", "logs", "box", "--exec", "99"]).run();
    none.code(1).is_a_clear_error().says(&["no detached command 99", "vm exec --list"]);
    environment.banger(["vm", "exec", "-d", "box"]).run().code(2);
    environment.banger(["vm", "stop", "box"]).ok();
    environment.finish();
}
