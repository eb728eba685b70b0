//! OpenSSH's client towards a guest, as the peer of what banger does: cold, and through a connection that
//! is open already.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use banger_harness::Environment;

/// A way to run ssh: the program with all that goes before the guest's command.
#[derive(Clone, Debug)]
pub(crate) struct Ssh {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    guest: String,
}

impl Ssh {
    /// To `guest`, with these words before it.
    pub(crate) fn plain(arguments: &[String], guest: &str) -> Self {
        Self {
            program: "/usr/bin/ssh".into(),
            arguments: arguments.iter().map(OsString::from).collect(),
            environment: Vec::new(),
            guest: guest.to_owned(),
        }
    }

    /// To a machine of banger's by its name, as `banger ssh-config --install` sets it up.
    pub(crate) fn by_name(environment: &Environment, vm: &str) -> Self {
        environment.banger(["ssh-config", "--install"]).ok();
        // What runs banger in the network of this place runs ssh, too.
        let banger = environment.command([""; 0]);
        let mut words: Vec<OsString> = std::iter::once(banger.get_program())
            .chain(banger.get_args())
            .map(OsString::from)
            .collect();
        words.pop();
        let config = environment.home().join(".ssh/config");
        words.extend(["/usr/bin/ssh".into(), "-F".into(), config.into_os_string()]);
        let program = words.remove(0);
        let of = |(name, value): (&std::ffi::OsStr, Option<&std::ffi::OsStr>)| {
            Some((name.to_owned(), value?.to_owned()))
        };
        let environment = banger.get_envs().filter_map(of).collect();
        Self { program, arguments: words, environment, guest: format!("{vm}.vm") }
    }

    /// The same with another option.
    fn with(&self, option: &str) -> Self {
        let mut other = self.clone();
        other.arguments.extend(["-o".into(), option.into()]);
        other
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().envs(self.environment.iter().cloned());
        command.stdin(Stdio::null());
        command
    }

    /// The words of a shell that run it, up to the guest's name.
    pub(crate) fn shell_words(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.arguments);
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    /// The variables that it needs.
    pub(crate) fn variables(&self) -> &[(OsString, OsString)] {
        &self.environment
    }

    /// Runs `true` in the guest.
    pub(crate) fn run_true(&self) -> Result<Duration> {
        let began = Instant::now();
        let mut command = self.command();
        let output = command.args([&self.guest, "true"]).output().context("run ssh")?;
        if !output.status.success() {
            bail!("ssh: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(began.elapsed())
    }

    /// Opens a connection for others to use; returns them and what ends it.
    pub(crate) fn warm(&self, socket: &std::path::Path) -> Result<Master> {
        let shared = self.with(&format!("ControlPath={}", socket.display()));
        let mut command = shared.command();
        // It goes into the background once it is connected. Its pipes would be held open.
        command.args(["-M", "-N", "-f", &shared.guest]).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().context("run ssh")?;
        ensure!(status.success(), "no connection to share: {status}");
        Ok(Master(shared))
    }
}

/// An open connection; ended when dropped.
#[derive(Debug)]
pub(crate) struct Master(pub(crate) Ssh);

impl Drop for Master {
    fn drop(&mut self) {
        let mut command = self.0.command();
        command.args(["-O", "exit", &self.0.guest]).stderr(Stdio::null());
        let _ = command.status();
    }
}
