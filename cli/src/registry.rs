//! What the user is to registries: logins, proxies and authorities, read here and sent with a pull.
//!
//! The daemon never opens the user's files, so this is the only place that knows them; nothing of it
//! is written anywhere.

mod docker_config;
mod helper;

pub use docker_config::files as login_files;

use std::path::PathBuf;

use banger_daemon_api::config::{Config, Setting};
use banger_daemon_api::pull::{ProxyEnvironment, RegistryCredentials, SecretText};
use banger_daemon_api::routes;
use banger_types::{OciReference, RegistryHost};

use crate::client::Client;
use crate::environment;
use crate::error::CliError;

/// The largest file of authorities; a host's own has 250 KiB.
const LARGEST_AUTHORITIES: u64 = 4 << 20;

/// What a pull brings along.
#[derive(Debug, Default)]
pub struct Luggage {
    /// For the registry and its mirrors.
    pub credentials: Vec<RegistryCredentials>,
    /// The environment's.
    pub proxies: ProxyEnvironment,
    /// PEM.
    pub authorities: Option<String>,
}

/// Gathers what a pull of `reference` brings along. Programs that keep passwords are asked.
pub async fn luggage(client: &Client, reference: &OciReference) -> Result<Luggage, CliError> {
    let settings: Vec<Setting> =
        client.get(routes::CONFIG).await.map_err(|error| client.explain(error))?;
    let mut config = Config::default();
    for setting in settings.iter().filter(|setting| setting.key.starts_with("registry.")) {
        // A daemon of another version may know more of them.
        let _ = config.set(&setting.key, &setting.value);
    }
    let authorities = config.registry.ca_file.map(authorities).transpose()?;
    let mut hosts: Vec<(RegistryHost, Option<&str>)> = Vec::new();
    if let Ok(registry) = reference.registry().parse::<RegistryHost>() {
        let mirrors = config.registry.mirrors.iter().filter(|mirror| mirror.registry == registry);
        hosts.extend(
            mirrors.filter_map(|mirror| Some((mirror.address.authority().parse().ok()?, None))),
        );
        hosts.push((registry, Some(reference.repository())));
    }
    let mut credentials = Vec::new();
    for (host, repository) in hosts {
        credentials.extend(docker_config::credentials(&host, repository).await?);
    }
    Ok(Luggage { credentials, proxies: proxies(), authorities })
}

fn authorities(path: PathBuf) -> Result<String, CliError> {
    let failed = |problem: &str| {
        let mut error = CliError::new(format!("cannot read {}", path.display()));
        error.causes.push(problem.to_owned());
        error.hint("banger config set registry.ca_file auto")
    };
    let metadata = std::fs::metadata(&path).map_err(|error| failed(&error.to_string()))?;
    if metadata.len() > LARGEST_AUTHORITIES || !metadata.is_file() {
        return Err(failed("it is no file of certificates"));
    }
    std::fs::read_to_string(&path).map_err(|error| failed(&error.to_string()))
}

fn proxies() -> ProxyEnvironment {
    let [https, http, all, exempt] = environment::proxies();
    let secret = |value: Option<String>| value.map(SecretText::new);
    ProxyEnvironment { https: secret(https.or(all.clone())), http: secret(http.or(all)), exempt }
}
