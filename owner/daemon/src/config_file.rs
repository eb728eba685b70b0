//! `config.toml` in the state directory: the daemon's settings, changed by `banger config set` or by
//! hand while the daemon does not run.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use banger_daemon_api::config::Config;
use banger_daemon_api::error::{ApiError, ErrorCode};

use crate::start_error::StartError;

/// A file larger than this is not one of ours.
const LONGEST: u64 = 64 << 10;

/// The settings and their file.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    config: tokio::sync::Mutex<Config>,
}

impl ConfigFile {
    /// Reads the file in a state directory; none is all defaults.
    pub fn open(state: &std::path::Path) -> Result<Self, StartError> {
        let path = state.join("config.toml");
        let io = |source| StartError::Io { act: format!("reading {}", path.display()), source };
        let config = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Config::default(),
            Err(error) => return Err(io(error)),
            Ok(metadata) if metadata.len() > LONGEST => {
                return Err(io(std::io::Error::other("the file is too long for settings")));
            }
            Ok(_) => {
                let text = std::fs::read_to_string(&path).map_err(io)?;
                toml::from_str(&text).map_err(|source| StartError::Part(broken(&path, &source)))?
            }
        };
        Ok(Self { path, config: tokio::sync::Mutex::new(config) })
    }

    /// Returns all settings.
    pub async fn now(&self) -> Config {
        self.config.lock().await.clone()
    }

    /// Returns where a setting is from, as `FILE:LINE`, for each that the file has.
    pub async fn origins(&self) -> BTreeMap<String, String> {
        // It is changed under this lock.
        let _config = self.config.lock().await;
        // One that cannot be read any more is said at the next start.
        let text = tokio::fs::read_to_string(&self.path).await.unwrap_or_default();
        let lines = lines(&text);
        let place = |line| format!("{}:{line}", self.path.display());
        lines.into_iter().map(|(key, line)| (key, place(line))).collect()
    }

    /// Changes a setting: `apply` is told the settings before they are written, and its failure
    /// leaves everything as it was.
    pub async fn set(
        &self,
        key: &str,
        value: &str,
        apply: impl AsyncFnOnce(&Config) -> Result<(), ApiError>,
    ) -> Result<Config, ApiError> {
        let mut config = self.config.lock().await;
        let mut wanted = config.clone();
        wanted.set(key, value).map_err(|error| {
            ApiError::new(ErrorCode::BadParams, error.to_string()).hint("banger config list")
        })?;
        apply(&wanted).await?;
        self.write(&wanted).map_err(|source| {
            let message = format!("writing {}: it holds until bangerd ends", self.path.display());
            let mut error = ApiError::new(ErrorCode::OperationFailed, message);
            error.causes.push(source.to_string());
            error
        })?;
        config.clone_from(&wanted);
        Ok(wanted)
    }

    fn write(&self, config: &Config) -> std::io::Result<()> {
        let temporary = self.path.with_extension("toml.new");
        let text = toml::to_string(config).map_err(std::io::Error::other)?;
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        written.and_then(|()| std::fs::rename(&temporary, &self.path)).inspect_err(|_| {
            let _ = std::fs::remove_file(&temporary);
        })
    }
}

/// Returns the line of each setting, from 1.
fn lines(text: &str) -> Vec<(String, usize)> {
    type Sections = BTreeMap<String, BTreeMap<String, toml::Spanned<toml::Value>>>;
    let sections: Sections = toml::from_str(text).unwrap_or_default();
    let line = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
    let of_section = |(section, settings): (String, BTreeMap<String, toml::Spanned<_>>)| {
        let settings = settings.into_iter();
        let named = settings.map(|(key, value)| (format!("{section}.{key}"), value.span().start));
        named.collect::<Vec<_>>()
    };
    let places = sections.into_iter().flat_map(of_section);
    places.map(|(key, start)| (key, line(start))).collect()
}

fn broken(path: &std::path::Path, error: &toml::de::Error) -> ApiError {
    let mut broken =
        ApiError::new(ErrorCode::Corrupt, format!("{} cannot be read", path.display()));
    broken.causes.extend(error.to_string().lines().map(str::to_owned));
    broken
        .hint(format!("mend it, or move it aside for the defaults: mv {0} {0}.old", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn settings_last_and_what_fails_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = ConfigFile::open(directory.path()).unwrap();
        assert_eq!(file.now().await, Config::default());
        let set = file.set("network.subnet", "10.1.2.1/24", async |_| Ok(())).await.unwrap();
        assert_eq!(file.now().await, set);
        let refused = async |_: &Config| Err(ApiError::new(ErrorCode::InUse, "no"));
        let error = file.set("network.mode", "user", refused).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InUse);
        let bad = file.set("network.mode", "x", async |_| panic!("asked")).await.unwrap_err();
        assert_eq!(bad.code, ErrorCode::BadParams);
        assert_eq!(file.now().await, set);
        drop(file);
        assert_eq!(ConfigFile::open(directory.path()).unwrap().now().await, set);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn where_a_setting_is_from_is_told_by_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        let text = "# mine\n[network]\nmode = \"user\"\n\ndns = [\n \"1.1.1.1\",\n]\n[kernel]\ndefault = \"own\"\n";
        std::fs::write(&path, text).unwrap();
        let file = ConfigFile::open(directory.path()).unwrap();
        let origins = file.origins().await;
        for (key, line) in [("network.mode", 3), ("network.dns", 5), ("kernel.default", 9)] {
            assert_eq!(origins[key], format!("{}:{line}", path.display()), "{key}");
        }
        assert_eq!(origins.len(), 3);
        file.set("kernel.default", "auto", async |_| Ok(())).await.unwrap();
        assert!(!file.origins().await.contains_key("kernel.default"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, "[network]\nmode = \"user\"\nsubnett = \"x\"\n").unwrap();
        let error = ConfigFile::open(directory.path()).unwrap_err().to_api_error();
        let causes = error.causes.join("\n");
        assert!(causes.contains("subnett") && causes.contains("line 3"), "{causes}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_kept_and_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        for (text, part) in [
            ("[network]\nmode = \"x\"", "mode"),
            ("[network]\nsubnet = \"8.8.8.1/24\"", "lies in"),
            ("[netwrok]", "netwrok"),
            ("=", "="),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = ConfigFile::open(directory.path()).unwrap_err().to_api_error();
            let said = format!("{error} {:?}", error.causes);
            assert!(said.contains(part) && said.contains("config.toml"), "{said}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
