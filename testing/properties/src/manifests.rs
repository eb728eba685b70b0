//! What must hold of whatever a registry calls a manifest or a configuration.

use banger_registry::manifest::{
    Document, LARGEST_LAYER, LONGEST_CONFIG, LONGEST_MANIFEST, MOST_LAYERS, diff_ids, document,
};
use serde_json::{Value, json};

/// The name of the target.
pub const TARGET: &str = "manifest";

const TYPES: [Option<&str>; 6] = [
    None,
    Some("application/json"),
    Some("application/vnd.oci.image.manifest.v1+json"),
    Some("application/vnd.oci.image.index.v1+json; charset=utf-8"),
    Some("application/vnd.docker.distribution.manifest.v2+json"),
    Some("application/vnd.docker.distribution.manifest.list.v2+json"),
];

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "a".repeat(64));
    let manifest = |prefix: &str, config: &str, layer: &str| {
        json!({"schemaVersion": 2, "mediaType": prefix,
            "config": {"mediaType": config, "digest": digest, "size": 2},
            "layers": [{"mediaType": layer, "digest": digest, "size": 5}]})
    };
    let oci = manifest(
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    );
    let docker = manifest(
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    );
    let index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 7,
            "platform": {"os": "linux", "architecture": "amd64", "variant": "v2"}},
        {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": 7}]});
    let config = json!({"os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [digest]}, "config": {"Env": ["A=b"]}});
    let mut both = oci.clone();
    both["manifests"] = index["manifests"].clone();
    let old = json!({"schemaVersion": 1, "fsLayers": []});
    [oci, docker, index, config, both, old].map(|seed| seed.to_string().into_bytes()).to_vec()
}

/// Holds what is made of some bytes against what they say when they are read plainly.
///
/// # Panics
/// A property does not hold.
pub fn check(data: &[u8]) {
    let plain: Option<Value> = serde_json::from_slice(data).ok();
    for content_type in TYPES {
        let Ok(found) = document(content_type, data) else { continue };
        let plain = plain.as_ref().expect("what is taken is JSON");
        assert_eq!(plain["schemaVersion"], 2);
        match found {
            Document::Manifest(manifest) => {
                assert!(plain.get("manifests").is_none_or(Value::is_null), "two documents in one");
                assert!(manifest.config.size <= LONGEST_CONFIG);
                let layers = plain["layers"].as_array().expect("a manifest has layers");
                assert!(layers.len() <= MOST_LAYERS && layers.len() == manifest.layers.len());
                for (layer, plain) in manifest.layers.iter().zip(layers) {
                    assert!(layer.size <= LARGEST_LAYER && plain["size"] == layer.size);
                    assert_eq!(plain["digest"], layer.digest.as_str());
                    assert!(layer.digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()));
                    assert!(!layer.media_type.contains("nondistributable"));
                }
            }
            Document::Index(entry) => {
                assert!(plain.get("layers").is_none_or(Value::is_null), "two documents in one");
                assert!(entry.size <= LONGEST_MANIFEST);
                let entries = plain["manifests"].as_array().expect("an index has entries");
                let of_us = |plain: &&Value| {
                    let platform = &plain["platform"];
                    plain["digest"] == entry.digest.as_str()
                        && (platform.is_null()
                            || (platform["os"] == "linux" && platform["architecture"] == "amd64"))
                };
                assert!(entries.iter().any(|plain| of_us(&plain)), "an entry for another machine");
            }
        }
    }
    for layers in [0, 1, 3] {
        if let Ok(found) = diff_ids(data, layers) {
            assert_eq!(found.len(), layers);
        }
    }
}
