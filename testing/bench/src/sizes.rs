//! What banger takes of memory and disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::environment;
use crate::number::{Limit, Number};

/// A MiB, exact in a float.
const MIB: f64 = 1_048_576.0;
/// Machines beside the first.
const MORE: u32 = 8;
/// How long the daemon rests before it is looked at.
const REST: Duration = Duration::from_secs(3);

#[expect(clippy::cast_precision_loss, reason = "sizes of programs are far below 2^52")]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

/// Finds the agent that the daemon's build made.
fn agent_binary(folder: &Path) -> Option<PathBuf> {
    let mut newest: Option<(std::time::SystemTime, PathBuf)> = None;
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        let found = if path.is_dir() && !path.ends_with("deps") && !path.is_symlink() {
            agent_binary(&path)
        } else {
            (entry.file_name() == "banger-vsock-agent").then_some(path)
        };
        if let Some(path) = found {
            let modified = path.metadata().and_then(|found| found.modified()).ok()?;
            if newest.as_ref().is_none_or(|(time, _)| *time < modified) {
                newest = Some((modified, path));
            }
        }
    }
    newest.map(|(_, path)| path)
}

fn at_most(name: &str, ours: f64, most: f64) -> Number {
    Number { name: name.to_owned(), ours, peer: None, unit: "MiB", limit: Limit::AtMost(most) }
}

pub(crate) fn measure() -> Result<Vec<Number>> {
    let environment = environment();
    environment.banger(["vm", "list"]).ok();
    std::thread::sleep(REST);
    let daemon = environment.daemon().context("the daemon runs")?;
    let idle = daemon.resident().context("the daemon's memory")?;

    environment.banger(["vm", "run", "-d", "--name", "sizes"]).ok();
    let script = "for s in /proc/[0-9]*/status; do if grep -q '^Name:.*banger' $s; then grep VmRSS $s; fi; done";
    let _ = environment.exec("sizes", ["systemctl", "is-system-running", "--wait"]).run();
    let text = environment.exec("sizes", ["sh", "-c", script]).ok().out();
    let agent_kib: u64 =
        text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum();
    let with_vm = daemon.resident().context("the daemon's memory")?;
    for number in 0..MORE {
        let name = format!("more-{number}");
        environment.banger(["vm", "run", "-d", "--memory", "256M", "--name", &name]).ok();
    }
    std::thread::sleep(REST);
    let with_more = daemon.resident().context("the daemon's memory")?;
    let each = (mib(with_more) - mib(with_vm)) / f64::from(MORE);
    environment.finish();

    let agent = agent_binary(&banger_harness::repository().join("target/agent"))
        .context("the agent's binary below target/agent")?;
    let size = agent.metadata().context("look at the agent's binary")?.len();
    Ok(vec![
        at_most("sizes: `bangerd` idle, resident", mib(idle), 30.0),
        Number {
            name: "sizes: `bangerd` with one machine, resident".to_owned(),
            ours: mib(with_vm),
            peer: None,
            unit: "MiB",
            limit: Limit::None,
        },
        at_most("sizes: `bangerd`, resident, for each running machine after the first", each, 1.0),
        at_most("sizes: the agent's binary", mib(size), 3.0),
        at_most(
            "sizes: the agent in the guest, all its processes, resident",
            mib(agent_kib * 1024),
            3.0,
        ),
    ])
}
