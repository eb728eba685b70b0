//! Manifests, indexes and configurations: bytes of a registry that become proven types.
//!
//! Both the OCI image specification's media types and docker's schema 2 are read. What is neither
//! (an artifact that is no image, docker's old schema 1, a document that claims to be two things) is
//! refused by name.

use std::collections::BTreeSet;

use banger_types::Digest;
use serde::Deserialize;

/// The longest manifest or index (the distribution specification asks registries for 4 MiB).
pub const LONGEST_MANIFEST: u64 = 4 << 20;
/// The longest configuration.
pub const LONGEST_CONFIG: u64 = 8 << 20;
/// The most layers: overlayfs takes 500, docker 127.
pub const MOST_LAYERS: usize = 500;
/// The most images in an index.
pub const MOST_ENTRIES: usize = 1000;
/// The largest layer, in bytes.
pub const LARGEST_LAYER: u64 = 256 << 30;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a registry is told that we take.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Why a document was refused. Texts of the document are shortened and made printable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// No JSON, or not of this form.
    #[error("it is no document of that kind: {0}")]
    Json(String),
    /// The header and the document call it different things.
    #[error("it is called {header} and calls itself {body}")]
    Contradiction {
        /// The registry's word.
        header: String,
        /// Its own.
        body: String,
    },
    /// A kind of document that is neither.
    #[error("it is of type {0}, which is no image")]
    MediaType(String),
    /// A document that has the parts of a manifest and of an index.
    #[error("it is a manifest and an index at once")]
    Ambiguous,
    /// Docker's first format.
    #[error("it is of docker's old schema 1; push the image again with a newer docker")]
    SchemaOne,
    /// An artifact that holds something else.
    #[error("its configuration is of type {0}: an artifact that is no image")]
    Artifact(String),
    /// A layer in a form that we do not read.
    #[error("layer {number} is of type {media_type}, which is not supported")]
    Layer {
        /// Counted from 1.
        number: usize,
        /// The type.
        media_type: String,
    },
    /// A number that is too large.
    #[error("it has {found} {what}, more than {limit}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many.
        found: u64,
        /// How many there may be.
        limit: u64,
    },
    /// No image for this machine.
    #[error("it has no image for linux/amd64{}", others(.0))]
    Platform(Vec<String>),
    /// An index in an index in an index.
    #[error("it nests indexes too deeply")]
    Depth,
    /// An index that leads back to itself.
    #[error("it leads back to itself")]
    Cycle,
    /// The configuration has another number of layers.
    #[error("it has {layers} layers, and its configuration has {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
}

fn others(platforms: &[String]) -> String {
    if platforms.is_empty() {
        return String::new();
    }
    format!(", only for {}", platforms.join(", "))
}

/// What stands for some content.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// What it is.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// For what it is, in an index.
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// One image: its configuration and its layers, the lowest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers.
    pub layers: Vec<Descriptor>,
}

/// What a reference leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Images for several platforms; the one for this machine.
    Index(Descriptor),
}

/// All fields that either kind of document may have.
#[derive(Deserialize)]
struct Fields {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

fn excerpt(text: &str) -> String {
    crate::error::printable(text)
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|error| ManifestError::Json(excerpt(&error.to_string())))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Index,
}

fn kind(media_type: &str) -> Result<Kind, ManifestError> {
    match media_type {
        OCI_MANIFEST | DOCKER_MANIFEST => Ok(Kind::Manifest),
        OCI_INDEX | DOCKER_INDEX => Ok(Kind::Index),
        old if old.starts_with("application/vnd.docker.distribution.manifest.v1+") => {
            Err(ManifestError::SchemaOne)
        }
        other => Err(ManifestError::MediaType(excerpt(other))),
    }
}

/// Whether a `Content-Type` says nothing about which kind of document it is.
fn is_generic(media_type: &str) -> bool {
    matches!(media_type, "application/json" | "application/octet-stream" | "text/plain" | "")
}

/// Reads a manifest or an index. `content_type` is the header that came with it, if any.
///
/// # Errors
/// Everything that is not an image or an index with an image for linux/amd64.
pub fn document(content_type: Option<&str>, bytes: &[u8]) -> Result<Document, ManifestError> {
    let fields: Fields = json(bytes)?;
    let header = content_type.unwrap_or_default();
    let header = header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let header = Some(header).filter(|header| !is_generic(header));
    let claimed = match (header, fields.media_type) {
        (Some(header), Some(body)) if header != body => {
            let (header, body) = (excerpt(&header), excerpt(&body));
            return Err(ManifestError::Contradiction { header, body });
        }
        (header, body) => header.or(body),
    };
    let claimed = claimed.map(|media_type| kind(&media_type)).transpose()?;
    if fields.schema_version == Some(1) || fields.fs_layers.is_some() {
        return Err(ManifestError::SchemaOne);
    }
    if fields.schema_version != Some(2) {
        return Err(ManifestError::Json("schemaVersion is not 2".to_owned()));
    }
    // A document that is read one way here and another way elsewhere: CVE-2021-41190.
    let has_image = fields.config.is_some() || fields.layers.is_some();
    if has_image && fields.manifests.is_some() {
        return Err(ManifestError::Ambiguous);
    }
    let missing = |what: &str| ManifestError::Json(format!("it has no {what}"));
    match claimed {
        Some(Kind::Index) => index(fields.manifests.ok_or_else(|| missing("manifests"))?),
        None if fields.manifests.is_some() => index(fields.manifests.unwrap_or_default()),
        Some(Kind::Manifest) | None => manifest(
            fields.config.ok_or_else(|| missing("config"))?,
            fields.layers.ok_or_else(|| missing("layers"))?,
        ),
    }
}

fn limit(what: &'static str, found: u64, limit: u64) -> Result<(), ManifestError> {
    if found > limit { Err(ManifestError::TooMany { what, found, limit }) } else { Ok(()) }
}

fn count(what: &'static str, found: usize, most: usize) -> Result<(), ManifestError> {
    limit(what, found as u64, most as u64)
}

fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Result<Document, ManifestError> {
    if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
        return Err(ManifestError::Artifact(excerpt(&config.media_type)));
    }
    limit("bytes of configuration", config.size, LONGEST_CONFIG)?;
    count("layers", layers.len(), MOST_LAYERS)?;
    for (index, layer) in layers.iter().enumerate() {
        if !is_layer(&layer.media_type) {
            let media_type = excerpt(&layer.media_type);
            return Err(ManifestError::Layer { number: index + 1, media_type });
        }
        limit("bytes in a layer", layer.size, LARGEST_LAYER)?;
    }
    let all = layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
    limit("bytes in all layers", all, LARGEST_LAYER)?;
    Ok(Document::Manifest(Manifest { config, layers }))
}

/// Whether layers of this type can be read. Those that may not be distributed are not in the
/// registry, but behind addresses in the manifest.
fn is_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
    )
}

fn index(entries: Vec<Descriptor>) -> Result<Document, ManifestError> {
    count("images", entries.len(), MOST_ENTRIES)?;
    let mut best: Option<(u8, Descriptor)> = None;
    let mut others = BTreeSet::new();
    for entry in entries {
        let is_index = kind(&entry.media_type).is_ok_and(|kind| kind == Kind::Index);
        let rank = match &entry.platform {
            // An index in an index may say nothing of platforms.
            None if is_index => 3,
            None => 4,
            Some(platform) if platform.os == "linux" && platform.architecture == "amd64" => {
                match platform.variant.as_deref() {
                    None | Some("" | "v1") => 0,
                    Some("v2") => 1,
                    Some(_) => 2,
                }
            }
            Some(platform) => {
                // Attestations call themselves unknown/unknown.
                if platform.os != "unknown" {
                    others.insert(excerpt(&format!("{}/{}", platform.os, platform.architecture)));
                }
                continue;
            }
        };
        if kind(&entry.media_type).is_err() {
            continue;
        }
        if best.as_ref().is_none_or(|(other, _)| rank < *other) {
            best = Some((rank, entry));
        }
    }
    let (_, entry) =
        best.ok_or_else(|| ManifestError::Platform(others.into_iter().take(10).collect()))?;
    limit("bytes in a manifest", entry.size, LONGEST_MANIFEST)?;
    Ok(Document::Index(entry))
}

/// What the layers are, from an image's configuration.
#[derive(Deserialize)]
struct ConfigFields {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

/// Reads the digests of the uncompressed layers out of an image's configuration.
///
/// # Errors
/// No configuration, one for another platform, or one for another number of layers.
pub fn diff_ids(config: &[u8], layers: usize) -> Result<Vec<Digest>, ManifestError> {
    let fields: ConfigFields = json(config)?;
    let (os, architecture) =
        (fields.os.unwrap_or_default(), fields.architecture.unwrap_or_default());
    let is_ours = |word: &str, ours: &str| word.is_empty() || word == ours;
    if !is_ours(&os, "linux") || !is_ours(&architecture, "amd64") {
        return Err(ManifestError::Platform(vec![excerpt(&format!("{os}/{architecture}"))]));
    }
    let diff_ids = fields.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != layers {
        return Err(ManifestError::LayerCount { layers, diff_ids: diff_ids.len() });
    }
    Ok(diff_ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn digest(digit: &str) -> String {
        format!("sha256:{}", digit.repeat(64))
    }

    fn layer(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": digest("a"), "size": 5})
    }

    fn image(layers: &[Value]) -> Value {
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest("c"), "size": 2}, "layers": layers})
    }

    fn entry(os: &str, architecture: &str, variant: Option<&str>, digit: &str) -> Value {
        json!({"mediaType": OCI_MANIFEST, "digest": digest(digit), "size": 7,
            "platform": {"os": os, "architecture": architecture, "variant": variant}})
    }

    fn read(content_type: Option<&str>, value: &Value) -> Result<Document, ManifestError> {
        document(content_type, value.to_string().as_bytes())
    }

    #[test]
    fn both_families_of_media_types_are_read() {
        let docker = json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "digest": digest("c"), "size": 2},
            "layers": [layer("application/vnd.docker.image.rootfs.diff.tar.gzip")]});
        for (header, value) in [
            (Some(DOCKER_MANIFEST), docker),
            (Some(OCI_MANIFEST), image(&[layer("application/vnd.oci.image.layer.v1.tar+zstd")])),
            (Some("application/json; charset=utf-8"), image(&[])),
            (None, image(&[layer("application/vnd.oci.image.layer.v1.tar")])),
        ] {
            assert!(matches!(read(header, &value), Ok(Document::Manifest(_))), "{value}");
        }
    }

    #[test]
    fn this_machines_platform_is_chosen() {
        let index = json!({"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": [
            entry("unknown", "unknown", None, "0"), entry("linux", "arm64", None, "1"),
            entry("linux", "amd64", Some("v3"), "2"), entry("linux", "amd64", None, "3"),
            entry("windows", "amd64", None, "4")]});
        let Document::Index(chosen) = read(Some(DOCKER_INDEX), &index).unwrap() else { panic!() };
        assert_eq!(chosen.digest.as_str(), digest("3"));
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let many = vec![layer("application/vnd.oci.image.layer.v1.tar"); MOST_LAYERS + 1];
        let mut artifact = image(&[]);
        artifact["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        let mut huge = image(&[layer("application/vnd.oci.image.layer.v1.tar")]);
        huge["layers"][0]["size"] = json!(u64::MAX);
        let mut negative = huge.clone();
        negative["layers"][0]["size"] = json!(-1);
        let mut both = image(&[]);
        both["manifests"] = json!([]);
        let mut wrong_digest = huge.clone();
        wrong_digest["layers"][0]["digest"] = json!("sha256:../../etc");
        let index = |entries: Vec<Value>| json!({"schemaVersion": 2, "manifests": entries});
        for (header, value, part) in [
            (Some(OCI_INDEX), image(&[]), "calls itself"),
            (Some("text/html"), json!({"schemaVersion": 2}), "text/html"),
            (None, json!([]), "no document"),
            (None, json!({}), "schemaVersion"),
            (None, json!({"schemaVersion": 3}), "schemaVersion"),
            (None, json!({"schemaVersion": 1, "fsLayers": []}), "schema 1"),
            (
                Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
                json!({"schemaVersion": 1}),
                "schema 1",
            ),
            (None, json!({"schemaVersion": 2}), "no config"),
            (Some(OCI_INDEX), json!({"schemaVersion": 2}), "no manifests"),
            (None, both, "at once"),
            (None, artifact, "helm"),
            (
                None,
                image(&[layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]),
                "layer 1",
            ),
            (None, image(&[layer("text/plain\n\u{1b}[2J")]), "text/plain??[2J"),
            (None, image(&many), "501 layers"),
            (None, huge, "bytes in a layer"),
            (None, negative, "no document"),
            (None, wrong_digest, "sha256"),
            (None, index(vec![entry("linux", "arm64", None, "1")]), "only for linux/arm64"),
            (None, index(vec![]), "no image for linux/amd64"),
            (None, index(vec![entry("linux", "amd64", None, "1"); 1001]), "1001 images"),
        ] {
            let error = read(header, &value).unwrap_err().to_string();
            assert!(error.contains(part), "{value}: {error}");
        }
    }

    #[test]
    fn duplicate_keys_are_refused() {
        let text = image(&[]).to_string();
        let twice = format!("{},\"schemaVersion\":2}}", &text[..text.len() - 1]);
        assert!(document(None, twice.as_bytes()).is_err());
    }

    #[test]
    fn layers_have_one_diff_id_each() {
        let config = |os: &str, count: usize| {
            json!({"os": os, "architecture": "amd64", "config": null,
                "rootfs": {"type": "layers", "diff_ids": vec![digest("d"); count]}})
            .to_string()
        };
        assert_eq!(diff_ids(config("linux", 2).as_bytes(), 2).unwrap().len(), 2);
        assert_eq!(diff_ids(br#"{"rootfs":{"diff_ids":null}}"#, 0).unwrap(), []);
        for (text, part) in [
            (config("linux", 1), "2 layers"),
            (config("windows", 2), "windows/amd64"),
            ("{}".to_owned(), "rootfs"),
            ("nonsense".to_owned(), "no document"),
        ] {
            let error = diff_ids(text.as_bytes(), 2).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_break_the_parser(bytes: Vec<u8>) {
            let _ = document(None, &bytes);
            let _ = diff_ids(&bytes, 1);
        }
    }
}
