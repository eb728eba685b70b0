//! `-e` and `--env-file`: the variables of a command.

use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use banger_agent_api::{EnvironmentEntry, TextError};
use clap::Args;

/// Largest file of variables.
const LARGEST_FILE: u64 = 1 << 20;

/// The variables of a command.
#[derive(Args, Debug, Default)]
pub struct VariableArgs {
    /// Set a variable: NAME=VALUE, or NAME to pass our own value on
    #[arg(short, long = "env", value_name = "NAME[=VALUE]", value_parser = parse_variable)]
    env: Vec<EnvironmentEntry>,
    /// Set the variables that this file has, NAME=VALUE a line; -e goes before it
    #[arg(long, value_name = "FILE", value_parser = read_file)]
    env_file: Vec<FileVariables>,
}

/// The variables of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileVariables(Vec<EnvironmentEntry>);

impl VariableArgs {
    /// Returns them; of two with one name, the later counts.
    pub fn entries(&self) -> Vec<EnvironmentEntry> {
        let of_files = self.env_file.iter().flat_map(|file| &file.0);
        of_files.chain(&self.env).cloned().collect()
    }
}

fn parse_variable(text: &str) -> Result<EnvironmentEntry, String> {
    if text.contains('=') {
        return text.parse().map_err(|error: TextError| error.to_string());
    }
    let value = std::env::var_os(text).ok_or_else(|| format!("{text} is not set here"))?;
    let mut entry = format!("{text}=").into_bytes();
    entry.extend(value.into_vec());
    EnvironmentEntry::new(entry).map_err(|error| error.to_string())
}

fn read_file(path: &str) -> Result<FileVariables, String> {
    let metadata = Path::new(path).metadata().map_err(|error| error.to_string())?;
    if metadata.is_file() && metadata.len() > LARGEST_FILE {
        return Err(format!("it is larger than {LARGEST_FILE} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    parse_file(&text).map(FileVariables)
}

/// Reads lines as docker does: everything after the first `=` is the value, quotes included; a name
/// alone passes our own value on, where there is one; `#` begins a comment.
fn parse_file(text: &str) -> Result<Vec<EnvironmentEntry>, String> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(format!("line {}: this is not NAME=VALUE", number + 1));
        }
        match line.contains('=') {
            false if std::env::var_os(line).is_none() => {}
            _ => entries
                .push(parse_variable(line).map_err(|why| format!("line {}: {why}", number + 1))?),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_a_value_or_pass_ours_on() {
        assert_eq!(parse_variable("A=b=c").unwrap().as_bytes(), b"A=b=c");
        assert!(parse_variable("=x").is_err());
        assert!(parse_variable("BANGER_SURELY_NOT_SET").is_err());
        assert!(parse_variable("PATH").unwrap().as_bytes().starts_with(b"PATH="));
    }

    #[test]
    fn files_are_read_as_docker_reads_them() {
        let text = "# c\n\nA=1\n  B='x y' # no comment\r\nBANGER_SURELY_NOT_SET\nPATH\nC=\n";
        let entries = parse_file(text).unwrap();
        let texts: Vec<_> =
            entries.iter().map(|entry| String::from_utf8_lossy(entry.as_bytes())).collect();
        assert_eq!((&*texts[0], &*texts[1], &*texts[3]), ("A=1", "B='x y' # no comment", "C="));
        assert!(texts[2].starts_with("PATH="));
        for bad in ["A B=1", "=x", "\tA =1"] {
            assert!(parse_file(&format!("A=1\n{bad}")).unwrap_err().contains("line 2"), "{bad}");
        }
    }

    #[test]
    fn what_is_said_by_hand_goes_before_a_file() {
        let entry = |text: &str| text.parse::<EnvironmentEntry>().unwrap();
        let args = VariableArgs {
            env: vec![entry("A=hand")],
            env_file: vec![FileVariables(vec![entry("A=file"), entry("B=file")])],
        };
        assert_eq!(args.entries().last(), Some(&entry("A=hand")));
    }
}
