//! Staging and launch of a machine until its API answers, against the bare jailer.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use banger_helper_api::Method;
use banger_privileged_tests::vmm;
use serde_json::{Value, json};

use super::{World, bare_launch, done};
use crate::jailer::Held;
use crate::number::{Limit, Number, median_ms};
use crate::say;

/// Machines per round and side.
const MACHINES: u32 = 8;
/// The disk: sparse, and never read.
const DISK: u64 = 64 << 20;

/// A machine that the helper launched.
#[derive(Debug)]
pub(super) struct Launched {
    /// Its Firecracker.
    pub(super) pid: i32,
    /// The link to its API socket.
    pub(super) socket: String,
    id: String,
    process: Held,
}

fn params(world: &World, id: &str) -> Value {
    let mut params = vmm::launch_params(world.directories(), id);
    params["drives"] = json!([{"id": "data", "path": world.directories().state.join("disk")}]);
    params
}

fn make_disk(world: &World) -> Result<()> {
    let disk = world.directories().write("disk", b"");
    let opened = std::fs::File::options().write(true).open(disk);
    opened.and_then(|file| file.set_len(DISK)).context("make a disk")
}

impl Launched {
    /// Has the helper launch one, with a new disk.
    pub(super) fn by_helper(world: &World, id: &str) -> Result<Self> {
        make_disk(world)?;
        let params = params(world, id);
        let answer = done(&mut world.helper.connect(), Method::LaunchFirecracker, &params)?;
        Self::of(id, &params, &answer)
    }

    fn of(id: &str, params: &Value, answer: &Value) -> Result<Self> {
        let pid = answer["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.context("a pid in the helper's answer")?;
        let socket = params["socket_path"].as_str().context("a path")?.to_owned();
        Ok(Self { pid, socket, id: id.to_owned(), process: Held::of(pid)? })
    }

    fn root(&self, world: &World) -> PathBuf {
        world.directories().jails.join("firecracker").join(&self.id).join("root")
    }

    /// Ends it, and has the helper clean up after it.
    pub(super) fn end(self, world: &World) -> Result<()> {
        let (root, mut peer) = (self.root(world), world.helper.connect());
        done(&mut peer, Method::KillProcess, &json!({"pid": self.pid}))?;
        drop(self.process);
        done(&mut peer, Method::CleanupJailerChroot, &json!({"chroot_root": root})).map(drop)
    }
}

/// Each side launches machines of the same files, one at a time.
pub(super) fn measure(world: &World, rounds: u32) -> Result<Vec<Number>> {
    make_disk(world)?;
    let mut peer = world.helper.connect();
    let (mut ours, mut bares) = (vec![], vec![]);
    for round in 0..rounds {
        for at in 0..MACHINES {
            let id = format!("ours-{round}-{at}");
            let params = params(world, &id);
            let began = Instant::now();
            let answer = done(&mut peer, Method::LaunchFirecracker, &params)?;
            ours.push(began.elapsed());
            Launched::of(&id, &params, &answer)?.end(world)?;
            let id = format!("bare-{round}-{at}");
            let began = Instant::now();
            let bare = bare_launch::launch(world.directories(), &id)?;
            bares.push(began.elapsed());
            bare.end()?;
        }
        say(format_args!(
            "helper, launch, round {round}: {:.1} ms, bare {:.1} ms",
            median_ms(&ours),
            median_ms(&bares)
        ));
    }
    Ok(vec![Number {
        name: "helper: staging and launch until the API answers".to_owned(),
        ours: median_ms(&ours),
        peer: Some(("the bare jailer with the same files".to_owned(), median_ms(&bares))),
        unit: "ms",
        limit: Limit::AtMostTimes(1.3),
    }])
}
