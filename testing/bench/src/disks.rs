//! A new root disk over a small image and over a large one, by each back end that this machine has.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use banger_engine::seams::RootDisk;
use banger_types::DiskSize;
use banger_vmm::disk::{CopyDisk, Qcow2Overlay, ReflinkDisk};

use crate::number::{Limit, Number, median_us};
use crate::{runtime, say};

/// The two images; both hold the same bytes, the rest of a large one is empty.
const SMALL: u64 = 64 << 20;
const LARGE: u64 = 8 << 30;
const DATA: usize = 32 << 20;
/// Disks per round and image.
const DISKS: u32 = 10;

/// What the limit of all is.
const MOST: Limit = Limit::AtMostTimes(1.2);
/// What the peer of all is.
const PEER: &str = "over one of 64 MiB with as much in it";

/// Measures every back end that a directory of this machine allows, and dm-snapshot where the
/// device-mapper is: in the KVM host, if the program that runs it is here.
pub(crate) fn measure(rounds: u32, kvm_host: Option<&Path>) -> Result<Vec<Number>> {
    let mut numbers = in_directories(rounds)?;
    match kvm_host {
        Some(kvm_host) => numbers.extend(snapshots(rounds, kvm_host)?),
        None => say("skipped: dm-snapshot: it is measured by `cargo xtask bench disks`"),
    }
    Ok(numbers)
}

/// The times that the driver's own test in the KVM host tells: a snapshot with its device, by the
/// installed root helper.
fn snapshots(rounds: u32, kvm_host: &Path) -> Result<Option<Number>> {
    let folder = tempfile::tempdir().context("make a directory")?;
    let report = folder.path().join("report.xml");
    let mut command = Command::new(kvm_host);
    command.args(["test", "snapshots_keep_the_contract", "--report"]).arg(&report);
    command.env("BANGER_RACE_ROUNDS", (rounds * DISKS).to_string()).stdin(Stdio::null());
    ensure!(command.status().context("run the KVM host")?.success(), "the snapshots' test failed");
    let text = std::fs::read_to_string(&report).context("read the test's report")?;
    let times = |image: &str| -> Vec<Duration> {
        let start = format!("snapshot over the {image} image: ");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&start)?.strip_suffix(" us"));
        lines.filter_map(|micros| micros.parse().ok()).map(Duration::from_micros).collect()
    };
    let (larges, smalls) = (times("large"), times("small"));
    if larges.is_empty() {
        say("skipped: dm-snapshot: this machine cannot have a KVM host");
        return Ok(None);
    }
    ensure!(larges.len() == smalls.len(), "the snapshots' test told half of its times");
    Ok(Some(Number {
        name: "disks: a new dm-snapshot over an image of 8 GiB, in the KVM host".to_owned(),
        ours: median_us(&larges),
        peer: Some((PEER.to_owned(), median_us(&smalls))),
        unit: "µs",
        limit: MOST,
    }))
}

fn in_directories(rounds: u32) -> Result<Vec<Number>> {
    let plain = tempfile::tempdir().context("make a directory")?;
    let mut numbers = vec![
        compare(&Qcow2Overlay, "qcow2-overlay", plain.path(), rounds)?,
        compare(&CopyDisk, "copy", plain.path(), rounds)?,
    ];
    if !banger_harness::is_root() {
        say("skipped: reflinks: only root can mount the file systems that have them");
        return Ok(numbers);
    }
    let thread = std::thread::spawn(move || reflinks(rounds));
    let reflinks = thread.join().map_err(|_| anyhow!("reflinks could not be measured"))?;
    numbers.extend(reflinks?);
    Ok(numbers)
}

/// On file systems in files, mounted for this thread alone.
fn reflinks(rounds: u32) -> Result<Vec<Number>> {
    banger_privileged_tests::enter_own_mounts();
    let mut numbers = Vec::new();
    for (kind, make) in [("btrfs", "mkfs.btrfs -q"), ("xfs", "mkfs.xfs -q -m reflink=1")] {
        let directory = tempfile::tempdir().context("make a directory")?;
        let script = format!(
            "cd \"$0\" && truncate -s 1G fs && mkdir m && /sbin/{make} fs && mount -o loop fs m"
        );
        let mut command = Command::new("/bin/sh");
        let made = command.args(["-c", &script]).arg(directory.path()).output();
        if !made.is_ok_and(|made| made.status.success()) {
            say(format_args!("skipped: reflinks on {kind}: it cannot be made and mounted here"));
            continue;
        }
        let place = directory.path().join("m");
        let number = compare(&ReflinkDisk, &format!("reflink on {kind}"), &place, rounds);
        banger_privileged_tests::unmount_below(directory.path());
        numbers.push(number?);
    }
    Ok(numbers)
}

fn image(path: &Path, size: u64) -> Result<()> {
    let mut file = std::fs::File::create_new(path).context("make an image")?;
    file.write_all(&vec![0x5a; DATA]).context("fill an image")?;
    file.set_len(size).and_then(|()| file.sync_all()).context("size an image")
}

fn compare(disk: &dyn RootDisk, name: &str, place: &Path, rounds: u32) -> Result<Number> {
    let runtime = runtime()?;
    let (small, large) = (place.join("small"), place.join("large"));
    image(&large, LARGE)?;
    image(&small, SMALL)?;
    let create = |base: &Path, size: u64| -> Result<Duration> {
        let size = DiskSize::try_from(size).context("a disk's size")?;
        runtime.block_on(async {
            let began = Instant::now();
            let made = disk.create(base, place, "root", size).await.context("make a disk")?;
            let took = began.elapsed();
            ensure!(disk.remove(&made).await.context("remove it")?, "it was not there");
            Ok(took)
        })
    };
    ensure!(runtime.block_on(disk.usable(place, place))?, "{name} does not work here");
    let (mut larges, mut smalls) = (vec![], vec![]);
    for round in 0..rounds {
        for turn in 0..DISKS {
            // Each comes as often after the other's removal, part of which goes on behind it.
            if turn % 2 == 0 {
                larges.push(create(&large, LARGE)?);
                smalls.push(create(&small, SMALL)?);
            } else {
                smalls.push(create(&small, SMALL)?);
                larges.push(create(&large, LARGE)?);
            }
        }
        say(format_args!(
            "disks, {name}, round {round}: {:.0} µs for 8 GiB, {:.0} µs for 64 MiB",
            median_us(&larges),
            median_us(&smalls)
        ));
    }
    for file in [small, large] {
        std::fs::remove_file(file).context("remove an image")?;
    }
    Ok(Number {
        name: format!("disks: a new {name} over an image of 8 GiB"),
        ours: median_us(&larges),
        peer: Some((PEER.to_owned(), median_us(&smalls))),
        unit: "µs",
        limit: MOST,
    })
}
