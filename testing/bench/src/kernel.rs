//! banger's own kernel to the agent's first word, against Debian's.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use banger_harness::{DEFAULT_KERNEL, Environment};

use crate::bare::Template;
use crate::number::{Limit, Number, median_ms};
use crate::{environment, say};

/// The name of banger's own kernel here.
const OWN: &str = "own";

/// The command line of a machine with this kernel.
fn template(environment: &Environment, kernel: &str) -> Result<Template> {
    let name = if kernel == OWN { "with-own" } else { "with-debian" };
    environment.banger(["vm", "run", "-d", "--kernel", kernel, "--name", name]).ok();
    let template = Template::of(environment, name)?;
    environment.banger(["vm", "stop", name]).ok();
    Ok(template)
}

/// Boots both kernels in turns, with the same image, agent and devices.
///
/// What the machine does before the kernel's first instruction is in both.
pub(crate) fn measure(package: &Path, rounds: u32) -> Result<Vec<Number>> {
    let environment = environment();
    environment.banger(["kernel", "import", "--name", OWN]).arg(package).ok();
    let templates = [template(&environment, OWN)?, template(&environment, DEFAULT_KERNEL)?];
    environment.stop_daemon();
    let runtime = crate::runtime()?;
    let folder = environment.home().join("bare");
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for (template, times) in templates.iter().zip(&mut times) {
            let prepared = template.prepare(&folder)?;
            let began = Instant::now();
            let mut qemu = prepared.start(false)?;
            let channel = runtime.block_on(qemu.first_word())?;
            times.push(began.elapsed());
            drop(channel);
        }
        let [own, debian] = &times;
        say(format_args!("kernel, round {round}: {:?} against {:?}", own.last(), debian.last()));
    }
    std::fs::remove_dir_all(&folder).context("remove the copies")?;
    environment.finish();
    let [own, debian] = &times;
    Ok(vec![Number {
        name: "boot: banger's own kernel to the agent's first word".to_owned(),
        ours: median_ms(own),
        peer: Some((format!("{DEFAULT_KERNEL}, same image and machine"), median_ms(debian))),
        unit: "ms",
        limit: Limit::FasterBy(2.0),
    }])
}
