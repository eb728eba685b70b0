//! Images as registries have them, and clients with little patience.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use banger_registry::{Access, BlobStore, Deadlines, Pull, Registry, RegistryError, Settings};
use banger_types::OciReference;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Returns the digest of some bytes, as text.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An image with layers of these bytes: manifest, configuration.
pub fn image(layers: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({"os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| {
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest(layer), "size": layer.len()})
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(&config), "size": config.len()},
        "layers": layers});
    (manifest.to_string().into_bytes(), config)
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// A cache of a test's own.
pub struct Cache {
    pub directory: TempDir,
    pub store: BlobStore,
}

impl Cache {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        Self { directory, store }
    }

    /// Returns the names and sizes below a part of the store.
    pub fn files(&self, part: &str) -> Vec<(String, u64)> {
        files(&self.directory.path().join("blobs").join(part))
    }
}

fn files(path: &Path) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
        .collect();
    files.sort();
    files
}

/// Deadlines that end a test soon.
pub fn impatient() -> Deadlines {
    Deadlines {
        connect: Duration::from_millis(500),
        answer: Duration::from_millis(500),
        document: Duration::from_millis(500),
        stall: Duration::from_millis(300),
        window: Duration::from_millis(300),
        least: 64 << 10,
        retries: 2,
        pause: Duration::from_millis(10),
        longest_pause: Duration::from_secs(2),
        ..Deadlines::default()
    }
}

pub fn settings() -> Settings {
    Settings { deadlines: impatient(), ..Settings::default() }
}

pub fn reference(authority: &str, rest: &str) -> OciReference {
    format!("{authority}/{rest}").parse().unwrap()
}

pub async fn pull(
    settings: Settings,
    access: Access,
    cache: &Cache,
    reference: &OciReference,
) -> Result<Pull, RegistryError> {
    let registry = Registry::new(settings, access);
    registry.resolve(reference, &cache.store).await?.pull().await
}

/// Reads all layers to their ends on a thread that may block, the last first, as a builder does.
pub async fn read(pull: Pull) -> (Pull, Result<Vec<Vec<u8>>, std::io::Error>) {
    tokio::task::spawn_blocking(move || {
        let read = |layer: &banger_registry::Layer| {
            let mut bytes = Vec::new();
            layer.open().read_to_end(&mut bytes).map(|_| bytes)
        };
        let layers: Result<Vec<_>, _> = pull.layers().iter().rev().map(read).collect();
        let layers = layers.map(|mut layers| {
            layers.reverse();
            layers
        });
        (pull, layers)
    })
    .await
    .unwrap()
}

/// Pulls and reads; the error is that of either.
pub async fn pull_all(
    settings: Settings,
    access: Access,
    cache: &Cache,
    reference: &OciReference,
) -> Result<Vec<Vec<u8>>, String> {
    let chain = |error: &RegistryError| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text
    };
    let pull = pull(settings, access, cache, reference).await.map_err(|error| chain(&error))?;
    let (pull, layers) = read(pull).await;
    layers.map_err(|error| pull.failure().map_or_else(|| error.to_string(), |error| chain(&error)))
}
