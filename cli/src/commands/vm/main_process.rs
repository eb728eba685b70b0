//! What the command line says of a machine's main process.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use banger_agent_api::{EnvironmentEntry, GuestPath, UserSpec};
use banger_daemon_api::vm::MainOptions;
use clap::Args;

use super::variables::VariableArgs;
use crate::error::CliError;

/// How the main process runs, for verbs that run nothing else.
#[derive(Args, Debug)]
#[command(next_help_heading = "Main process options")]
pub struct MainArgs {
    #[command(flatten)]
    entrypoint: EntrypointArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// The command, in place of the image's
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Whose, where and with which environment a command or a main process is.
#[derive(Args, Debug)]
pub struct PlaceArgs {
    /// Run as this user of the machine: NAME or UID, with an optional :GROUP
    #[arg(short, long)]
    pub user: Option<UserSpec>,
    /// Run in this directory of the machine
    #[arg(short, long, value_name = "DIRECTORY")]
    pub workdir: Option<GuestPath>,
    #[command(flatten)]
    pub variables: VariableArgs,
}

impl PlaceArgs {
    /// Returns what of `command` and this counts for a main process.
    pub fn said<'a>(&'a self, command: &'a [OsString]) -> Said<'a> {
        Said {
            command,
            env: self.variables.entries(),
            workdir: self.workdir.as_ref(),
            user: self.user.as_ref(),
        }
    }
}

/// The one option that makes a main process of any image.
#[derive(Args, Debug)]
pub struct EntrypointArgs {
    /// Run this program as the main process, in place of the image's; '' for a machine without one
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
}

impl EntrypointArgs {
    /// Returns the words of the entrypoint, none for an empty one.
    pub fn words(&self) -> Option<Vec<String>> {
        let word = |text: &String| (!text.is_empty()).then(|| text.clone());
        self.entrypoint.as_ref().map(|text| word(text).into_iter().collect())
    }
}

impl MainArgs {
    /// Returns what the daemon is asked for: a main process if anything is said of one.
    pub fn options(&self) -> Result<MainOptions, CliError> {
        let options = self.place.said(&self.command).options()?;
        let required = options != MainOptions::default();
        Ok(MainOptions { entrypoint: self.entrypoint.words(), required, ..options })
    }
}

/// What a command line says of a command that may be the main process's.
pub struct Said<'a> {
    /// The command.
    pub command: &'a [OsString],
    /// Its environment.
    pub env: Vec<EnvironmentEntry>,
    /// Its directory.
    pub workdir: Option<&'a GuestPath>,
    /// Who runs it.
    pub user: Option<&'a UserSpec>,
}

impl Said<'_> {
    /// Returns it as the daemon takes it.
    pub fn options(&self) -> Result<MainOptions, CliError> {
        let text = |bytes: &[u8]| {
            let word = OsStr::from_bytes(bytes);
            word.to_str().map(str::to_owned).ok_or_else(|| {
                CliError::usage(format!(
                    "{} is not UTF-8, which a main process needs",
                    word.display()
                ))
            })
        };
        let command: Vec<String> =
            self.command.iter().map(|word| text(word.as_bytes())).collect::<Result<_, _>>()?;
        Ok(MainOptions {
            command: (!command.is_empty()).then_some(command),
            environment: self
                .env
                .iter()
                .map(|entry| text(entry.as_bytes()))
                .collect::<Result<_, _>>()?,
            workdir: self.workdir.map(|path| text(path.as_bytes())).transpose()?,
            user: self.user.map(ToString::to_string),
            ..MainOptions::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        main: MainArgs,
    }

    fn options(arguments: &[&str]) -> MainOptions {
        let line = Line::try_parse_from([&["x"], arguments].concat()).unwrap();
        line.main.options().unwrap()
    }

    #[test]
    fn nothing_said_is_the_image_as_it_is() {
        assert_eq!(options(&[]), MainOptions::default());
        let machine = options(&["--entrypoint", ""]);
        assert_eq!((machine.entrypoint, machine.required), (Some(vec![]), false));
    }

    #[test]
    fn what_is_said_needs_a_main_process() {
        let said = options(&["-e", "A=b", "-u", "1:2", "-w", "/x", "--", "serve", "-v"]);
        assert_eq!(said.command, Some(vec!["serve".to_owned(), "-v".to_owned()]));
        assert_eq!((said.environment, said.user), (vec!["A=b".to_owned()], Some("1:2".to_owned())));
        assert_eq!((said.workdir, said.required), (Some("/x".to_owned()), true));
        let entrypoint = options(&["--entrypoint", "/bin/true"]);
        assert_eq!(entrypoint.entrypoint, Some(vec!["/bin/true".to_owned()]));
    }
}
