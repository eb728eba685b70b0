//! A container registry on this machine: Debian's `docker-registry`, filled by `skopeo`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use sha2::{Digest as _, Sha256};

/// A registry on a port of 127.0.0.1 of its own; it ends with this.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    authority: String,
    folder: PathBuf,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Starts one that keeps its files in `folder`; with `login` it takes user `alice` with password
    /// `secret` alone. `None` where the packages of it are not installed.
    #[must_use]
    pub fn start(folder: &Path, login: bool) -> Option<Self> {
        let program = crate::find_program("docker-registry")?;
        crate::find_program("skopeo")?;
        let path = folder.display();
        std::fs::create_dir_all(folder).expect("make the registry's folder");
        let mut config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    \
             rootdirectory: {path}/data\nhttp:\n  addr: 127.0.0.1:0\n"
        );
        if login {
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {path}/users\n");
            // bcrypt of `secret`.
            let users = "alice:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
            std::fs::write(folder.join("users"), users).expect("write the users");
        }
        let file = folder.join("config.yml");
        std::fs::write(&file, config).expect("write the registry's configuration");
        let mut child = Command::new(program)
            .arg("serve")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start docker-registry");
        let log = child.stderr.take().expect("standard error is a pipe");
        let mut lines = BufReader::new(log).lines().map_while(Result::ok);
        let listens = lines.find_map(|line| {
            let (_, rest) = line.split_once("listening on ")?;
            Some(rest.split(['"', ',', ' ']).next().unwrap_or_default().to_owned())
        });
        let authority = listens.expect("docker-registry says where it listens");
        // Its log would fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, authority, folder: folder.to_owned() })
    }

    /// Where it listens: `127.0.0.1:PORT`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Pushes an image of these archives as `name` (`team/app:1`), compressed with gzip; `config` is
    /// the configuration's own `config` object.
    pub fn push(&self, name: &str, layers: &[&[u8]], config: &serde_json::Value) {
        let layout = self.folder.join(format!("layout-{}", name.replace(['/', ':'], "-")));
        write_layout(&layout, layers, config);
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]);
        if self.folder.join("users").exists() {
            skopeo.args(["--dest-creds", "alice:secret"]);
        }
        skopeo.arg(format!("oci:{}:x", layout.display()));
        skopeo.arg(format!("docker://{}/{name}", self.authority));
        let output = skopeo.output().expect("run skopeo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Writes an OCI layout of one image with these archives as its layers.
fn write_layout(layout: &Path, layers: &[&[u8]], config: &serde_json::Value) {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("make the layout");
    let keep = |bytes: &[u8]| {
        let hex = sha256(bytes);
        std::fs::write(blobs.join(&hex), bytes).expect("write a blob");
        format!("sha256:{hex}")
    };
    let digests: Vec<String> = layers.iter().map(|layer| keep(layer)).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "config": config,
        "rootfs": {"type": "layers", "diff_ids": digests}});
    let config = config.to_string();
    let layers: Vec<serde_json::Value> = layers
        .iter()
        .zip(&digests)
        .map(|(layer, digest)| {
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest,
                "size": layer.len()})
        })
        .collect();
    let manifest = json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": keep(config.as_bytes()), "size": config.len()},
        "layers": layers})
    .to_string();
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": keep(manifest.as_bytes()), "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "x"}}]});
    std::fs::write(layout.join("index.json"), index.to_string()).expect("write the index");
    std::fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")
        .expect("write the layout's version");
}
