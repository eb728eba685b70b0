//! `vm console`: reading and typing at a machine's serial console.

use std::collections::BTreeMap;
use std::time::Duration;

use banger_harness::{Contents, Environment, GUEST_DEADLINE, Running, Terminal, wait_for};
use rustix::process::Signal;

/// The most that the log takes, both halves.
const LOG_CAP: usize = 4 << 20;

fn attach(environment: &Environment) -> Running {
    let mut console = environment.banger(["vm", "console", "box"]).open_input().spawn();
    console.wait_for_error("console of VM box");
    console
}

/// Types a command whose output is unlike the command itself, and waits for that.
fn ask(console: &mut Running, number: u32) {
    console.write(format!("echo is-$(({number}+1))\r").as_bytes());
    console.wait_for_output(&format!("is-{}", number + 1));
}

#[test]
fn a_console_is_typed_at_and_left_and_the_terminal_is_as_before() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let banger = environment.command([""; 0]);
    let words = std::iter::once(banger.get_program()).chain(banger.get_args());
    let banger = words.map(|word| word.display().to_string()).collect::<Vec<_>>().join(" ");
    let script = format!(
        "before=$(stty -g); {banger} vm console box; echo code=$?; \
         test \"$before\" = \"$(stty -g)\" && echo same; \
         {banger} vm console --escape ctrl-a box; echo again=$?; \
         test \"$before\" = \"$(stty -g)\" && echo same"
    );
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", &script]).current_dir(environment.home());
    for (name, value) in environment.command(["x"]).get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let mut terminal = Terminal::start(&command, 97, 31);
    terminal.wait_for("console of VM box; Ctrl-] leaves");
    // Nobody had the console: a shell is there now, on a terminal of this one's size.
    terminal.wait_for("#");
    terminal.send(b"tty; stty size; echo $((40+2))\r");
    for text in ["/dev/ttyS0", "31 97", "42"] {
        terminal.wait_for(text);
    }
    terminal.resize(80, 24);
    let size_is_told = || {
        let size = environment.exec("box", ["sh", "-c", "stty size < /dev/ttyS0"]).ok().out();
        (size == "24 80\n").then_some(())
    };
    wait_for("the new size", GUEST_DEADLINE, size_is_told);
    // Keys reach the guest; what only a terminal's user may do is taken out of what comes back.
    // It is said by who is then interrupted: a key that comes before the shell has made another the
    // foreground's is nobody's.
    terminal.send(b"sh -c 'echo is-$((1+1)); exec sleep 1000'\r");
    terminal.wait_for("is-2");
    terminal.send(b"\x03");
    terminal.send(b"printf 'A\\033]0;title\\007B\\033[6nC\\033[31mD\\033[?25lE\\n'\r");
    terminal.wait_for("ABC\x1b[31mD\x1b[?25lE");
    terminal.send(b"cd /tmp\r\x1d");
    terminal.wait_for("\x1b[?25h");
    terminal.wait_for("code=0");
    terminal.wait_for("same");
    // The shell stayed, and another key leaves.
    terminal.wait_for("Ctrl-A leaves");
    terminal.send(b"pwd; echo \x1d | wc -c\r");
    terminal.wait_for("/tmp");
    terminal.send(b"\x01");
    terminal.wait_for("again=0");
    terminal.wait_for("same");
    let (status, screen) = terminal.finish();
    assert!(status.success(), "{screen}");
    let log = environment.banger(["vm", "logs", "box"]).ok().out();
    assert!(log.contains("42") && log.contains("\x1b]0;title\x07"), "the log is whole: {log:?}");
    environment.finish();
}

#[test]
fn two_consoles_see_the_same_and_one_that_does_not_read_stalls_nobody() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let (mut one, mut two) = (attach(&environment), attach(&environment));
    ask(&mut one, 1);
    two.wait_for_output("is-2");
    ask(&mut two, 2);
    one.wait_for_output("is-3");
    // One is stopped in the middle; the guest prints more than all queues between hold.
    one.signal(Signal::STOP);
    two.write(b"stty -echo; i=0; while [ $i -lt 30000 ]; do echo line-$i; i=$((i+1)); done; echo all-$((1+1))\r");
    two.wait_for_output("all-2");
    assert_eq!(environment.exec("box", ["echo", "answers"]).ok().out(), "answers\n");
    let log = environment.banger(["vm", "logs", "box"]).ok().out();
    assert!(log.len() <= LOG_CAP + 4096, "{}", log.len());
    let mut lines = log.lines().filter_map(|line| line.strip_prefix("line-")?.parse::<u32>().ok());
    let first = lines.next().unwrap();
    assert_eq!(lines.next_back(), Some(29_999));
    let kept = log.lines().filter(|line| line.starts_with("line-")).count();
    assert_eq!(kept, usize::try_from(30_000 - first).unwrap(), "the log has every line");
    one.signal(Signal::CONT);
    ask(&mut one, 5);
    // A console that ends takes nothing with it; one on a pipe that ends stays attached.
    drop(one);
    two.close_input();
    assert_eq!(environment.exec("box", ["sh", "-c", "echo from-exec > /dev/ttyS0"]).ok().out(), "");
    two.wait_for_output("from-exec");
    environment.banger(["vm", "stop", "box"]).ok();
    let ended = two.finish().code(0);
    assert!(ended.err().contains("VM box has ended"), "{}", ended.err());
    environment
        .banger(["vm", "console", "box"])
        .run()
        .code(1)
        .is_a_clear_error()
        .says(&["stopped", "banger vm start box"]);
    environment.finish();
}

#[test]
fn a_console_is_there_after_the_daemons_end_and_an_exit() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let mut console = attach(&environment);
    ask(&mut console, 1);
    environment.stop_daemon();
    let ended = console.finish();
    assert_ne!(ended.exit_code(), Some(0), "the daemon ended, not the machine: {}", ended.err());
    let mut console = attach(&environment);
    ask(&mut console, 2);
    console.write(b"exit\r");
    // Whoever comes next finds a shell again.
    let mut next = wait_for("another shell", GUEST_DEADLINE, || {
        let mut next = attach(&environment);
        next.write(b"echo $((7*6))\r");
        let end = std::time::Instant::now() + Duration::from_secs(2);
        while std::time::Instant::now() < end {
            if next.stdout().contains("\n42") {
                return Some(next);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    });
    ask(&mut next, 3);
    next.signal(Signal::INT);
    next.finish().code(130);
    environment.finish();
}

/// What a terminal's private modes (DECSET, DECRST) are after a text; nothing of those not named in it.
fn private_modes(text: &str) -> BTreeMap<u16, bool> {
    let mut modes = BTreeMap::new();
    for sequence in text.split("\x1b[?").skip(1) {
        let end = sequence.find(|c: char| !(c.is_ascii_digit() || c == ';')).unwrap_or(0);
        if let Some(letter @ ('h' | 'l')) = sequence[end..].chars().next() {
            let list = sequence[..end].split(';').filter_map(|mode| mode.parse().ok());
            modes.extend(list.map(|mode: u16| (mode, letter == 'h')));
        }
    }
    modes
}

#[test]
fn a_raw_console_leaves_no_mode_behind_however_it_ends() {
    /// Cursor keys, columns, reverse video, X10 mouse, toolbar, blinking, keypad, sixel, mouse and
    /// focus, the meta key, the other screen, pasting, synchronized output.
    const SET: [u16; 20] = [
        1, 3, 5, 9, 10, 12, 66, 80, 1000, 1002, 1003, 1004, 1006, 1015, 1016, 1036, 1049, 2001,
        2004, 2026,
    ];
    /// Wrapping and the cursor.
    const RESET: [u16; 2] = [7, 25];
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let list = |modes: &[u16]| modes.iter().map(u16::to_string).collect::<Vec<_>>().join(";");
    let sent = format!("\\033[?{}h\\033[?{}l", list(&SET), list(&RESET));
    for end in ["key", "SIGTERM", "daemon", "machine"] {
        let command = environment.command(["vm", "console", "--raw", "box"]);
        let mut terminal = Terminal::start(&command, 80, 24);
        terminal.wait_for("console of VM box");
        terminal.send(b"\r");
        terminal.wait_for("#");
        // In the end a title that is begun and not ended: all that follows would be part of it.
        terminal.send(format!("printf '{sent}\\033]0;on-%d' $((1+1))\r").as_bytes());
        terminal.wait_for("\x1b]0;on-2");
        let pid = |process: Option<banger_harness::Process>| {
            rustix::process::Pid::from_raw(process.unwrap().pid.cast_signed()).unwrap()
        };
        let kill = |pid, signal| rustix::process::kill_process(pid, signal).unwrap();
        match end {
            "key" => terminal.send(b"\x1d"),
            "SIGTERM" => {
                let mut processes = environment.processes().into_iter();
                let client = processes.find(|process| process.command.contains("console --raw"));
                kill(pid(client), Signal::TERM);
            }
            "daemon" => kill(pid(environment.daemon()), Signal::KILL),
            _ => {
                environment.banger(["vm", "kill", "box"]).ok();
            }
        }
        let (status, screen) = terminal.finish();
        let code = match end {
            "daemon" => 1,
            "SIGTERM" => 143,
            _ => 0,
        };
        assert_eq!(status.code(), Some(code), "{end}: {screen:?}");
        let before = private_modes(&screen[..screen.rfind("on-2").unwrap()]);
        let after = &screen[screen.rfind("on-2").unwrap()..];
        assert!(after.contains("\x18\x1b\\"), "{end}: the title ends: {after:?}");
        assert!(after.contains("\x1b[!p"), "{end}: {after:?}");
        let modes = private_modes(after);
        for (all, usual) in [(&SET[..], false), (&RESET, true)] {
            for mode in all {
                assert_eq!(before.get(mode), Some(&!usual), "{end}: {mode} is let through");
                assert_eq!(modes.get(mode), Some(&usual), "{end}: {mode} is left: {after:?}");
            }
        }
    }
    environment.finish();
}
