//! Root disks as QEMU reads and writes them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_engine::contract::{TinyGuest, TinyGuests};
use banger_engine::seams::{DiskFormat, DiskImage, RootDisk, Vmm, VmmError};
use banger_types::DiskSize;
use banger_vmm::disk::{CopyDisk, Qcow2Overlay};
use banger_vmm::probe::AccelerationChoice;
use banger_vmm::qemu::QemuVmm;

use crate::block_tool::BlockTool;
use crate::tiny_guest::Kernels;

const MIB: u64 = 1 << 20;
const BASE_SIZE: u64 = 66 * MIB;

fn make_base(directory: &Path) -> PathBuf {
    let base = directory.join("base, image.ext4");
    let file = File::create(&base).unwrap();
    file.set_len(BASE_SIZE).unwrap();
    file.write_all_at(&[0x41; 8192], 4096).unwrap();
    file.write_all_at(&[0x42; 4096], BASE_SIZE - 4096).unwrap();
    base
}

fn size(mib: u64) -> DiskSize {
    (mib * MIB).try_into().unwrap()
}

#[tokio::test]
async fn qemu_sees_the_base_through_a_disk_and_writes_beside_it() {
    if !crate::qemu_is_here() {
        return;
    }
    for disks in [&Qcow2Overlay as &dyn RootDisk, &CopyDisk] {
        let directory = tempfile::tempdir().unwrap();
        let base = make_base(directory.path());
        let before = std::fs::read(&base).unwrap();
        let disk = disks.create(&base, directory.path(), "root", size(1024)).await.unwrap();

        let mut tool = BlockTool::open(&disk, directory.path());
        assert_eq!(tool.size(), 1024 * MIB);
        tool.expect(0, 0, 4096);
        tool.expect(0x41, 4096, 8192);
        tool.expect(0, 12288, 65536);
        tool.expect(0x42, BASE_SIZE - 4096, 4096);
        tool.expect(0, BASE_SIZE, 65536);
        // Into the base's data, across the end of the base, far behind it.
        tool.io("write -P 0x55 8192 512");
        tool.io(&format!("write -P 0x56 {} 8192", BASE_SIZE - 4096));
        tool.io(&format!("write -P 0x57 {} 4096", 1024 * MIB - 4096));
        tool.io("flush");
        // QEMU is killed here; what it flushed stays.
        drop(tool);

        let allocated = disks.measure(&disk).await.unwrap().allocated;
        assert!(allocated < 2 * MIB, "{allocated} bytes for three small writes");
        assert!(disks.grow(&disk, size(3 * 1024)).await.unwrap());

        let mut tool = BlockTool::open(&disk, directory.path());
        assert_eq!(tool.size(), 3 * 1024 * MIB);
        tool.expect(0x41, 4096, 4096);
        tool.expect(0x55, 8192, 512);
        tool.expect(0x41, 8704, 3584);
        tool.expect(0x56, BASE_SIZE - 4096, 8192);
        tool.expect(0x57, 1024 * MIB - 4096, 4096);
        tool.expect(0, 1024 * MIB, 65536);
        tool.io(&format!("write -P 0x58 {} 4096", 3 * 1024 * MIB - 4096));
        tool.io("flush");
        drop(tool);
        let mut tool = BlockTool::open(&disk, directory.path());
        tool.expect(0x58, 3 * 1024 * MIB - 4096, 4096);
        drop(tool);

        assert!(std::fs::read(&base).unwrap() == before, "the base changed");
        if disk.format == DiskFormat::Qcow2 {
            check(&disk.path);
        }
    }
}

/// The largest disk, so that every L1 entry is in reach.
#[tokio::test]
async fn the_largest_overlay_can_be_written_to_its_end() {
    if !crate::qemu_is_here() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let base = make_base(directory.path());
    let most = DiskSize::try_from(DiskSize::MOST).unwrap();
    let disk = Qcow2Overlay.create(&base, directory.path(), "root", size(128)).await.unwrap();
    assert!(Qcow2Overlay.grow(&disk, most).await.unwrap());
    let mut tool = BlockTool::open(&disk, directory.path());
    assert_eq!(tool.size(), most.bytes());
    tool.io(&format!("write -P 0x59 {} 4096", most.bytes() - 4096));
    tool.expect(0x59, most.bytes() - 4096, 4096);
    tool.expect(0x41, 4096, 8192);
    drop(tool);
    assert!(Qcow2Overlay.measure(&disk).await.unwrap().allocated < 2 * MIB);
    check(&disk.path);
}

#[tokio::test]
async fn what_is_no_overlay_of_ours_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let base = make_base(directory.path());
    let good = Qcow2Overlay.create(&base, directory.path(), "good", size(128)).await.unwrap();
    let header = std::fs::read(&good.path).unwrap()[..512].to_vec();
    let cases: [(&str, Vec<u8>); 6] = [
        ("empty", vec![]),
        ("cut short", header[..60].to_vec()),
        ("zeros", vec![0; 4096]),
        ("another version", {
            let mut h = header.clone();
            h[7] = 2;
            h
        }),
        ("other clusters", {
            let mut h = header.clone();
            h[23] = 9;
            h
        }),
        ("snapshots", {
            let mut h = header.clone();
            h[63] = 1;
            h
        }),
    ];
    for (name, content) in cases {
        let path = directory.path().join(name);
        std::fs::write(&path, &content).unwrap();
        let disk = DiskImage { path: path.clone(), ..good.clone() };
        assert!(Qcow2Overlay.measure(&disk).await.is_err(), "{name}");
        assert!(Qcow2Overlay.grow(&disk, size(256)).await.is_err(), "{name}");
        assert_eq!(std::fs::read(&path).unwrap(), content, "{name}");
    }
}

/// A disk that one VMM has open is refused to another, in QEMU's own words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_in_use_is_refused_to_a_second_vm() {
    if !crate::qemu_is_here() {
        return;
    }
    let directory = tempfile::Builder::new().prefix("bv").tempdir_in("/tmp").unwrap();
    let base = make_base(directory.path());
    let disk = Qcow2Overlay.create(&base, directory.path(), "root", size(128)).await.unwrap();
    let mut kernels = Kernels::new(directory.path());
    kernels.disks = vec![disk];
    let vmm = QemuVmm::new(AccelerationChoice::Tcg);
    let runtime = |name: &str| {
        use std::os::unix::fs::DirBuilderExt;
        let path = directory.path().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        path
    };
    let (first_runtime, second_runtime) = (runtime("1"), runtime("2"));
    let log = directory.path().join("console.log");

    let first = vmm.launch(kernels.plan(TinyGuest::Hello, &first_runtime, &log)).await.unwrap();
    let second = vmm.launch(kernels.plan(TinyGuest::Hello, &second_runtime, &log)).await;
    match second.err() {
        Some(VmmError::Ended { reason, .. }) => assert!(reason.contains("lock"), "{reason}"),
        other => panic!("a locked disk gave {other:?}"),
    }
    assert_eq!(std::fs::read_dir(&second_runtime).unwrap().count(), 0);
    first.kill().await.unwrap();

    // The lock went with its holder. A disk that is no image is refused in QEMU's words, too.
    vmm.clean(&first_runtime).await.unwrap();
    let again = vmm.launch(kernels.plan(TinyGuest::Hello, &first_runtime, &log)).await.unwrap();
    again.kill().await.unwrap();
    vmm.clean(&first_runtime).await.unwrap();
    let garbage = directory.path().join("garbage");
    std::fs::write(&garbage, [7; 4096]).unwrap();
    kernels.disks[0].path = garbage;
    match vmm.launch(kernels.plan(TinyGuest::Hello, &first_runtime, &log)).await.err() {
        Some(VmmError::Ended { reason, .. }) => assert!(reason.contains("qcow2"), "{reason}"),
        other => panic!("a disk that is no image gave {other:?}"),
    }
}

/// Lets QEMU's own checker look for leaks and errors, where it is installed.
fn check(path: &Path) {
    let tool = Path::new("/usr/bin/qemu-img");
    if !tool.exists() {
        println!("note: qemu-img is not installed, so the image was not checked by it");
        return;
    }
    let output = Command::new(tool).arg("check").arg(path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("No errors were found"), "{text}");
}
