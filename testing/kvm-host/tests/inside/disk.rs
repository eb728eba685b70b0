//! Disks for tests: files, loop devices, snapshots over both.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use banger_privileged_sys::device_mapper::{Device, DeviceMapper, Target};
use banger_privileged_sys::loop_device::LoopDevice;

use crate::tool::run;

/// A file of `bytes` zeros that takes no space.
pub(crate) fn sparse(path: &Path, bytes: u64) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).expect("a file");
    file.set_len(bytes).expect("room for a file");
    file
}

/// A root file system of nothing but a busybox.
pub(crate) fn busybox_root(folder: &Path, uuid: &str) -> PathBuf {
    let tree = folder.join("tree");
    for name in ["bin", "dev", "proc", "sys", "run", "root", "etc", "tmp"] {
        std::fs::create_dir_all(tree.join(name)).expect("a folder");
    }
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("a busybox");
    let path = folder.join("root.ext4");
    sparse(&path, 64 << 20);
    let tree = tree.to_str().expect("a path that is text");
    let image = path.to_str().expect("a path that is text");
    run("mke2fs", ["-q", "-F", "-t", "ext4", "-U", uuid, "-d", tree, image]);
    path
}

/// The device-mapper of this machine.
pub(crate) fn mapper() -> DeviceMapper {
    DeviceMapper::open().expect("a right to use it").expect("the device-mapper")
}

/// The node that the kernel makes of a device.
pub(crate) fn node(number: u64) -> PathBuf {
    PathBuf::from(format!("/dev/dm-{}", rustix::fs::minor(number)))
}

/// The number that the kernel would give to the next device: the lowest that is free.
fn lowest_minor() -> u32 {
    let is_free = |minor: &u32| !Path::new(&format!("/sys/block/dm-{minor}")).exists();
    (0..).find(is_free).expect("a number")
}

/// The node of a device by its name, whoever made it.
pub(crate) fn node_of(name: &str) -> PathBuf {
    let devices = std::fs::read_dir("/sys/block").expect("the devices").flatten();
    let is_it = |path: &Path| {
        std::fs::read_to_string(path.join("dm/name")).is_ok_and(|found| found.trim_end() == name)
    };
    let mut devices = devices.map(|it| it.path());
    let found = devices.find(|path| is_it(path)).expect("a device of that name");
    Path::new("/dev").join(found.file_name().expect("a name"))
}

/// The names of all devices of this machine.
pub(crate) fn names() -> Vec<String> {
    let devices = std::fs::read_dir("/sys/block").expect("the devices").flatten();
    let names = devices.filter_map(|it| std::fs::read_to_string(it.path().join("dm/name")).ok());
    names.map(|name| name.trim_end().to_owned()).collect()
}

/// A copy-on-write disk over a file: what is written to it goes to another file.
pub(crate) struct Snapshot {
    pub(crate) mapper: DeviceMapper,
    pub(crate) name: String,
    pub(crate) number: u64,
    // They end after the device that uses them.
    _base: LoopDevice,
    _changes: LoopDevice,
}

impl Snapshot {
    /// Makes the device; `changes` may hold what an earlier snapshot of the same base wrote.
    pub(crate) fn make(name: &str, base: &Path, changes: &Path) -> Self {
        let open = |path: &Path, write| {
            File::options().read(true).write(write).open(path).expect("a file for a disk")
        };
        let sectors = base.metadata().expect("a base").len() / 512;
        let base = LoopDevice::attach(&open(base, false), true).expect("a loop device");
        let changes = LoopDevice::attach(&open(changes, true), false).expect("a loop device");
        let mapper = mapper();
        let number = mapper.create(name, name, lowest_minor()).expect("a new device");
        // Persistent, in chunks of 8 sectors (Documentation/admin-guide/device-mapper/snapshot.rst).
        let parameters = format!("{} {} P 8", base.path().display(), changes.path().display());
        let target = Target { start: 0, length: sectors, kind: "snapshot".to_owned(), parameters };
        mapper.load(name, &target).expect("a table");
        mapper.resume(name).expect("a live device");
        Self { mapper, name: name.to_owned(), number, _base: base, _changes: changes }
    }

    pub(crate) fn device(&self) -> File {
        File::options().read(true).write(true).open(node(self.number)).expect("the device's node")
    }

    /// The device as it is.
    pub(crate) fn found(&self) -> Device {
        self.mapper.find(&self.name, false).expect("an answer").expect("a device")
    }

    /// Used and all sectors of the file for changes, as the target tells.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let found = self.found();
        let words = &found.targets.first().expect("one target").parameters;
        let numbers = words.split_whitespace().next().expect("a first word");
        let (used, all) = numbers.split_once('/').unwrap_or_else(|| panic!("status {words:?}"));
        (used.parse().expect("a number"), all.parse().expect("a number"))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Err(error) = self.mapper.remove(&self.name) {
            // A panic while another unwinds would hide that one.
            assert!(std::thread::panicking(), "remove {}: {error:?}", self.name);
        }
    }
}

/// Reads a piece of a device past the page cache of whoever wrote it.
pub(crate) fn read_at(file: &File, offset: u64) -> Vec<u8> {
    let mut piece = vec![0; 4096];
    file.read_exact_at(&mut piece, offset).expect("read a piece");
    piece
}
