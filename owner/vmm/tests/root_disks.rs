//! Every kind of root disk against the contract, on the file systems it is for.
//!
//! File systems other than the one at hand are made in a file and mounted in a mount namespace that
//! ends with the test: `unshare` runs this very test program again inside, with the place to work in
//! named by an environment variable.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests")]

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_engine::contract;
use banger_engine::seams::{DiskError, RootDisk};
use banger_types::DiskSize;
use banger_vmm::disk::{CopyDisk, Qcow2Overlay, ReflinkDisk};

const INSIDE: &str = "BANGER_TEST_MOUNTED_AT";

#[tokio::test]
async fn qcow2_overlays_keep_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    contract::root_disk(&Qcow2Overlay, directory.path()).await;
}

#[tokio::test]
async fn copies_keep_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    contract::root_disk(&CopyDisk, directory.path()).await;
}

#[tokio::test]
async fn reflinks_keep_the_contract_on_btrfs() {
    let make = "/sbin/mkfs.btrfs -q fs && mount -o loop fs m";
    if let Some(place) = inside("reflinks_keep_the_contract_on_btrfs", "mkfs.btrfs", make) {
        contract::root_disk(&ReflinkDisk, &place).await;
        reflinks_are_the_base_and_take_no_room(&place).await;
    }
}

#[tokio::test]
async fn reflinks_keep_the_contract_on_xfs() {
    let make = "/sbin/mkfs.xfs -q -m reflink=1 fs && mount -o loop fs m";
    if let Some(place) = inside("reflinks_keep_the_contract_on_xfs", "mkfs.xfs", make) {
        contract::root_disk(&ReflinkDisk, &place).await;
        reflinks_are_the_base_and_take_no_room(&place).await;
    }
}

/// Whether a base is in a few pieces or in very many.
async fn reflinks_are_the_base_and_take_no_room(place: &Path) {
    const CHUNK: usize = 64 << 10;
    let room = || {
        let room = rustix::fs::statvfs(place).unwrap();
        room.f_bavail * room.f_frsize
    };
    for pieces in [1, 200, 600_u64] {
        let base = place.join(format!("base-of-{pieces}"));
        let file = std::fs::File::create(&base).unwrap();
        for piece in 0..pieces {
            let bytes = vec![u8::try_from(piece % 255).unwrap() + 1; CHUNK];
            file.write_all_at(&bytes, piece * 1_000_000 / 4096 * 4096).unwrap();
        }
        // A file ends in the middle of a block where its maker wished so.
        let end = pieces * 1_000_000 / 512 * 512;
        file.set_len(end).unwrap();
        file.sync_all().unwrap();
        let before = room();
        let made = ReflinkDisk.create(&base, place, "root", size(640)).await.unwrap();
        std::fs::File::open(&made.path).unwrap().sync_all().unwrap();
        let taken = before.saturating_sub(room());
        assert!(pieces < 100 || taken < pieces * CHUNK as u64 / 4, "{pieces}: it takes {taken}");
        let mut both = [&base, &made.path].map(|path| std::fs::File::open(path).unwrap().take(end));
        let [mut ours, mut theirs] = [vec![], vec![]];
        both[0].read_to_end(&mut theirs).unwrap();
        both[1].read_to_end(&mut ours).unwrap();
        assert!(ours == theirs, "a disk over a base of {pieces} pieces has other bytes");
        assert!(ReflinkDisk.remove(&made).await.unwrap());
        std::fs::remove_file(&base).unwrap();
    }
}

#[tokio::test]
async fn reflinks_are_not_usable_where_there_are_none() {
    let make = "mount -t tmpfs -o size=8m none m";
    let test = "reflinks_are_not_usable_where_there_are_none";
    if let Some(place) = inside(test, "mount", make) {
        assert!(!ReflinkDisk.usable(&place, &place).await.unwrap());
        assert!(ReflinkDisk.usable(&place.join("missing"), &place).await.is_err());
        let base = place.join("base");
        std::fs::write(&base, [1; 4096]).unwrap();
        assert!(ReflinkDisk.create(&base, &place, "root", size(128)).await.is_err());
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1, "only the base is left");
    }
}

#[tokio::test]
async fn a_full_disk_leaves_nothing() {
    let make = "mount -t tmpfs -o size=8m none m";
    if let Some(place) = inside("a_full_disk_leaves_nothing", "mount", make) {
        let bases = tempfile::tempdir().unwrap();
        let base = bases.path().join("base");
        std::fs::write(&base, vec![1; 16 << 20]).unwrap();
        match CopyDisk.create(&base, &place, "root", size(128)).await {
            Err(DiskError::NoSpace { .. }) => {}
            other => panic!("a copy onto a full disk gave {other:?}"),
        }
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);

        std::fs::write(place.join("filler"), vec![1; 9 << 20]).unwrap_err();
        match Qcow2Overlay.create(&base, &place, "root", size(128)).await {
            Err(DiskError::NoSpace { .. }) => {}
            other => panic!("an overlay on a full disk gave {other:?}"),
        }
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1, "only the filler is left");
    }
}

/// A copy nobody waits for any more stops and leaves nothing.
#[tokio::test]
async fn a_cancelled_copy_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("base");
    std::fs::write(&base, vec![1; 64 << 20]).unwrap();
    let disks = directory.path().join("disks");
    std::fs::create_dir(&disks).unwrap();
    for microseconds in [0, 100, 1000, 5000, 20_000] {
        let copy = CopyDisk.create(&base, &disks, "root", size(128));
        let limit = std::time::Duration::from_micros(microseconds);
        if let Ok(finished) = tokio::time::timeout(limit, copy).await {
            CopyDisk.remove(&finished.unwrap()).await.unwrap();
        }
        while std::fs::read_dir(&disks).unwrap().count() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

fn size(mib: u64) -> DiskSize {
    (mib << 20).try_into().unwrap()
}

/// Returns the place to work in when called inside the namespace. Outside, runs `test` inside, on
/// what `make` mounts at `m` (from a file `fs` of 512 MiB), and returns nothing.
fn inside(test: &str, tool: &str, make: &str) -> Option<PathBuf> {
    if let Some(place) = std::env::var_os(INSIDE) {
        return Some(place.into());
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: mount: mounting a file system needs root");
        return None;
    }
    let has = |tool: &str| ["/sbin", "/bin"].iter().any(|at| Path::new(at).join(tool).exists());
    if !has(tool) || !has("unshare") {
        println!("SKIP: {tool}: it is not installed");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let script = format!(
        "truncate -s 512M fs && mkdir m && {make} || exit 77
         export {INSIDE}=\"$PWD/m\" && exec \"$0\" --exact {test} --nocapture"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .current_dir(directory.path())
        .output()
        .unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.code() == Some(77) {
        println!("SKIP: mount: {}", text.concat().replace('\n', " "));
        return None;
    }
    assert!(output.status.success(), "{}", text.concat());
    assert!(text[0].contains("1 passed"), "the test did not run inside: {}", text[0]);
    None
}
