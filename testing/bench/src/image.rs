//! From a tar of the default image's tree to a finished ext4.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::number::{Limit, Number, median_ms};
use crate::{environment, say};

fn timed(command: &mut Command) -> Result<Duration> {
    let began = Instant::now();
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(began.elapsed())
}

/// Writes out what earlier rounds left in memory, so that each begins alike.
fn settle(folder: &Path) -> Result<()> {
    timed(Command::new("/bin/sync").arg("-f").arg(folder)).map(drop)
}

pub(crate) fn measure(rounds: u32) -> Result<Vec<Number>> {
    let environment = environment();
    let folder = environment.home().to_owned();
    let archive = folder.join("tree.tar");
    // The tree as a guest sees it, before its boot has changed much.
    let file = std::fs::File::create(&archive).context("make the archive")?;
    let mut tar = environment.command([
        "vm",
        "run",
        "--rm",
        "--",
        "tar",
        "--one-file-system",
        "--xattrs",
        "-c",
        "-C",
        "/",
        ".",
    ]);
    let status = tar.stdin(Stdio::null()).stdout(file).status().context("archive the tree")?;
    // 1: a file changed while it was read, as logs do.
    ensure!(matches!(status.code(), Some(0 | 1)), "tar in the guest ended with {status}");
    let size = archive.metadata().context("look at the archive")?.len();
    say(format_args!("image: a tar of {} MiB", size >> 20));

    let (mut ours, mut plain, mut synced, mut mke2fs) = (vec![], vec![], vec![], vec![]);
    for round in 0..rounds {
        settle(&folder)?;
        let began = Instant::now();
        environment.banger(["image", "import", "--name", "bench"]).arg(&archive).ok();
        ours.push(began.elapsed());

        let tree = folder.join("tree");
        std::fs::create_dir(&tree).context("make the tree")?;
        settle(&folder)?;
        let took = timed(
            Command::new("/bin/tar").args(["--xattrs", "-xpf"]).arg(&archive).arg("-C").arg(&tree),
        )?;
        plain.push(took);
        let rest = timed(Command::new("/bin/sync").arg("-f").arg(&folder))?;
        synced.push(took + rest);

        if round == 0 {
            let disk = folder.join("peer.ext4");
            mke2fs.push(timed(
                Command::new("/sbin/mke2fs")
                    .args(["-q", "-t", "ext4", "-d"])
                    .arg(&tree)
                    .arg(&disk)
                    .arg("8G"),
            )?);
            std::fs::remove_file(&disk).context("remove the peer's disk")?;
        }
        std::fs::remove_dir_all(&tree).context("remove the tree")?;
        environment.banger(["image", "delete", "bench"]).ok();
        say(format_args!(
            "image, round {round}: {:?} against {:?} ({:?} written out)",
            ours.last(),
            plain.last(),
            synced.last()
        ));
    }
    std::fs::remove_file(&archive).context("remove the archive")?;
    environment.finish();
    let seconds = |durations: &[Duration]| median_ms(durations) / 1000.0;
    let number = |peer: &str, value: f64, limit: Limit| Number {
        name: format!("image: `image import` of a tar of {} MiB", size >> 20),
        ours: seconds(&ours),
        peer: Some((peer.to_owned(), value)),
        unit: "s",
        limit,
    };
    Ok(vec![
        number("`tar -x` of it to the same disk", seconds(&plain), Limit::AtMostTimes(1.5)),
        number("`tar -x` and its data written out", seconds(&synced), Limit::None),
        number("`mke2fs -d` of the tree", seconds(&mke2fs), Limit::None),
    ])
}
