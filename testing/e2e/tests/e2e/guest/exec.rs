//! `vm exec`: streams, codes, users, folders, all unchanged.

use banger_harness::{Contents, Environment};

#[test]
fn streams_and_codes_pass_through_unchanged() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");

    for code in [0, 1, 2, 42, 125, 126, 127, 200, 255] {
        environment.exec("box", ["sh", "-c", &format!("exit {code}")]).run().code(code);
    }
    for (signal, number) in [("TERM", 15), ("KILL", 9), ("INT", 2), ("SEGV", 11)] {
        environment
            .exec("box", ["sh", "-c", &format!("kill -{signal} $$; sleep 9")])
            .run()
            .code(128 + number);
    }
    let both = environment.exec("box", ["sh", "-c", "printf out; printf err >&2"]).ok();
    assert_eq!((both.stdout.as_slice(), both.stderr.as_slice()), (&b"out"[..], &b"err"[..]));

    // Every byte value, at lengths around the frame sizes, and no newline added.
    for length in [0_usize, 1, 255, 4096, 32 * 1024 - 1, 32 * 1024, 32 * 1024 + 1, 3 << 20] {
        let bytes: Vec<u8> =
            (0..length).map(|index| (index.wrapping_mul(31) >> 3).to_le_bytes()[0]).collect();
        let echoed = environment.exec("box", ["cat"]).input(bytes.clone()).ok();
        assert!(echoed.stdout == bytes, "{length} bytes came back as {}", echoed.stdout.len());
        assert!(echoed.stderr.is_empty(), "{echoed}");
    }
    environment.finish();
}

#[test]
fn a_command_that_cannot_run_says_why() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    environment.exec("box", ["no-such-program"]).run().code(127).says(&["no-such-program"]);
    environment.exec("box", ["/etc/passwd"]).run().code(126).says(&["/etc/passwd"]);
    environment.exec("box", ["/etc"]).run().code(126);
    environment
        .banger(["vm", "exec", "-w", "/missing", "box", "--", "pwd"])
        .run()
        .says(&["/missing"]);
    environment
        .banger(["vm", "exec", "-u", "nobody-here", "box", "--", "id"])
        .run()
        .says(&["nobody-here"]);
    environment.finish();
}

#[test]
fn user_folder_and_environment_are_set() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let run = |arguments: &[&str], command: &[&str]| {
        let mut all = vec!["vm", "exec"];
        all.extend(arguments);
        all.extend(["box", "--"]);
        all.extend(command);
        environment.banger(all).ok().out()
    };
    assert_eq!(run(&[], &["id", "-u"]), "0\n");
    assert_eq!(run(&[], &["pwd"]), "/root\n");
    assert_eq!(run(&[], &["sh", "-c", "echo $HOME $USER"]), "/root root\n");
    assert_eq!(run(&["-u", "alice"], &["id", "-u"]), "1000\n");
    assert_eq!(run(&["-u", "alice"], &["sh", "-c", "id -G; echo $HOME"]), "1000 50\n/tmp\n");
    assert_eq!(run(&["-w", "/etc"], &["pwd"]), "/etc\n");
    assert_eq!(
        run(&["-e", "A=b c", "-e", "D="], &["sh", "-c", "echo [$A] [${D-unset}]"]),
        "[b c] []\n"
    );
    assert_eq!(run(&[], &["sh", "-c", "test -t 0 || echo no terminal"]), "no terminal\n");
    // Arguments are arguments, whatever is in them.
    assert_eq!(run(&[], &["printf", "%s|", "a b", "", "$(id)", "ä\n"]), "a b||$(id)|ä\n|");
    environment.finish();
}

#[test]
fn ends_of_streams_reach_the_other_side() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    // The guest stops reading early; the client must not hang or fail.
    let head = environment.exec("box", ["head", "-c", "10"]).input(vec![b'x'; 8 << 20]).run();
    assert_eq!((head.exit_code(), head.stdout.len()), (Some(0), 10));
    // Without input there is an end of file at once.
    assert!(environment.exec("box", ["cat"]).ok().stdout.is_empty());
    // Input that stays open keeps the command waiting until it is closed.
    let mut cat = environment.exec("box", ["cat"]).open_input().spawn();
    cat.write(b"first\n");
    cat.wait_for_output("first\n");
    cat.write(b"second\n");
    cat.wait_for_output("second\n");
    cat.close_input();
    let _ = cat.finish().code(0);
    // A background child that keeps the output open does not hold the client.
    let started = std::time::Instant::now();
    environment.exec("box", ["sh", "-c", "sleep 1000 & echo started"]).ok();
    assert!(started.elapsed() < std::time::Duration::from_secs(60));
    environment.finish();
}

#[test]
fn many_commands_run_side_by_side() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let running: Vec<_> = (0..12)
        .map(|index| {
            let script = format!("cat > /tmp/{index}; cat /tmp/{index}; exit {index}");
            let input = format!("{index}\n").repeat(20_000);
            (
                index,
                input.clone(),
                environment.exec("box", ["sh", "-c", &script]).input(input).spawn(),
            )
        })
        .collect();
    for (index, input, one) in running {
        let finished = one.finish().code(index);
        assert!(finished.out() == input, "the output of {index} is its own");
    }
    environment.finish();
}

#[test]
fn an_exec_on_a_stopped_vm_says_how_to_start_it() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    environment.banger(["vm", "stop", "box"]).ok();
    environment
        .exec("box", ["true"])
        .run()
        .code(125)
        .is_a_clear_error()
        .says(&["box", "banger vm start box"]);
    environment.finish();
}

#[test]
fn time_runs_out_and_variables_come_from_files() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let timed = |time: &str, script: &str| {
        environment.banger(["vm", "exec", "--timeout", time, "box", "--", "sh", "-c", script])
    };
    timed("60", "exit 3").run().code(3);
    timed("1s", "echo $$ > /tmp/pid; sleep 1000").run().code(124).says(&["longer than 1 s"]);
    let gone = "for i in $(seq 100); do kill -0 $(cat /tmp/pid) || exit 0; sleep 0.1; done; exit 1";
    environment.exec("box", ["sh", "-c", gone]).ok();
    let file = environment.home().join("variables");
    std::fs::write(&file, "# words\nA=one two\nB=file\n").unwrap();
    let words = ["vm", "exec", "--env-file", file.to_str().unwrap(), "-e", "B=hand", "box"];
    let shown = environment.banger(words).arg("--").arg("sh").arg("-c").arg("echo $A $B");
    assert_eq!(shown.ok().out(), "one two hand\n");
    std::fs::write(&file, "A B\n").unwrap();
    environment.banger(words).run().code(2).says(&["line 1"]);
    environment.finish();
}
