//! Images from registries, what was fetched for them, and what takes the host's disk.

use std::fmt;

use banger_types::{ImageName, KernelName, OciReference, RegistryHost};
use serde::{Deserialize, Serialize};

/// Text that is sent and never shown: its `Debug` form hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Takes the text.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// Gives the text back, to be used and not to be logged.
    #[must_use]
    pub fn reveal(self) -> String {
        self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretText(..)")
    }
}

/// Body of `POST /v1/pulls`: makes an image of one in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// The image's local name.
    #[schema(value_type = String)]
    pub name: ImageName,
    /// What to pull: `docker.io/library/alpine:3.20`.
    #[schema(value_type = String)]
    pub reference: OciReference,
    /// Who the client is to the registry and its mirrors. The daemon keeps it in memory while the
    /// pull lasts.
    #[serde(default)]
    pub credentials: Vec<RegistryCredentials>,
    /// The proxies of the client's environment.
    #[serde(default)]
    pub proxies: ProxyEnvironment,
    /// Certificate authorities beside the host's own, PEM (`registry.ca_file`).
    #[serde(default)]
    pub authorities: Option<String>,
    /// The kernel that VMs of this image boot unless told otherwise.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub default_kernel: Option<KernelName>,
    /// Replace an image of this name that comes from elsewhere; VMs made from the old one keep it.
    /// One that comes from the same reference is replaced in any case when that means another image
    /// by now.
    #[serde(default)]
    pub replace: bool,
}

/// Who a client is to a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryCredentials {
    /// The registry or mirror.
    #[schema(value_type = String)]
    pub registry: RegistryHost,
    /// The user's name; absent where the secret is a refresh token.
    #[serde(default)]
    pub user: Option<String>,
    /// The password, or the refresh token (`identitytoken`).
    pub secret: SecretText,
}

/// The values of a client's `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyEnvironment {
    /// For HTTPS.
    #[serde(default)]
    pub https: Option<SecretText>,
    /// For plain HTTP.
    #[serde(default)]
    pub http: Option<SecretText>,
    /// What is reached without a proxy.
    #[serde(default)]
    pub exempt: Option<String>,
}

/// Body of `POST /v1/blobs/prune`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneBlobs {
    /// Only say what would be removed.
    #[serde(default)]
    pub dry_run: bool,
}

/// Its answer: what was removed, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BlobsPruned {
    /// Blobs, whole or begun.
    pub count: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// One kind of thing that takes disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// How many there are.
    pub count: u64,
    /// Bytes that they take on disk.
    pub bytes: u64,
    /// How many of them nothing needs.
    pub unused_count: u64,
    /// Bytes that their removal frees.
    pub reclaimable: u64,
}

/// Answer of `GET /v1/usage`: what takes the host's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DiskUsage {
    /// Images; unused are those without a VM.
    pub images: Usage,
    /// What was fetched from registries; unused is what no pull under way needs.
    pub blobs: Usage,
    /// Kernels; unused are those without a VM.
    pub kernels: Usage,
    /// Initrds, made again when they are needed.
    pub initrds: Usage,
    /// VMs' disks and logs; none of it is unused.
    pub vms: Usage,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_brings_is_sent_and_not_shown() {
        let text = serde_json::json!({
            "name": "x", "reference": "ghcr.io/a/x:1",
            "credentials": [{"registry": "ghcr.io", "user": "alice", "secret": "hunter2"}],
            "proxies": {"https": "http://u:hunter2@p:1"},
        });
        let request: PullImage = serde_json::from_value(text).unwrap();
        assert!(!format!("{request:?}").contains("hunter2"));
        assert!(serde_json::to_string(&request).unwrap().contains("hunter2"));
        assert!(serde_json::from_str::<PullImage>(r#"{"name":"x","reference":"A B"}"#).is_err());
    }
}
