//! Who we are to a registry.

use std::fmt;

use banger_types::RegistryHost;

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// Returns the text, to be sent and not to be logged.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// Credentials for one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A user's name and password, or a token that is used as one.
    Password {
        /// Whose they are.
        registry: RegistryHost,
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token (`identitytoken` of docker's config.json).
    IdentityToken {
        /// Whose it is.
        registry: RegistryHost,
        /// The token.
        token: Secret,
    },
}

impl Credentials {
    /// Returns whose they are.
    #[must_use]
    pub const fn registry(&self) -> &RegistryHost {
        match self {
            Self::Password { registry, .. } | Self::IdentityToken { registry, .. } => registry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let registry: RegistryHost = "ghcr.io".parse().unwrap();
        let secret = Secret::new("hunter2".to_owned());
        for credentials in [
            Credentials::Password {
                registry: registry.clone(),
                user: "alice".to_owned(),
                password: secret.clone(),
            },
            Credentials::IdentityToken { registry, token: secret },
        ] {
            let shown = format!("{credentials:?}");
            assert!(shown.contains("ghcr.io") && !shown.contains("hunter2"), "{shown}");
        }
    }
}
