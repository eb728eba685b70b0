//! Logins of docker, podman and skopeo: `config.json` and `auth.json`.
//!
//! The first file that knows a registry wins; in a file a helper of its own comes before the
//! store for all, and that before what the file itself holds, as with docker.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use banger_daemon_api::pull::{RegistryCredentials, SecretText};
use banger_types::{DEFAULT_REGISTRY, RegistryHost};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::helper;
use crate::environment;
use crate::error::CliError;

/// A longer file is none of logins.
const LARGEST: u64 = 4 << 20;
/// What docker calls Docker Hub in its file.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    auths: HashMap<String, Auth>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
struct Auth {
    #[serde(default)]
    auth: Option<SecretText>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<SecretText>,
    #[serde(default)]
    identitytoken: Option<SecretText>,
}

/// Finds the login for a registry, and for a repository in it where podman's file is that precise.
pub async fn credentials(
    registry: &RegistryHost,
    repository: Option<&str>,
) -> Result<Option<RegistryCredentials>, CliError> {
    for path in environment::registry_logins() {
        let Some(file) = read(&path)? else { continue };
        if let Some(found) = in_file(&path, file, registry, repository).await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<File>, CliError> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        CliError::new(format!("cannot read the logins in {}", path.display())).because(error).hint(
            "make it readable, or name another directory of docker's: DOCKER_CONFIG=DIRECTORY",
        )
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(&error)),
    };
    let mut text = Vec::new();
    file.take(LARGEST).read_to_end(&mut text).map_err(|error| failed(&error))?;
    if text.is_empty() {
        return Ok(None);
    }
    // Its text may quote a password that stands in the wrong place.
    let parsed = serde_json::from_slice(&text).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        failed(&std::io::Error::other(format!("it is not JSON as docker writes it: {place}")))
    });
    parsed.map(Some)
}

async fn in_file(
    path: &Path,
    mut file: File,
    registry: &RegistryHost,
    repository: Option<&str>,
) -> Result<Option<RegistryCredentials>, CliError> {
    let keys = keys(registry, repository);
    let server = if registry.as_str() == DEFAULT_REGISTRY { DOCKER_HUB } else { registry.as_str() };
    let own = keys.iter().find_map(|key| file.helpers.get(key));
    for name in own.into_iter().chain(file.store.as_ref()) {
        if let Some((user, secret)) = helper::get(name, server).await? {
            let registry = registry.clone();
            return Ok(Some(RegistryCredentials { registry, user, secret }));
        }
    }
    let Some(auth) = keys.iter().find_map(|key| file.auths.remove(key)) else { return Ok(None) };
    let login = login(auth).map_err(|problem| {
        CliError::new(format!("the login for {registry} in {} {problem}", path.display()))
            .hint(format!("docker login {registry}"))
    })?;
    let registry = registry.clone();
    Ok(login.map(|(user, secret)| RegistryCredentials { registry, user, secret }))
}

/// The keys that a registry may have, the most precise first.
fn keys(registry: &RegistryHost, repository: Option<&str>) -> Vec<String> {
    let mut keys = Vec::new();
    let mut rest = repository.unwrap_or_default();
    while !rest.is_empty() {
        keys.push(format!("{registry}/{rest}"));
        rest = rest.rsplit_once('/').map_or("", |(rest, _)| rest);
    }
    let hosts: &[&str] = if registry.as_str() == DEFAULT_REGISTRY {
        &["docker.io", "index.docker.io", "registry-1.docker.io"]
    } else {
        &[registry.as_str()]
    };
    for host in hosts {
        for (before, after) in [
            ("", ""),
            ("https://", ""),
            ("https://", "/"),
            ("https://", "/v1/"),
            ("https://", "/v2/"),
            ("http://", ""),
        ] {
            keys.push(format!("{before}{host}{after}"));
        }
    }
    keys
}

/// Reads an entry; one without a secret says that a helper has it.
fn login(auth: Auth) -> Result<Option<(Option<String>, SecretText)>, &'static str> {
    if let Some(token) = auth.identitytoken {
        return Ok(Some((None, token)));
    }
    if let Some(text) = auth.auth.map(SecretText::reveal).filter(|text| !text.is_empty()) {
        let pair = STANDARD.decode(text.trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
        let pair = pair.ok_or("is not base64")?;
        let (user, password) = pair.split_once(':').ok_or("is not NAME:PASSWORD")?;
        // docker pads the password with zero bytes at times.
        let password = password.trim_end_matches('\0');
        return Ok(Some((Some(user.to_owned()), SecretText::new(password.to_owned()))));
    }
    Ok(auth.username.zip(auth.password).map(|(user, password)| (Some(user), password)))
}

/// Returns the files that may hold logins, given where things are.
pub fn files(
    docker: Option<PathBuf>,
    auth_file: Option<PathBuf>,
    runtime: Option<PathBuf>,
    home: &Path,
) -> Vec<PathBuf> {
    let docker = docker.unwrap_or_else(|| home.join(".docker")).join("config.json");
    let mut files = vec![docker];
    files.extend(auth_file);
    files.extend(runtime.map(|runtime| runtime.join("containers/auth.json")));
    files.push(home.join(".config/containers/auth.json"));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn find(text: &str, registry: &str, repository: &str) -> Option<(String, String)> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        let file = read(&path).unwrap().unwrap();
        let found =
            in_file(&path, file, &registry.parse().unwrap(), Some(repository)).await.unwrap()?;
        Some((found.user.unwrap_or_else(|| "<token>".to_owned()), found.secret.reveal()))
    }

    fn pair(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.to_owned(), password.to_owned()))
    }

    #[tokio::test]
    async fn logins_are_found_under_every_name_that_a_registry_has() {
        let auth = STANDARD.encode("alice:pa:ss");
        for (key, registry) in [
            (DOCKER_HUB, "docker.io"),
            ("docker.io", "docker.io"),
            ("ghcr.io", "ghcr.io"),
            ("https://ghcr.io/v2/", "ghcr.io"),
            ("ghcr.io/owner", "ghcr.io"),
            ("localhost:5000", "localhost:5000"),
        ] {
            let text = format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#);
            assert_eq!(find(&text, registry, "owner/x").await, pair("alice", "pa:ss"), "{key}");
            assert_eq!(find(&text, "other.example", "owner/x").await, None);
        }
    }

    #[tokio::test]
    async fn the_most_precise_login_wins() {
        let login =
            |name: &str| format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(format!("{name}:x")));
        let text = format!(
            r#"{{"auths":{{"q.io":{},"q.io/a":{},"q.io/a/b":{}}}}}"#,
            login("host"),
            login("owner"),
            login("image")
        );
        assert_eq!(find(&text, "q.io", "a/b").await, pair("image", "x"));
        assert_eq!(find(&text, "q.io", "a/c").await, pair("owner", "x"));
        assert_eq!(find(&text, "q.io", "ab").await, pair("host", "x"));
    }

    #[tokio::test]
    async fn tokens_and_plain_pairs_are_logins_too() {
        let text = r#"{"auths":{"q.io":{"identitytoken":"t","auth":"eA=="}},"other":[1]}"#;
        assert_eq!(find(text, "q.io", "x").await, pair("<token>", "t"));
        let text = r#"{"auths":{"q.io":{"username":"u","password":"p"}}}"#;
        assert_eq!(find(text, "q.io", "x").await, pair("u", "p"));
        assert_eq!(find(r#"{"auths":{"q.io":{}}}"#, "q.io", "x").await, None);
    }

    #[tokio::test]
    async fn what_is_broken_is_said_without_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"auths":{"q.io":{"auth":"hunter2","#).unwrap();
        let Err(error) = read(&path) else { panic!("read") };
        let said = format!("{error:?}");
        assert!(said.contains("config.json") && !said.contains("hunter2"), "{said}");
        std::fs::write(&path, r#"{"auths":{"q.io":{"auth":"hunter2"}}}"#).unwrap();
        let file = read(&path).unwrap().unwrap();
        let error = in_file(&path, file, &"q.io".parse().unwrap(), None).await.unwrap_err();
        let said = format!("{error:?}");
        assert!(said.contains("base64") && !said.contains("hunter2"), "{said}");
        assert!(read(&directory.path().join("none")).unwrap().is_none());
    }

    #[test]
    fn files_are_looked_for_where_docker_and_podman_keep_them() {
        let home = Path::new("/home/a");
        let found = files(Some("/d".into()), Some("/f".into()), Some("/run/user/1".into()), home);
        let found: Vec<_> = found.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(
            found,
            [
                "/d/config.json",
                "/f",
                "/run/user/1/containers/auth.json",
                "/home/a/.config/containers/auth.json"
            ]
        );
        assert_eq!(files(None, None, None, home)[0], Path::new("/home/a/.docker/config.json"));
    }
}
