//! Programs that keep passwords (<https://github.com/docker/docker-credential-helpers>).

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use banger_agent_api::printable_excerpt;
use banger_daemon_api::pull::SecretText;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::error::CliError;

/// How long one may take: it may ask the user to unlock a keyring.
const DEADLINE: Duration = Duration::from_secs(60);
const LONGEST_ANSWER: u64 = 1 << 20;
/// What a helper says that has nothing for a server.
const NOT_FOUND: &str = "credentials not found";
/// Where the name of a helper comes from.
const LOGIN_HINT: &str = "credHelpers or credsStore in $DOCKER_CONFIG/config.json (~/.docker)";
/// The name that stands for a refresh token.
const TOKEN: &str = "<token>";

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: SecretText,
}

/// Asks `docker-credential-NAME` for a server's login; without a name it is a refresh token.
pub async fn get(
    name: &str,
    server: &str,
) -> Result<Option<(Option<String>, SecretText)>, CliError> {
    let program = format!("docker-credential-{name}");
    let failed = |problem: String| {
        let mut error = CliError::new(format!("cannot get the login for {server} from {program}"));
        error.causes.push(problem);
        error.hint(format!("docker's configuration names it for {server}: {LOGIN_HINT}"))
    };
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(is_word) {
        let name = printable_excerpt(name, 80);
        let message = format!("the credential helper {name:?} for {server} is no program's name");
        return Err(
            CliError::new(message).hint(format!("mend docker's configuration: {LOGIN_HINT}"))
        );
    }
    let path = find(&program).ok_or_else(|| failed("there is no such program".to_owned()))?;
    let asked = tokio::time::timeout(DEADLINE, ask(&path, server)).await;
    let (success, answer, said) = asked
        .map_err(|_| failed(format!("it did not answer in {} s", DEADLINE.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if success {
        let answer: Answer = serde_json::from_slice(&answer)
            .map_err(|_| failed("its answer is not that of a credential helper".to_owned()))?;
        let user = Some(answer.user).filter(|user| user != TOKEN);
        return Ok(Some((user, answer.secret)));
    }
    let words = [answer, said].concat();
    let words = String::from_utf8_lossy(&words);
    if words.contains(NOT_FOUND) {
        return Ok(None);
    }
    Err(failed(printable_excerpt(words.trim(), 200)))
}

/// Finds a program in `PATH`, which is where docker looks.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).filter(|folder| folder.is_absolute()).find_map(|folder| {
        let file = folder.join(program);
        let metadata = std::fs::metadata(&file).ok()?;
        (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then_some(file)
    })
}

async fn ask(path: &std::path::Path, server: &str) -> io::Result<(bool, Vec<u8>, Vec<u8>)> {
    let mut child = Command::new(path)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    if let Some(mut stdin) = stdin {
        match stdin.write_all(format!("{server}\n").as_bytes()).await {
            // It need not read what it does not want.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let (mut answer, mut said) = (Vec::new(), Vec::new());
    let answered = async {
        match stdout {
            Some(stdout) => stdout.take(LONGEST_ANSWER).read_to_end(&mut answer).await,
            None => Ok(0),
        }
    };
    let spoke = async {
        match stderr {
            Some(stderr) => stderr.take(LONGEST_ANSWER).read_to_end(&mut said).await,
            None => Ok(0),
        }
    };
    let (answered, spoke) = tokio::join!(answered, spoke);
    answered?;
    spoke?;
    Ok((child.wait().await?.success(), answer, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_helper_is_a_program_and_no_path() {
        for name in ["", "../x", "a/b", "a b", "a;b"] {
            assert!(get(name, "q.io").await.is_err(), "{name:?}");
        }
        let error = get("banger-has-none-of-this-name", "q.io").await.unwrap_err();
        assert!(error.causes.iter().any(|cause| cause.contains("no such program")));
    }

    #[tokio::test]
    async fn what_a_helper_says_is_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker-credential-test");
        let script = "#!/bin/sh\nread server\necho \"{\\\"Username\\\":\\\"u\\\",\\\"Secret\\\":\\\"$1 $server\\\"}\"\n";
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (success, answer, said) = ask(&path, "q.io").await.unwrap();
        assert!(success && said.is_empty());
        let answer: Answer = serde_json::from_slice(&answer).unwrap();
        assert_eq!((answer.user.as_str(), answer.secret.reveal().as_str()), ("u", "get q.io"));
    }
}
