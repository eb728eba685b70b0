//! From an image in a registry to a finished ext4.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use banger_harness::{Contents, Environment, Registry, RootfsTar, find_program};

use crate::number::{Limit, Number, median_ms};
use crate::{keep_place, left_out, say};

const LAYERS: usize = 5;
const FILES: usize = 10_000;
/// Bytes of a file: 50,000 of them are 1 GB.
const FILE: usize = 20_000;
/// How often the short requests are measured in each round.
const REQUESTS: usize = 10;

fn timed(command: &mut Command) -> Result<Duration> {
    let began = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    Ok(began.elapsed())
}

fn settle(folder: &Path) -> Result<()> {
    timed(Command::new("/bin/sync").arg("-f").arg(folder)).map(drop)
}

/// A layer of files that compress to about half, as programs and texts do.
fn layer(number: usize) -> Vec<u8> {
    let mut state = number as u64 + 1;
    let mut text = vec![0_u8; FILE];
    let mut archive = RootfsTar::default();
    for folder in 0..FILES / 100 {
        archive = archive.folder(&format!("layer-{number}/{folder:03}"), 0o755);
    }
    for file in 0..FILES {
        for byte in &mut text {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = b'a' + (state.to_be_bytes()[0] & 15);
        }
        archive =
            archive.file(&format!("layer-{number}/{:03}/file-{file}", file / 100), 0o644, &text);
    }
    archive.finish()
}

/// The compressed layers of an OCI layout, the lowest first: all its large blobs are layers.
fn layers_of(layout: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut manifest = None;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(layout.join("blobs/sha256")).context("list the layout")? {
        let path = entry.context("list the layout")?.path();
        let mut text = String::new();
        let file = std::fs::File::open(&path).context("open a blob")?;
        if file.metadata().context("look at a blob")?.len() > 1 << 20 {
            continue;
        }
        file.take(1 << 20).read_to_string(&mut text).context("read a blob")?;
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        if value.get("layers").is_some() {
            manifest = Some(value);
        }
    }
    let manifest = manifest.context("the layout has a manifest")?;
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let digest = layer["digest"].as_str().unwrap_or_default();
        names.push(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:")));
    }
    Ok(names)
}

struct Peer<'a> {
    folder: &'a Path,
    source: String,
}

impl Peer<'_> {
    fn copy(&self) -> Result<Duration> {
        let layout = format!("oci:{}:x", self.folder.join("layout").display());
        timed(
            Command::new("/usr/bin/skopeo")
                .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"])
                .args([&self.source, &layout]),
        )
    }

    /// `skopeo copy` and `tar -x` of each layer.
    fn tar(&self) -> Result<Duration> {
        let mut took = self.copy()?;
        let tree = self.folder.join("tree");
        std::fs::create_dir(&tree).context("make the tree")?;
        for layer in layers_of(&self.folder.join("layout"))? {
            let mut tar = Command::new("/bin/tar");
            took += timed(tar.arg("-xpzf").arg(layer).arg("-C").arg(&tree))?;
        }
        std::fs::remove_dir_all(&tree).context("remove the tree")?;
        self.clean()?;
        Ok(took)
    }

    /// `skopeo copy`, `umoci unpack` and `mke2fs -d`.
    fn umoci(&self) -> Result<Duration> {
        let mut took = self.copy()?;
        let image = format!("{}:x", self.folder.join("layout").display());
        let (bundle, disk) = (self.folder.join("bundle"), self.folder.join("peer.ext4"));
        let mut umoci = Command::new("/usr/bin/umoci");
        took += timed(umoci.args(["unpack", "--image", &image]).arg(&bundle))?;
        let mut mke2fs = Command::new("/sbin/mke2fs");
        mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(bundle.join("rootfs")).arg(&disk).arg("8G");
        took += timed(&mut mke2fs)?;
        std::fs::remove_dir_all(&bundle).context("remove the bundle")?;
        std::fs::remove_file(&disk).context("remove the peer's disk")?;
        self.clean()?;
        Ok(took)
    }

    fn clean(&self) -> Result<()> {
        std::fs::remove_dir_all(self.folder.join("layout")).context("remove the layout")
    }
}

pub(crate) fn measure(rounds: u32) -> Result<Vec<Number>> {
    for program in ["docker-registry", "skopeo", "umoci", "curl"] {
        if find_program(program).is_none() {
            return left_out(&format!("pulls; apt-get install {program}"));
        }
    }
    let programs = banger_harness::repository().join("target/release");
    let environment = Environment::new(Contents::Empty).with_programs(programs);
    keep_place(environment.base());
    let registry = Registry::start(&environment.base().join("registry"), false)
        .context("start docker-registry")?;
    let archives: Vec<Vec<u8>> = (0..LAYERS).map(layer).collect();
    let archives: Vec<&[u8]> = archives.iter().map(Vec::as_slice).collect();
    let bytes: usize = archives.iter().map(|archive| archive.len()).sum();
    registry.push("bench:1", &archives, &serde_json::json!({}));
    drop(archives);
    say(format_args!("pull: {LAYERS} layers of {FILES} files, {} MiB", bytes >> 20));
    let folder = environment.home().to_owned();
    let peer =
        Peer { folder: &folder, source: format!("docker://{}/bench:1", registry.authority()) };
    let reference = format!("{}/bench:1", registry.authority());
    let pull = || environment.banger(["image", "pull", &reference, "--name", "bench"]);
    let url = format!("http://{}/v2/bench/manifests/1", registry.authority());

    let (mut ours, mut tar, mut umoci) = (vec![], vec![], vec![]);
    let (mut again, mut curl, mut peak) = (vec![], vec![], 0);
    for round in 0..rounds {
        settle(&folder)?;
        let began = Instant::now();
        pull().ok();
        ours.push(began.elapsed());
        let daemon = environment.daemon().context("the daemon runs")?;
        peak = peak.max(daemon.peak_resident().context("the daemon's peak")?);
        for _ in 0..REQUESTS {
            let began = Instant::now();
            pull().ok();
            again.push(began.elapsed());
            let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
            curl.push(timed(Command::new("/usr/bin/curl").args(["-sf", "-H", accept, &url]))?);
        }
        settle(&folder)?;
        tar.push(peer.tar()?);
        settle(&folder)?;
        umoci.push(peer.umoci()?);
        environment.banger(["image", "delete", "bench"]).ok();
        environment.banger(["image", "cache", "prune"]).ok();
        say(format_args!("pull, round {round}: {:?} against {:?}", ours.last(), tar.last()));
    }
    drop(registry);
    environment.finish();
    let name = format!("pull: `image pull` of {} MiB, {} files", bytes >> 20, LAYERS * FILES);
    let seconds = |durations: &[Duration]| median_ms(durations) / 1000.0;
    let number = |peer: &str, value: f64, limit| Number {
        name: name.clone(),
        ours: seconds(&ours),
        peer: Some((peer.to_owned(), value)),
        unit: "s",
        limit,
    };
    Ok(vec![
        number(
            "`skopeo copy` to a layout, and `tar -x` of its layers",
            seconds(&tar),
            Limit::AtMostTimes(1.5),
        ),
        number(
            "`skopeo copy`, `umoci unpack` and `mke2fs -d`",
            seconds(&umoci),
            Limit::FasterBy(4.0),
        ),
        Number {
            name: "pull: memory of `bangerd` at its peak".to_owned(),
            ours: crate::sizes::mib(peak),
            peer: None,
            unit: "MiB",
            limit: Limit::AtMost(150.0),
        },
        Number {
            name: "pull: of an unchanged tag".to_owned(),
            ours: median_ms(&again),
            peer: Some(("the manifest, by `curl`".to_owned(), median_ms(&curl))),
            unit: "ms",
            limit: Limit::AtMostTimes(3.0),
        },
    ])
}
