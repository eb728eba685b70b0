//! Completion in the shells themselves, on a terminal, with the names that a running daemon has.

use std::process::Command;

use banger_harness::{Contents, Environment, Terminal, find_program};

/// A shell, and how its language says what the test has it do.
struct Shell {
    name: &'static str,
    /// Without the files of whoever runs the test.
    options: &'static [&'static str],
    /// Makes it complete, as docs/cli.md says.
    script: &'static str,
    /// Becomes 42, so that what is printed is unlike what was typed.
    answer: &'static str,
}

const SHELLS: [Shell; 3] = [
    Shell {
        name: "bash",
        options: &["--noprofile", "--norc", "-i"],
        script: "bind 'set show-all-if-ambiguous on'; source <(banger completion bash)",
        answer: "$((40+2))",
    },
    Shell {
        name: "zsh",
        options: &["-f", "-i"],
        script: "autoload -Uz compinit; compinit -u -D; source <(banger completion zsh)",
        answer: "$((40+2))",
    },
    Shell {
        name: "fish",
        options: &["--no-config", "-i"],
        script: "banger completion fish | source",
        answer: "(math 40+2)",
    },
];

impl Shell {
    /// Starts it on a terminal, with `banger` among its programs, and has it complete.
    fn start(&self, environment: &Environment) -> Terminal {
        let banger = environment.command([""; 0]);
        let words = std::iter::once(banger.get_program()).chain(banger.get_args());
        let mut words: Vec<_> = words.map(std::ffi::OsStr::to_owned).collect();
        // Others before it lead into the test's own network.
        let program = std::path::PathBuf::from(words.pop().unwrap());
        let shell = find_program(self.name)
            .unwrap_or_else(|| panic!("{} is missing: scripts/setup test", self.name));
        words.push(shell.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(self.options).env_clear().current_dir(environment.home());
        command.envs(banger.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let folder = program.parent().unwrap().display();
        command.env("PATH", format!("{folder}:/usr/local/bin:/usr/bin:/bin"));
        // Wide and high enough for all that is offered at once.
        let mut terminal = Terminal::start(&command, 160, 100);
        terminal.send(format!("{}; echo set-{}\r", self.script, self.answer).as_bytes());
        terminal.wait_for("set-42");
        terminal
    }
}

#[test]
fn bash_zsh_and_fish_complete_the_names_that_there_are() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("keeper");
    for shell in SHELLS {
        let mut terminal = shell.start(&environment);
        // Nothing typed yet: the machines are among what is offered, with their states.
        terminal.send(b"banger vm exec \t");
        terminal.wait_for("keeper");
        // Not Ctrl-C, which would take along what is typed next.
        terminal.send(b"\x15");
        // Begun: the one there is is taken, and is a word of its own.
        let line = format!("banger vm exec ke\t-- echo is-{}\r", shell.answer);
        terminal.send(line.as_bytes());
        terminal.wait_for("is-42");
        terminal.send(b"banger image show bus\t\r");
        terminal.wait_for("sha256:");
        // A daemon that has come to know another name since.
        environment.banger(["vm", "rename", "keeper", "renamed"]).ok();
        let line = format!("banger vm exec re\t-- echo then-{}\r", shell.answer);
        terminal.send(line.as_bytes());
        terminal.wait_for("then-42");
        environment.banger(["vm", "rename", "renamed", "keeper"]).ok();
        terminal.send(b"exit\r");
        let (status, screen) = terminal.finish();
        assert!(status.success(), "{}: {screen:?}", shell.name);
    }
    environment.finish();
}

#[test]
fn a_shell_that_completes_starts_no_daemon() {
    let environment = Environment::new(Contents::Empty);
    for shell in SHELLS {
        let mut terminal = shell.start(&environment);
        // Verbs need none.
        let line = format!("banger ver\t; echo is-{}\r", shell.answer);
        terminal.send(line.as_bytes());
        terminal.wait_for("is-42");
        assert!(terminal.screen().contains(env!("CARGO_PKG_VERSION")), "{}", terminal.screen());
        terminal.send(b"banger vm exec nobody\t\x15");
        terminal.send(format!("echo after-{}\r", shell.answer).as_bytes());
        terminal.wait_for("after-42");
        terminal.send(b"exit\r");
        terminal.finish();
    }
    assert!(environment.daemon().is_none());
    environment.finish();
}
