//! OCI layouts made in a test, for `umoci` and `skopeo`.

use std::fs;
use std::path::Path;

use banger_image::Layer;

use super::layered::digest;

/// Writes an OCI layout of `layers` with the tag `test`.
pub fn write_layout(path: &Path, layers: &[Layer], config: &str) {
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a directory");
    let put = |bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(digest.hex()), bytes).expect("a blob");
        (digest, bytes.len())
    };
    let mut listed = Vec::new();
    for layer in layers {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut layer.source.open().expect("a layer"), &mut bytes)
            .expect("a layer");
        let (digest, size) = put(&bytes);
        let kind = match layer.media_type {
            banger_image::LayerMediaType::Tar => "tar",
            banger_image::LayerMediaType::Gzip => "tar+gzip",
            banger_image::LayerMediaType::Zstd => "tar+zstd",
        };
        listed.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.{kind}","digest":"{digest}","size":{size}}}"#
        ));
    }
    let ids: Vec<_> = layers.iter().map(|layer| format!("\"{}\"", layer.diff_id)).collect();
    let (config, config_size) = put(format!(
        r#"{{"architecture":"amd64","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    ).as_bytes());
    let (manifest, manifest_size) = put(format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{config_size}}},"layers":[{}]}}"#,
        listed.join(",")
    ).as_bytes());
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
    fs::write(
        path.join("index.json"),
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{manifest}","size":{manifest_size},"annotations":{{"org.opencontainers.image.ref.name":"test"}}}}]}}"#
        ),
    )
    .expect("a file");
}
