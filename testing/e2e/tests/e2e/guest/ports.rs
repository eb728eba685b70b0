//! Ports of guests that are published on the host, on the bridge and without one.

use banger_harness::{Contents, Environment, Invocation};

/// What a web client on the host gets of a port, if anything. (A static busybox's own wget dies in
/// the C library's resolver.)
fn page(environment: &Environment, port: u16) -> Option<String> {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET /issue HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
    );
    let mut command = environment.command_in_network(&["bash", "-c", &script]);
    let output = command.output().expect("run a shell");
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

/// Starts a web server in a guest, for itself alone.
fn serve(environment: &Environment, vm: &str, text: &str) {
    let script = format!(
        "mkdir -p /tmp/web && echo {text} > /tmp/web/issue && httpd -p 127.0.0.1:80 -h /tmp/web"
    );
    environment.exec(vm, ["sh", "-c", &script]).ok();
}

fn ports(environment: &Environment, words: &[&str]) -> Invocation {
    environment.banger([&["vm", "ports"], words].concat())
}

#[test]
fn published_ports_lead_into_guests_in_every_mode() {
    if !banger_harness::is_root() {
        banger_harness::skip("root", "the namespace that keeps the ports apart needs it");
        return;
    }
    let environment = Environment::new(Contents::Busybox);
    let run = |name: &str, publish: &str| {
        let image = banger_harness::BUSYBOX_IMAGE;
        let words = ["vm", "run", "-d", "--image", image, "--name", name, "-p", publish];
        environment.banger(words)
    };
    run("web", "8080:80").ok();
    // Nobody listens yet: the client is told, not kept waiting.
    assert_eq!(page(&environment, 8080), None);
    serve(&environment, "web", "hello");
    assert_eq!(page(&environment, 8080).as_deref(), Some("hello\n"));
    let shown = ports(&environment, &["web"]).ok().out();
    for word in ["80/tcp", "httpd", "127.0.0.1:8080"] {
        assert!(shown.contains(word), "{word} in {shown}");
    }

    // One port of the host is one machine's.
    let taken = run("two", "8080:80").run();
    taken.code(125).is_a_clear_error().says(&["8080", "VM web has it", "unpublish web 8080"]);
    assert!(environment.banger(["vm", "show", "two"]).run().exit_code() != Some(0));
    let own = environment.banger(["vm", "run", "-d", "-p", "0.0.0.0:99999:1"]).run();
    own.code(2).is_a_clear_error().says(&["1 to 65535"]);

    // Published and taken back while it runs.
    let published = ports(&environment, &["publish", "web", "0.0.0.0:9090:80", "0:80"]).ok();
    let out = published.out();
    let any: u16 = out
        .lines()
        .filter_map(|line| {
            line.strip_prefix("127.0.0.1:")?.strip_suffix(" -> 80/tcp")?.parse().ok()
        })
        .next()
        .unwrap_or_else(|| panic!("no port in {out}"));
    for port in [8080, 9090, any] {
        assert_eq!(page(&environment, port).as_deref(), Some("hello\n"), "{port}");
    }
    ports(&environment, &["unpublish", "web", "9090", &any.to_string()]).ok();
    assert_eq!(page(&environment, 9090), None);
    let unknown = ports(&environment, &["unpublish", "web", "9090"]).run();
    unknown.code(1).is_a_clear_error().says(&["does not publish 9090/tcp", "banger vm ports web"]);

    // The next daemon opens them again.
    environment.daemon().expect("it runs").signal(rustix::process::Signal::KILL);
    environment.banger(["vm", "list"]).ok();
    assert_eq!(page(&environment, 8080).as_deref(), Some("hello\n"));

    // Without the bridge it is no different; what was published stays so over a stop.
    environment.banger(["vm", "stop", "web"]).ok();
    assert_eq!(page(&environment, 8080), None);
    environment.banger(["config", "set", "network.mode", "user"]).ok();
    environment.banger(["vm", "start", "web"]).ok();
    assert_eq!(environment.show("web")["network"], "user");
    serve(&environment, "web", "again");
    assert_eq!(page(&environment, 8080).as_deref(), Some("again\n"));
    environment.banger(["vm", "delete", "web"]).ok();
    assert_eq!(page(&environment, 8080), None);
    environment.finish();
}

#[test]
fn a_forward_lasts_as_long_as_its_command() {
    if !banger_harness::is_root() {
        banger_harness::skip("root", "the namespace that keeps the ports apart needs it");
        return;
    }
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let forward = |words: &[&str]| environment.banger([&["vm", "forward", "box"], words].concat());
    let mut running = forward(&["7070:80", "0:81"]).spawn();
    running.wait_for_output("127.0.0.1:7070 -> 80/tcp\n");
    running.wait_for_output(" -> 81/tcp\n");
    assert_eq!(page(&environment, 7070), None);
    serve(&environment, "box", "forwarded");
    assert_eq!(page(&environment, 7070).as_deref(), Some("forwarded\n"));
    forward(&["7070:80"]).run().code(1).is_a_clear_error().says(&["127.0.0.1:7070"]);
    forward(&["7071:80/udp"]).run().code(2).is_a_clear_error();
    running.process().signal(rustix::process::Signal::INT);
    running.finish().code(0).says(&["nobody in the machine listens on port 80"]);
    assert_eq!(page(&environment, 7070), None);

    // It ends with the machine, and so does who waits for that.
    let mut running = forward(&["7070:80"]).spawn();
    running.wait_for_output("7070");
    let waiting = environment.banger(["vm", "wait", "box"]).spawn();
    environment.banger(["vm", "stop", "box"]).ok();
    running.finish().code(1).says(&["VM box is stop"]);
    assert_eq!(waiting.finish().code(0).out(), "box stopped\n");
    environment.banger(["vm", "prune"]).run().code(2).is_a_clear_error().says(&["--force"]);
    assert_eq!(environment.banger(["vm", "prune", "-f"]).ok().out(), "box\n");
    assert!(environment.vms().is_empty());
    environment.finish();
}
