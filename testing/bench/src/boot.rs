//! From nothing to the end of `true` in a new guest, against a bare QEMU.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use banger_harness::Environment;
use serde_json::{Value, json};

use crate::bare::Template;
use crate::number::{Limit, Number, median_ms};
use crate::{api, environment, say};

/// Starts a machine for its command line and its disks, and stops it again.
pub(crate) fn reference(environment: &Environment) -> Result<(Template, Value)> {
    environment.banger(["vm", "run", "-d", "--name", "reference"]).ok();
    let template = Template::of(environment, "reference")?;
    let shown = environment.show("reference");
    environment.banger(["vm", "stop", "reference"]).ok();
    Ok((template, shown))
}

fn timed<T>(act: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let began = Instant::now();
    let value = act()?;
    Ok((began.elapsed(), value))
}

/// One machine through the daemon's own API: request to the first instruction,
/// and the teardown.
fn host_side(socket: &Path, name: &str, reference: &Value) -> Result<Duration> {
    let wanted = json!({
        "name": name,
        "image": reference["image"],
        "kernel": reference["kernel"],
        "spec": reference["spec"],
    });
    let (up, started) = timed(|| {
        let started = api::send(socket, "POST", "/v1/vms", Some(&wanted))?.json()?;
        // The stage after QMP's `cont`.
        api::follow(socket, &started, |operation| operation["stage"] == "waiting for the guest")?;
        Ok(started)
    })?;
    api::follow(socket, &started, |operation| operation["state"] == "succeeded")?;
    let (down, ()) = timed(|| {
        let started = api::send(socket, "DELETE", &format!("/v1/vms/{name}"), None)?.json()?;
        api::follow(socket, &started, |operation| operation["state"] == "succeeded")
    })?;
    say(format_args!("{name}: up {up:?}, down {down:?}"));
    Ok(up + down)
}

pub(crate) fn measure(rounds: u32) -> Result<Vec<Number>> {
    let environment = environment();
    let (template, shown) = reference(&environment)?;
    environment.stop_daemon();
    let runtime = crate::runtime()?;
    let folder = environment.home().join("bare");
    let (mut ours, mut bare, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let name = format!("round{round}");
        let began = Instant::now();
        environment.banger(["vm", "run", "--name", &name, "--", "true"]).ok();
        ours.push(began.elapsed());
        environment.banger(["vm", "delete", &name]).ok();
        environment.stop_daemon();

        let prepared = template.prepare(&folder)?;
        let (took, _) = timed(|| {
            let mut qemu = prepared.start(false)?;
            runtime.block_on(qemu.first_word()).map(|channel| (channel, qemu))
        })?;
        bare.push(took);

        let began = Instant::now();
        let _ = environment.banger(["daemon", "status"]).run();
        let without = began.elapsed();
        let began = Instant::now();
        environment.banger(["vm", "list"]).ok();
        cold.push(began.elapsed().saturating_sub(without));
        environment.stop_daemon();
        say(format_args!("boot, round {round}: {:?} against {:?}", ours.last(), bare.last()));
    }

    environment.banger(["vm", "list"]).ok();
    let socket = environment.runtime().join("bangerd.sock");
    let (mut ours_host, mut bare_host) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        ours_host.push(host_side(&socket, &format!("host{round}"), &shown)?);
        let prepared = template.prepare(&folder)?;
        let (took, ()) = timed(|| {
            let mut qemu = prepared.start(true)?;
            qemu.cont()?.quit()?;
            qemu.wait()
        })?;
        bare_host.push(took);
        say(format_args!(
            "host side, round {round}: {:?} against {:?}",
            ours_host.last(),
            bare_host.last()
        ));
    }
    std::fs::remove_dir_all(&folder).context("remove the copies")?;
    environment.finish();
    Ok(vec![
        Number {
            name: "boot: `vm run -- true`, no daemon, no machine before".to_owned(),
            ours: median_ms(&ours),
            peer: Some((
                "bare QEMU, same kernel, initrd and disks, to the agent's first word".to_owned(),
                median_ms(&bare),
            )),
            unit: "ms",
            limit: Limit::AtMostTimes(1.25),
        },
        Number {
            name: "boot, host side: request to the first instruction, and teardown".to_owned(),
            ours: median_ms(&ours_host),
            peer: Some(("bare QEMU to QMP `cont`, and `quit`".to_owned(), median_ms(&bare_host))),
            unit: "ms",
            limit: Limit::AtMostTimes(2.0),
        },
        Number {
            name: "daemon start (the first command's extra time)".to_owned(),
            ours: median_ms(&cold),
            peer: None,
            unit: "ms",
            limit: Limit::None,
        },
    ])
}
