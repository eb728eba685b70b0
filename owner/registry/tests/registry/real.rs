//! Debian's `docker-registry`, with images that `skopeo` puts there.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use banger_registry::{Access, Credentials, Secret};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Cache, digest, image, noise, pull, pull_all, reference, settings};

const REGISTRY: &str = "/usr/bin/docker-registry";

/// A registry on a port of its own; it ends with this.
struct Running {
    child: Child,
    authority: String,
    directory: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts one; `None`, said, where Debian's package is not installed.
fn start(auth: &str) -> Option<Running> {
    if !Path::new(REGISTRY).exists() {
        println!("SKIP: docker-registry: {REGISTRY} is not installed");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let config = format!(
        "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {0}/data\n\
         http:\n  addr: 127.0.0.1:0\n{auth}",
        directory.path().display()
    );
    let path = directory.path().join("config.yml");
    std::fs::write(&path, config.replace("DIRECTORY", directory.path().to_str().unwrap())).unwrap();
    // printf 'secret' | htpasswd -niB alice
    let users = "alice:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
    std::fs::write(directory.path().join("users"), users).unwrap();
    let mut child = Command::new(REGISTRY)
        .arg("serve")
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let listens = "listening on ";
    let line = lines.by_ref().map(Result::unwrap).find(|line| line.contains(listens)).unwrap();
    let (_, rest) = line.split_once(listens).unwrap();
    let authority = rest.split(['"', ',', ' ']).next().unwrap().to_owned();
    // Its log would fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Some(Running { child, authority, directory })
}

impl Running {
    /// Pushes an image with these layers and returns the manifest's digest.
    fn push(&self, name: &str, layers: &[&[u8]], login: &[&str]) -> String {
        let layout = self.directory.path().join("layout");
        let blobs = layout.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let write = |bytes: &[u8]| {
            let digest = digest(bytes);
            std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
            digest
        };
        let (manifest, config) = image(layers);
        write(&config);
        for layer in layers {
            write(layer);
        }
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": write(&manifest), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "x"}}]});
        std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
        let mut file = std::fs::File::create(layout.join("oci-layout")).unwrap();
        file.write_all(b"{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
        let output = Command::new("/usr/bin/skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "-q",
                "--dest-tls-verify=false",
                "--preserve-digests",
            ])
            .args(login)
            .arg(format!("oci:{}:x", layout.display()))
            .arg(format!("docker://{}/{name}", self.authority))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        digest(&manifest)
    }
}

/// An archive with nothing in it, so that what is pushed is an image.
fn layers() -> [Vec<u8>; 3] {
    [noise(20, 3_000_000), noise(21, 100_000), noise(22, 700_000)]
}

#[tokio::test]
async fn images_are_pulled_by_tag_and_digest_at_once_and_again() {
    let Some(registry) = start("") else { return };
    let layers = layers();
    let all: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let pushed = registry.push("a/x:1", &all, &[]);
    let cache = Cache::new();
    let tag = reference(&registry.authority, "a/x:1");
    let pinned = reference(&registry.authority, &format!("a/x@{pushed}"));
    let (first, second) = tokio::join!(
        pull_all(settings(), Access::default(), &cache, &tag),
        pull_all(settings(), Access::default(), &cache, &pinned),
    );
    assert!(first.unwrap() == layers && second.unwrap() == layers);
    let again = pull(settings(), Access::default(), &cache, &tag).await.unwrap();
    assert_eq!(again.reference().digest().unwrap().as_str(), pushed);
    assert_eq!(again.manifest_digest().as_str(), pushed);
    drop(again);
    // The tag moves on; the layers that both have are not fetched again.
    let newer = noise(23, 1000);
    registry.push("a/x:1", &[all[0], &newer], &[]);
    let read = pull_all(settings(), Access::default(), &cache, &tag).await.unwrap();
    assert!(read == [layers[0].clone(), newer]);
    assert!(pull_all(settings(), Access::default(), &cache, &pinned).await.unwrap() == layers);
    assert_eq!(cache.files("sha256").len(), 4 + 2 + 2);
    let missing = reference(&registry.authority, "a/x:2");
    let error = pull(settings(), Access::default(), &cache, &missing).await.unwrap_err();
    assert!(error.to_string().contains("manifest unknown"), "{error}");
}

#[tokio::test]
async fn a_password_opens_it() {
    let auth = "auth:\n  htpasswd:\n    realm: test\n    path: DIRECTORY/users\n";
    let Some(registry) = start(auth) else { return };
    let layers = layers();
    registry.push("x:1", &[&layers[1]], &["--dest-creds", "alice:secret"]);
    let name = reference(&registry.authority, "x:1");
    let access = |password: &str| Access {
        credentials: vec![Credentials::Password {
            registry: registry.authority.parse().unwrap(),
            user: "alice".to_owned(),
            password: Secret::new(password.to_owned()),
        }],
        ..Access::default()
    };
    let read = pull_all(settings(), access("secret"), &Cache::new(), &name).await.unwrap();
    assert!(read == [layers[1].clone()]);
    for access in [access("wrong"), Access::default()] {
        let error = pull(settings(), access, &Cache::new(), &name).await.unwrap_err();
        assert!(error.to_string().contains("refuses"), "{error}");
    }
}
