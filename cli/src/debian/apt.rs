//! The host's apt: how it fetches, and what it knows.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::DebianError;

const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
/// What is shown of a tool's complaints.
const MOST_OUTPUT: usize = 2000;

/// Finds a tool in the system's directories; `$PATH` is not searched.
pub fn find_tool(tool: &'static str, package: &'static str) -> Result<PathBuf, DebianError> {
    DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(tool))
        .find(|path| path.is_file())
        .ok_or(DebianError::Tool { tool, package })
}

/// A command of one of Debian's tools: in English, and asking nothing.
pub fn command(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

/// Runs a tool to its successful end and returns its standard output.
pub fn output(
    tool: &'static str,
    package: &'static str,
    configure: impl FnOnce(&mut Command),
) -> Result<String, DebianError> {
    let path = find_tool(tool, package)?;
    let mut command = command(&path);
    configure(&mut command);
    let output = command.output().map_err(|source| DebianError::Run { tool, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let output_text = tail(&String::from_utf8_lossy(&output.stderr));
    Err(DebianError::Failed { tool, status: output.status, output: output_text })
}

/// The end of a tool's output, without control characters.
pub fn tail(text: &str) -> String {
    let clean: String =
        text.trim().chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    let skip = clean.chars().count().saturating_sub(MOST_OUTPUT);
    clean.chars().skip(skip).collect()
}

/// Returns the host's options about fetching (proxies, certificates, validity of indexes) in the
/// form that `mmdebstrap --aptopt` takes.
pub fn transport_options() -> Vec<String> {
    // Without apt-config there is nothing to take over.
    let dump = output("apt-config", "apt", |command| {
        command.arg("dump");
    });
    dump.map(|text| parse_options(&text)).unwrap_or_default()
}

fn parse_options(dump: &str) -> Vec<String> {
    const TREES: [&str; 3] = ["acquire::http::", "acquire::https::", "acquire::ftp::"];
    const SINGLE: [&str; 6] = [
        "acquire::check-valid-until",
        "acquire::check-date",
        "acquire::max-valid-time",
        "acquire::retries",
        "acquire::forceipv4",
        "acquire::forceipv6",
    ];
    dump.lines()
        .filter(|line| {
            let Some((key, value)) = line.split_once(' ') else { return false };
            let key = key.to_ascii_lowercase();
            let wanted =
                TREES.iter().any(|tree| key.starts_with(tree)) || SINGLE.contains(&key.as_str());
            wanted && value.len() > 3 && value.ends_with("\";")
        })
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_options_about_fetching_are_taken() {
        let dump = r#"APT "";
Acquire "";
Acquire::Languages "";
Acquire::Languages:: "none";
Acquire::http "";
Acquire::http::Proxy "http://proxy:3128";
Acquire::http::Proxy::deb.debian.org "DIRECT";
Acquire::https::CaInfo "/etc/ssl/corp.pem";
Acquire::Check-Valid-Until "false";
Acquire::http::Pipeline-Depth "";
DPkg::Post-Invoke:: "rm -rf /";
"#;
        assert_eq!(
            parse_options(dump),
            [
                "Acquire::http::Proxy \"http://proxy:3128\"",
                "Acquire::http::Proxy::deb.debian.org \"DIRECT\"",
                "Acquire::https::CaInfo \"/etc/ssl/corp.pem\"",
                "Acquire::Check-Valid-Until \"false\"",
            ]
        );
    }

    #[test]
    fn a_tail_is_short_and_harmless() {
        assert_eq!(tail(&"x".repeat(5000)).len(), MOST_OUTPUT);
        assert_eq!(tail("a\x1b[31mb\n"), "a [31mb");
    }
}
