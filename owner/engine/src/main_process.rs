//! What a VM runs: the image's configuration and what the user wants, made into a main process, or
//! into none.
//!
//! | the words of entrypoint and command | what happens |
//! |---|---|
//! | none | a machine: the image's init, or the agent, is PID 1 |
//! | a shell alone (`bash`, `/bin/sh`) | a machine: without a terminal a shell would end at once |
//! | an init alone (`/sbin/init`) | a machine: that init is what boots anyway |
//! | anything else | the main process: it ends, and the VM with it |
//!
//! An entrypoint that the user gives is always a main process; an empty one never is.

use banger_agent_api::{ConfigureCall, GuestPath, SignalNumber, TextError};
use banger_daemon_api::vm::{MainOptions, MainProcess};
use banger_types::ImageConfig;
use serde::{Deserialize, Serialize};

/// What ends a program that says nothing else (SIGTERM).
const DEFAULT_STOP_SIGNAL: u8 = 15;

/// Shells that an image names to have something to run.
const SHELLS: [&str; 8] = ["sh", "bash", "ash", "dash", "zsh", "fish", "ksh", "busybox"];
/// What an image names that is to be booted.
const INITS: [&str; 5] =
    ["/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/init"];

/// Why a VM cannot run what it is to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MainError {
    /// Words for a program that there is not.
    #[error("the image has no main process of its own to run so")]
    Nothing,
    /// A word that no program can be given.
    #[error("the main process's {what} {text:?}")]
    Text {
        /// Which.
        what: &'static str,
        /// What was given.
        text: String,
        /// What is wrong with it.
        #[source]
        source: TextError,
    },
    /// A stop signal that is none.
    #[error("{text:?} is no signal to stop the main process by")]
    Signal {
        /// What the image says.
        text: String,
    },
}

/// What a VM's programs are given; kept with its record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Programs {
    /// The main process, where there is one.
    #[serde(default)]
    pub(crate) main: Option<MainProcess>,
    /// `NAME=VALUE`: the image's environment, and of a main process the user's.
    #[serde(default)]
    pub(crate) environment: Vec<String>,
    /// Directories that must exist.
    #[serde(default)]
    pub(crate) volumes: Vec<String>,
}

impl Programs {
    /// Decides what a VM runs. What is decided can be told to the guest.
    pub(crate) fn decide(
        config: Option<&ImageConfig>,
        options: &MainOptions,
    ) -> Result<Self, MainError> {
        let none = ImageConfig::default();
        let config = config.unwrap_or(&none);
        let mut programs = Self {
            main: None,
            // Builders write variables without `=`, which no environment can have.
            environment: config.env.iter().filter(|entry| is_variable(entry)).cloned().collect(),
            volumes: config.volumes.iter().map(|path| absolute(path)).collect(),
        };
        if let Some(argv) = words(config, options) {
            programs.environment.extend(options.environment.iter().cloned());
            let text =
                |own: &Option<String>, images: &str| own.clone().unwrap_or(images.to_owned());
            let user = text(&options.user, &config.user);
            programs.main = Some(MainProcess {
                argv,
                workdir: absolute(&text(&options.workdir, &config.working_dir)),
                user: (!user.is_empty()).then_some(user),
                stop_signal: stop_signal(&config.stop_signal)?,
            });
        } else if options.required {
            return Err(MainError::Nothing);
        }
        programs.call(false)?;
        Ok(programs)
    }

    /// Returns whether the guest has to be told anything.
    pub(crate) fn are_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Makes what the guest is told; `held`: the main process waits for a client.
    pub(crate) fn call(&self, held: bool) -> Result<ConfigureCall, MainError> {
        let main = self.main.as_ref().map(|main| {
            Ok::<_, MainError>(banger_agent_api::MainProcess {
                argv: parse("argument", &main.argv)?,
                cwd: Some(one("working directory", &main.workdir)?),
                user: main.user.as_deref().map(|user| one("user", user)).transpose()?,
                stop_signal: SignalNumber::new(main.stop_signal)
                    .ok_or_else(|| MainError::Signal { text: main.stop_signal.to_string() })?,
                held,
            })
        });
        Ok(ConfigureCall {
            environment: parse("variable", &self.environment)?,
            volumes: parse::<GuestPath>("volume", &self.volumes)?,
            main: main.transpose()?,
        })
    }
}

fn parse<T: std::str::FromStr<Err = TextError>>(
    what: &'static str,
    texts: &[String],
) -> Result<Vec<T>, MainError> {
    texts.iter().map(|text| one(what, text)).collect()
}

fn one<T: std::str::FromStr<Err = TextError>>(
    what: &'static str,
    text: &str,
) -> Result<T, MainError> {
    let shown = || text.chars().take(64).collect();
    text.parse().map_err(|source| MainError::Text { what, text: shown(), source })
}

fn is_variable(entry: &str) -> bool {
    entry.find('=').is_some_and(|position| position > 0)
}

/// Images write directories relative to `/`, too.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Returns the main process's words; none for a machine.
fn words(config: &ImageConfig, options: &MainOptions) -> Option<Vec<String>> {
    if options.machine {
        return None;
    }
    let given = options.command.clone().unwrap_or_default();
    if let Some(entrypoint) = &options.entrypoint {
        // As docker: the image's command belongs to the image's entrypoint.
        let words = [entrypoint.clone(), given].concat();
        return (!words.is_empty()).then_some(words);
    }
    let own = [config.entrypoint.clone(), config.cmd.clone()].concat();
    if own.is_empty() || is_machine(&own) {
        return None;
    }
    let command = options.command.as_ref().unwrap_or(&config.cmd);
    Some([config.entrypoint.clone(), command.clone()].concat())
}

/// Whether an image names only a shell or an init.
fn is_machine(words: &[String]) -> bool {
    let [program, arguments @ ..] = words else { return true };
    if INITS.contains(&program.as_str()) {
        return true;
    }
    let name = program.rsplit('/').next().unwrap_or(program);
    // `busybox sh`, and a login shell, are shells alone, too.
    let is_shell = |word: &str| SHELLS.contains(&word);
    is_shell(name)
        && arguments.iter().all(|argument| {
            is_shell(argument) || matches!(argument.as_str(), "-l" | "--login" | "-i")
        })
}

/// Reads an image's stop signal: a number, or a name with or without `SIG`, as on x86-64.
fn stop_signal(text: &str) -> Result<u8, MainError> {
    // signal(7), in the order of their numbers.
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    // Of the C libraries', as everyone who sends one counts them.
    const FIRST_REALTIME: u8 = 34;
    const LAST_REALTIME: u8 = 64;
    if text.is_empty() {
        return Ok(DEFAULT_STOP_SIGNAL);
    }
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let by_name =
        NAMES.iter().zip(1..).find(|(known, _)| **known == name).map(|(_, number)| number);
    let realtime = || {
        if let Some(rest) = name.strip_prefix("RTMIN") {
            let offset =
                if rest.is_empty() { Some(0) } else { rest.strip_prefix('+')?.parse().ok() };
            return FIRST_REALTIME.checked_add(offset?);
        }
        let rest = name.strip_prefix("RTMAX")?;
        let offset = if rest.is_empty() { Some(0) } else { rest.strip_prefix('-')?.parse().ok() };
        LAST_REALTIME.checked_sub(offset?).filter(|number| *number >= FIRST_REALTIME)
    };
    by_name
        .or_else(|| name.parse().ok())
        .or_else(realtime)
        .filter(|number| (1..=LAST_REALTIME).contains(number))
        .ok_or_else(|| MainError::Signal { text: text.chars().take(32).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> ImageConfig {
        serde_json::from_value(json).unwrap()
    }

    fn image(entrypoint: &[&str], command: &[&str]) -> ImageConfig {
        config(serde_json::json!({"Entrypoint": entrypoint, "Cmd": command}))
    }

    fn argv(config: &ImageConfig, options: &MainOptions) -> Option<Vec<String>> {
        Programs::decide(Some(config), options).unwrap().main.map(|main| main.argv)
    }

    fn list(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn shells_and_inits_are_machines_and_everything_else_is_a_main_process() {
        let none = MainOptions::default();
        for (entrypoint, command) in [
            (&[][..], &[][..]),
            (&[], &["bash"]),
            (&[], &["/bin/sh"]),
            (&[], &["/bin/bash", "-l"]),
            (&["/bin/bash"], &[]),
            (&["busybox"], &["sh"]),
            (&[], &["/sbin/init"]),
            (&["/usr/lib/systemd/systemd"], &["--log-level=info"]),
        ] {
            assert_eq!(
                argv(&image(entrypoint, command), &none),
                None,
                "{entrypoint:?} {command:?}"
            );
        }
        for (entrypoint, command) in [
            (&["/docker-entrypoint.sh"][..], &["nginx", "-g", "daemon off;"][..]),
            (&[], &["python3"]),
            (&["sh", "-c", "exec app"], &[]),
            (&["sh"], &["/start.sh"]),
            (&["/hello"], &[]),
            (&["tini", "--"], &["bash"]),
        ] {
            let words = [list(entrypoint), list(command)].concat();
            assert_eq!(argv(&image(entrypoint, command), &none), Some(words));
        }
    }

    #[test]
    fn what_the_user_wants_counts_as_with_docker() {
        let nginx = image(&["/entry.sh"], &["nginx"]);
        let (entry, command) = (list(&["/bin/echo"]), list(&["a", "b"]));
        let options =
            |entrypoint: Option<&Vec<String>>, command: Option<&Vec<String>>| MainOptions {
                entrypoint: entrypoint.cloned(),
                command: command.cloned(),
                ..MainOptions::default()
            };
        assert_eq!(
            argv(&nginx, &options(None, Some(&command))),
            Some(list(&["/entry.sh", "a", "b"]))
        );
        assert_eq!(argv(&nginx, &options(Some(&entry), None)), Some(entry.clone()));
        assert_eq!(
            argv(&nginx, &options(Some(&entry), Some(&command))),
            Some(list(&["/bin/echo", "a", "b"]))
        );
        assert_eq!(argv(&nginx, &options(Some(&vec![]), None)), None);
        assert_eq!(argv(&nginx, &MainOptions { machine: true, ..options(None, None) }), None);
        // An entrypoint makes any image an application, also one with an init; a command does not.
        let init = image(&[], &[]);
        assert_eq!(argv(&init, &options(Some(&entry), None)), Some(entry));
        assert_eq!(argv(&init, &options(None, Some(&command))), None);
        let required = MainOptions { required: true, ..options(None, Some(&command)) };
        assert_eq!(Programs::decide(Some(&init), &required), Err(MainError::Nothing));
    }

    #[test]
    fn the_rest_of_the_configuration_is_taken_as_builders_write_it() {
        let config = config(serde_json::json!({
            "Cmd": ["app"], "Env": ["PATH=/app", "ODD", "=x", "A=image"], "WorkingDir": "srv/app",
            "User": "app:staff", "StopSignal": "SIGQUIT", "Volumes": {"/data": {}, "cache": {}},
        }));
        let options = MainOptions { environment: list(&["A=user"]), ..MainOptions::default() };
        let programs = Programs::decide(Some(&config), &options).unwrap();
        assert_eq!(programs.environment, ["PATH=/app", "A=image", "A=user"]);
        assert_eq!(programs.volumes, ["/data", "/cache"]);
        let main = programs.main.as_ref().unwrap();
        assert_eq!((main.workdir.as_str(), main.stop_signal), ("/srv/app", 3));
        assert_eq!(main.user.as_deref(), Some("app:staff"));
        assert!(programs.call(true).unwrap().main.unwrap().held);
        let options = MainOptions {
            workdir: Some("/x".to_owned()),
            user: Some("1000".to_owned()),
            ..MainOptions::default()
        };
        let main = Programs::decide(Some(&config), &options).unwrap().main.unwrap();
        assert_eq!((main.workdir.as_str(), main.user.as_deref()), ("/x", Some("1000")));
        // A machine has the image's environment too, for what is run in it.
        let machine = MainOptions { machine: true, ..MainOptions::default() };
        let programs = Programs::decide(Some(&config), &machine).unwrap();
        assert_eq!((programs.environment.len(), programs.main), (2, None));
        assert!(Programs::decide(None, &MainOptions::default()).unwrap().are_plain());
    }

    #[test]
    fn words_that_no_program_can_be_given_are_refused() {
        for (field, value) in [
            ("WorkingDir", serde_json::json!("/a/../b")),
            ("User", serde_json::json!("a b")),
            ("Volumes", serde_json::json!({"/a/../../b": {}})),
            ("StopSignal", serde_json::json!("SIGNOTHING")),
            ("StopSignal", serde_json::json!("0")),
            ("StopSignal", serde_json::json!("RTMAX+1")),
        ] {
            let config = config(serde_json::json!({"Cmd": ["app"], field: value}));
            assert!(Programs::decide(Some(&config), &MainOptions::default()).is_err(), "{field}");
        }
        let options = MainOptions { entrypoint: Some(list(&["a\0"])), ..MainOptions::default() };
        assert!(Programs::decide(None, &options).is_err());
        let options = MainOptions {
            entrypoint: Some(list(&["a"])),
            environment: list(&["novalue"]),
            ..MainOptions::default()
        };
        assert!(Programs::decide(None, &options).is_err());
    }

    #[test]
    fn stop_signals_have_names_and_numbers() {
        for (text, number) in [
            ("", 15),
            ("SIGTERM", 15),
            ("INT", 2),
            ("sigquit", 3),
            ("SIGWINCH", 28),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-2", 62),
        ] {
            assert_eq!(stop_signal(text), Ok(number), "{text}");
        }
    }
}
