//! `vm exec` and `vm run` on a terminal.

use banger_harness::{Contents, Environment, Terminal};

#[test]
fn a_terminal_has_a_size_and_its_keys_reach_the_guest() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let shell = |script: &str| environment.command(["vm", "exec", "box", "--", "sh", "-c", script]);

    let mut terminal = Terminal::start(&shell("stty size; tty; read x; stty size; exit 3"), 97, 31);
    terminal.wait_for("31 97");
    terminal.wait_for("/dev/pts/");
    terminal.resize(120, 40);
    std::thread::sleep(std::time::Duration::from_millis(500));
    terminal.send(b"\r");
    terminal.wait_for("40 120");
    let (status, _) = terminal.finish();
    assert_eq!(status.code(), Some(3));

    for (key, name, code) in [(b"\x03", "INT", 2), (b"\x1c", "QUIT", 3)] {
        let trapped = format!(
            "trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.1; done"
        );
        let mut terminal = Terminal::start(&shell(&trapped), 80, 24);
        terminal.wait_for("ready");
        terminal.send(key);
        terminal.wait_for(&format!("got {name}"));
        let (status, _) = terminal.finish();
        assert_eq!(status.code(), Some(9));

        let mut terminal = Terminal::start(&shell("echo ready; exec sleep 1000"), 80, 24);
        terminal.wait_for("ready");
        terminal.send(key);
        let (status, screen) = terminal.finish();
        assert_eq!(status.code(), Some(128 + code), "{screen}");
    }
    environment.finish();
}

#[test]
fn the_users_terminal_is_as_it_was_afterwards() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    // The program may have others before it that lead into the test's own network.
    let banger = environment.command([""; 0]);
    let words = std::iter::once(banger.get_program()).chain(banger.get_args());
    let banger = words.map(|word| word.display().to_string()).collect::<Vec<_>>().join(" ");
    let script = format!(
        "before=$(stty -g); {banger} vm exec box -- sh -c 'exit 5'; echo code=$?; test \"$before\" = \"$(stty -g)\" && echo same"
    );
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", &script]).current_dir(environment.home());
    for (name, value) in environment.command(["x"]).get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let mut terminal = Terminal::start(&command, 80, 24);
    terminal.wait_for("code=5");
    terminal.wait_for("same");
    let (status, _) = terminal.finish();
    assert!(status.success());
    environment.finish();
}

#[test]
fn a_run_without_a_command_is_a_shell() {
    let environment = Environment::new(Contents::Busybox);
    let command =
        environment.command(["vm", "run", "--rm", "--image", "busybox", "--name", "shell"]);
    let mut terminal = Terminal::start(&command, 80, 24);
    terminal.wait_for("#");
    terminal.send(b"echo $((40+2)) in $(hostname)\r");
    terminal.wait_for("42 in shell");
    terminal.send(b"exit 6\r");
    let (status, screen) = terminal.finish();
    assert_eq!(status.code(), Some(6), "{screen}");
    banger_harness::wait_for("the end of the VM", banger_harness::GUEST_DEADLINE, || {
        environment.vms().is_empty().then_some(())
    });
    environment.finish();
}

#[test]
fn top_fills_the_terminal_and_gives_it_back() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let banger = environment.command([""; 0]);
    let words = std::iter::once(banger.get_program()).chain(banger.get_args());
    let words: Vec<String> = words.map(|word| word.display().to_string()).collect();
    let banger = words.join(" ");
    let script = format!(
        "before=$(stty -g); {banger} vm top; echo code=$?; test \"$before\" = \"$(stty -g)\" && echo same"
    );
    let command = environment.command([""; 0]);
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", &script]).current_dir(environment.home());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut terminal = Terminal::start(&shell, 100, 30);
    for text in ["\x1b[?1049h", "1 running", "GUEST MEM", "box"] {
        terminal.wait_for(text);
    }
    terminal.resize(60, 8);
    terminal.wait_for("1 running");
    terminal.send(b"q");
    let (_, screen) = terminal.finish();
    let after = screen.rsplit("\x1b[?25h\x1b[?1049l").next().unwrap();
    assert!(after.contains("code=0") && after.contains("same"), "{after}");
    environment.banger(["vm", "top"]).run().code(2).is_a_clear_error().says(&["terminal"]);

    // The same in tmux, which has a terminal of its own.
    let tmux = |words: &[&str]| {
        let all = [&["tmux", "-L", "t", "-f", "/dev/null"], words].concat();
        super::ssh::host(&environment, &all)
            .env("TERM", "xterm-256color")
            .env("TMUX_TMPDIR", environment.home())
    };
    let line = format!("{} vm top; echo it has ended; sleep 1000", words.last().unwrap());
    tmux(&["new-session", "-d", "-x", "100", "-y", "20", &line]).ok();
    let shows = |text: &str| {
        banger_harness::wait_for(text, banger_harness::GUEST_DEADLINE, || {
            let pane = tmux(&["capture-pane", "-p"]).ok().out();
            pane.contains(text).then_some(pane)
        })
    };
    assert!(shows("GUEST MEM").starts_with("banger: 1 running"));
    tmux(&["send-keys", "q"]).ok();
    assert!(!shows("it has ended").contains("GUEST MEM"));
    tmux(&["kill-server"]).ok();
    environment.finish();
}
