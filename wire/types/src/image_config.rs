//! How an image wants to be run: the `config` object of an OCI image configuration.
//!
//! Field by field that of the OCI image specification (config.md). Registries hold what twelve
//! years of builders wrote: unknown fields, `null` in place of a list, a string in place of a list
//! of one. That is read; what could hurt whoever uses it later (NUL bytes, endless lists) is not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

/// Most entries in each list or map.
const MOST_ENTRIES: usize = 4096;
/// Most bytes of one text; the kernel takes 128 KiB in one argument or variable
/// (`MAX_ARG_STRLEN`), and some builders keep whole documents in labels.
const LONGEST_TEXT: usize = 128 << 10;
/// Most bytes of all texts together.
const LARGEST: usize = 512 << 10;

/// Why an image's configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageConfigError {
    /// A text with a NUL byte, which no program can be given.
    #[error("the image's {field} has a NUL byte")]
    Nul {
        /// The field, as the specification writes it.
        field: &'static str,
    },
    /// A text that is too long.
    #[error("the image's {field} has a text of more than {LONGEST_TEXT} bytes")]
    Long {
        /// The field, as the specification writes it.
        field: &'static str,
    },
    /// A list or map with too many entries.
    #[error("the image's {field} has more than {MOST_ENTRIES} entries")]
    Many {
        /// The field, as the specification writes it.
        field: &'static str,
    },
    /// All of it is too large.
    #[error("the image's configuration has more than {LARGEST} bytes")]
    Large,
}

/// The fields of an [`ImageConfig`], not yet checked; an absent field is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfigFields {
    /// `user`, `uid`, and either with `:group` or `:gid`; empty for root.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Such as `80/tcp`, `53/udp` or `8080`.
    #[serde(with = "keys", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// `NAME=VALUE` each.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entry point.
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Directories that hold data.
    #[serde(with = "keys", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// Where the program starts; empty for `/`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Such as `SIGQUIT` or `3`; empty for SIGTERM.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// For people and tools.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// How an image wants to be run.
///
/// No text has a NUL byte or more than 128 KiB, no list more than 4096 entries, and all of it at
/// most 512 KiB; nothing else is promised: a variable may lack its `=`, a port may be no port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ImageConfigFields", into = "ImageConfigFields")]
pub struct ImageConfig(ImageConfigFields);

impl ImageConfig {
    /// Gives back the fields, to be changed and checked again.
    #[must_use]
    pub fn into_fields(self) -> ImageConfigFields {
        self.0
    }
}

impl Deref for ImageConfig {
    type Target = ImageConfigFields;

    fn deref(&self) -> &ImageConfigFields {
        &self.0
    }
}

impl From<ImageConfig> for ImageConfigFields {
    fn from(config: ImageConfig) -> Self {
        config.0
    }
}

impl TryFrom<ImageConfigFields> for ImageConfig {
    type Error = ImageConfigError;

    fn try_from(fields: ImageConfigFields) -> Result<Self, Self::Error> {
        let mut check = Check { bytes: 0 };
        let ImageConfigFields {
            user,
            exposed_ports,
            env,
            entrypoint,
            cmd,
            volumes,
            working_dir,
            stop_signal,
            labels,
        } = &fields;
        check.texts("User", [user])?;
        check.texts("ExposedPorts", exposed_ports)?;
        check.texts("Env", env)?;
        check.texts("Entrypoint", entrypoint)?;
        check.texts("Cmd", cmd)?;
        check.texts("Volumes", volumes)?;
        check.texts("WorkingDir", [working_dir])?;
        check.texts("StopSignal", [stop_signal])?;
        check.texts("Labels", labels.keys())?;
        check.texts("Labels", labels.values())?;
        Ok(Self(fields))
    }
}

struct Check {
    bytes: usize,
}

impl Check {
    fn texts<'a>(
        &mut self,
        field: &'static str,
        texts: impl IntoIterator<Item = &'a String>,
    ) -> Result<(), ImageConfigError> {
        for (index, text) in texts.into_iter().enumerate() {
            if index >= MOST_ENTRIES {
                return Err(ImageConfigError::Many { field });
            }
            if text.contains('\0') {
                return Err(ImageConfigError::Nul { field });
            }
            if text.len() > LONGEST_TEXT {
                return Err(ImageConfigError::Long { field });
            }
            self.bytes += text.len();
            if self.bytes > LARGEST {
                return Err(ImageConfigError::Large);
            }
        }
        Ok(())
    }
}

/// Reads `null` as what is absent.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads a list of words, or one word: images of Docker before 1.0 have `"Cmd": "program"`.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::<Words>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Words::One(word)) => vec![word],
        Some(Words::Many(words)) => words,
    })
}

/// A set that the specification writes as an object whose values are empty objects.
mod keys {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        keys: &BTreeSet<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let empty = BTreeMap::<String, String>::new();
        serializer.collect_map(keys.iter().map(|key| (key, &empty)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<String>, D::Error> {
        let map = Option::<BTreeMap<String, de::IgnoredAny>>::deserialize(deserializer)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ImageConfig, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_builders_write_is_read() {
        let nginx = r#"{"Hostname":"","Domainname":"","User":"","AttachStdin":false,
            "ExposedPorts":{"80/tcp":{}},"Tty":false,"Env":["PATH=/usr/bin","NGINX=1"],
            "Cmd":["nginx","-g","daemon off;"],"Image":"sha256:x","Volumes":null,"WorkingDir":"",
            "Entrypoint":["/docker-entrypoint.sh"],"OnBuild":null,"Labels":{"maintainer":"NGINX"},
            "StopSignal":"SIGQUIT","ArgsEscaped":true,"Healthcheck":{"Test":["NONE"]}}"#;
        let config = read(nginx).unwrap();
        assert_eq!(config.cmd, ["nginx", "-g", "daemon off;"]);
        assert_eq!(config.entrypoint, ["/docker-entrypoint.sh"]);
        assert_eq!(config.exposed_ports.iter().collect::<Vec<_>>(), ["80/tcp"]);
        assert_eq!(config.stop_signal, "SIGQUIT");
        assert_eq!(config.labels["maintainer"], "NGINX");
        assert!(config.volumes.is_empty() && config.user.is_empty());
        let again = read(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        assert_eq!(read("{}").unwrap(), ImageConfig::default());
        let nulls = r#"{"User":null,"Env":null,"Cmd":null,"Entrypoint":null,"Labels":null,
            "WorkingDir":null,"StopSignal":null,"ExposedPorts":null}"#;
        assert_eq!(read(nulls).unwrap(), ImageConfig::default());
        assert_eq!(read(r#"{"Cmd":"/bin/sh"}"#).unwrap().cmd, ["/bin/sh"]);
        assert_eq!(serde_json::to_string(&ImageConfig::default()).unwrap(), "{}");
    }

    #[test]
    fn what_could_hurt_is_refused() {
        let refused = |text: &str, expected: &str| {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        };
        refused(r#"{"Env":["A=\u0000"]}"#, "Env has a NUL byte");
        refused(r#"{"User":"\u0000"}"#, "User has a NUL byte");
        refused(r#"{"Labels":{"a\u0000":"b"}}"#, "Labels has a NUL byte");
        refused(r#"{"Env":[1]}"#, "expected a string");
        refused(r#"{"Cmd":{}}"#, "did not match");
        refused(r#"{"Volumes":["/data"]}"#, "expected a map");
        let many = vec!["A=b"; MOST_ENTRIES + 1];
        refused(&format!("{{\"Env\":{many:?}}}"), "more than 4096 entries");
        let long = "x".repeat(LONGEST_TEXT + 1);
        refused(&format!(r#"{{"WorkingDir":"{long}"}}"#), "more than 131072 bytes");
        let large = vec!["x".repeat(LONGEST_TEXT); 5];
        refused(&format!("{{\"Cmd\":{large:?}}}"), "more than 524288 bytes");
    }

    proptest::proptest! {
        #[test]
        fn what_is_checked_is_read_back_the_same(
            env: Vec<String>, cmd: Vec<String>, user: String,
            labels: BTreeMap<String, String>, volumes: BTreeSet<String>,
        ) {
            let fields = ImageConfigFields { user, env, cmd, labels, volumes, ..Default::default() };
            if let Ok(config) = ImageConfig::try_from(fields) {
                let text = serde_json::to_string(&config).unwrap();
                proptest::prop_assert_eq!(read(&text).unwrap(), config);
            }
        }
    }
}
