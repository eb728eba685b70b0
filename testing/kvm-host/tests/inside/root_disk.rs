//! Root disks by dm-snapshot, through the driver of `bangerd` and the installed helper.

use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use banger_engine::contract;
use banger_engine::seams::{DiskError, DiskImage, RootDisk};
use banger_helper_client::HelperClient;
use banger_types::VmId;
use banger_vmm::disk::DmSnapshotDisk;

use crate::Inside;
use crate::disk::{node_of, read_at, sparse};
use crate::installation::{Installed, SOCKET, as_owner, give};

const MIB: u64 = 1 << 20;

fn disks() -> DmSnapshotDisk {
    DmSnapshotDisk::new(HelperClient::new(SOCKET.into()))
}

/// Does some work as the owner, as the daemon does.
fn wait<T: Send, F: Future<Output = T>>(work: impl FnOnce() -> F + Send) -> T {
    as_owner(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(work())
    })
}

fn place() -> PathBuf {
    give("disks", |path| std::fs::create_dir(path).expect("a folder"))
}

#[test]
fn snapshots_keep_the_contract_of_root_disks() {
    let Some(inside) = Inside::get() else { return };
    let installed = Installed::new(&inside);
    let place = place();
    wait(async || contract::root_disk(&disks(), &place).await);
    tell_how_long_they_take(&place);
    drop(installed);
}

/// Makes snapshots with their devices over a large image and over a small one with as much in it, and
/// says how long each took, in microseconds; `cargo xtask bench disks` reads that.
#[expect(clippy::print_stdout, reason = "the measured times")]
fn tell_how_long_they_take(place: &Path) {
    let rounds = std::env::var("BANGER_RACE_ROUNDS").ok().and_then(|text| text.parse().ok());
    let bases = [("large", 8 << 10), ("small", 64)].map(|(name, mib)| {
        let base = give(&format!("disks/{name}"), |path| {
            let file = sparse(path, mib * MIB);
            file.write_all_at(&vec![b'b'; 32 << 20], 0).expect("fill the base");
        });
        (name, base, size(mib))
    });
    for turn in 0..rounds.unwrap_or(1) {
        let mut order = [&bases[0], &bases[1]];
        // Each comes as often after the other's removal, part of which goes on behind it.
        order.rotate_left(turn % 2);
        for (name, base, size) in order {
            let vm = VmId::random();
            let began = std::time::Instant::now();
            let disk = wait(async || disks().create(base, place, "root", *size).await);
            let disk = disk.expect("a disk");
            wait(async || disks().attach(&disk, &vm).await).expect("a device");
            println!("snapshot over the {name} image: {} us", began.elapsed().as_micros());
            wait(async || disks().detach(&vm).await).expect("the device ends");
            assert!(wait(async || disks().remove(&disk).await).expect("it goes"));
        }
    }
    for (_, base, _) in bases {
        std::fs::remove_file(base).expect("remove the image");
    }
}

/// A snapshot with its device, which root opens, as the helper gives it to a jail.
struct Attached<'a> {
    disk: &'a DiskImage,
    vm: VmId,
    device: std::fs::File,
}

impl<'a> Attached<'a> {
    fn new(disk: &'a DiskImage) -> Self {
        let vm = VmId::random();
        wait(async || disks().attach(disk, &vm).await).expect("a device");
        // By its number, as the helper does: the name is udev's to make, some time.
        let device = node_of(&format!("fc-rootfs-{vm}"));
        let device = std::fs::File::options().read(true).write(true).open(device);
        Self { disk, vm, device: device.expect("open the device") }
    }

    fn end(self) -> u8 {
        self.device.sync_all().expect("write it out");
        drop(self.device);
        wait(async || disks().detach(&self.vm).await).expect("the device ends");
        let usage = wait(async || disks().measure(self.disk).await).expect("a usage");
        usage.fill_percent.expect("a snapshot can be full")
    }
}

fn size_of(device: &std::fs::File) -> u64 {
    rustix::fs::seek(device, rustix::fs::SeekFrom::End(0)).expect("its size")
}

#[test]
fn a_snapshot_that_grows_keeps_what_is_on_it() {
    let Some(inside) = Inside::get() else { return };
    let installed = Installed::new(&inside);
    let place = place();
    let base = give("disks/base", |path| {
        let file = sparse(path, 66 * MIB);
        file.write_all_at(&[b'b'; 8192], MIB).expect("fill the base");
        file.write_all_at(b"end", 66 * MIB - 3).expect("fill the base");
    });
    let create = async || disks().create(&base, &place, "root", size(66)).await;
    let disk = wait(create).expect("a disk");

    let attached = Attached::new(&disk);
    assert_eq!(size_of(&attached.device), 66 * MIB);
    attached.device.write_all_at(&[b'c'; 4096], MIB).expect("write");
    attached.device.write_all_at(&vec![b'd'; 33 << 20], 30 * MIB).expect("write");
    let fill = attached.end();
    assert!((45..60).contains(&fill), "{fill} %");

    // Twice: the second time it has a base of its own already.
    for mib in [256, 1024] {
        assert!(wait(async || disks().grow(&disk, size(mib)).await).expect("it grows"));
        assert!(!wait(async || disks().grow(&disk, size(mib)).await).expect("it has grown"));
        let attached = Attached::new(&disk);
        let device = &attached.device;
        assert_eq!(size_of(device), mib * MIB);
        assert_eq!(read_at(device, MIB), [b'c'; 4096], "what was written");
        assert_eq!(read_at(device, MIB + 4096), [b'b'; 4096], "what the base has");
        assert_eq!(read_at(device, 62 * MIB), [b'd'; 4096]);
        assert_eq!(read_at(device, 66 * MIB - 4096)[4093..], *b"end");
        assert_eq!(read_at(device, mib * MIB - 4096), [0; 4096], "what was added is empty");
        device.write_all_at(&[b'e'; 4096], mib * MIB - 4096).expect("write to its end");
        attached.end();
    }
    let attached = Attached::new(&disk);
    assert_eq!(read_at(&attached.device, 256 * MIB - 4096), [b'e'; 4096]);
    attached.end();
    let kept = std::fs::File::open(&base).expect("the base");
    assert_eq!(kept.metadata().expect("its size").len(), 66 * MIB, "the base is as it was");
    assert_eq!(read_at(&kept, MIB), [b'b'; 4096]);

    // The kernel marks one that overflowed; it is refused, and so is its growth.
    let cow = std::fs::File::options().write(true).open(&disk.path).expect("the file");
    cow.write_all_at(&[0], 4).expect("mark it");
    let broken = |result: Result<(), DiskError>| {
        let error = result.expect_err("it is broken").to_string();
        assert!(error.contains("overflowed"), "{error}");
    };
    broken(wait(async || disks().check(&disk).await));
    broken(wait(async || disks().grow(&disk, size(2048)).await.map(drop)));
    broken(wait(async || disks().attach(&disk, &VmId::random()).await.map(drop)));
    assert!(wait(async || disks().remove(&disk).await).expect("it goes"));
    assert_eq!(left(&place), ["base"]);
    drop(installed);
}

fn left(place: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(place).expect("the folder").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn size(mib: u64) -> banger_types::DiskSize {
    (mib * MIB).try_into().expect("a size")
}
