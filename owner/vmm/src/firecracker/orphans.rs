//! What machines leave on the host outside of their directories, as an ordinary user sees it; what
//! root must remove is removed by the helper.
//!
//! | kind | seen in | ours if |
//! |---|---|---|
//! | VMM | `/proc` | the owner's, its root is a jail of ours or its cgroup a machine's |
//! | tap | rtnetlink | `tap-fc-` and the beginning of an id; the owner's; a port of no other daemon's bridge |
//! | mount, jail | the jails | it is named by an id, and is ours |
//! | cgroup | the machines' unit | the same |
//! | device | `/sys/block/dm-*` | `fc-rootfs-` and an id; nothing below it that is not ours |
//! | loop device | `/sys/block/loop*` | its file is in a VM's directory; no device stands on it |
//!
//! The jails and cgroups of an installed banger are its own. Those of direct mode are shared by all
//! its daemons; each marks in its state directory, by an empty file, which it has asked for.
//!
//! The kernel tells everybody a tap's owner; what the firewall has of a tap only root sees, and tells us.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_daemon_api::orphan::{Orphan, OrphanKind};
use banger_types::VmId;

use super::links::Tap;

/// The machines' unit, below the cgroup hierarchy (`banger-vms.service`).
const UNIT: &str = "system.slice/banger-vms.service";
const TAP: &str = "tap-fc-";
const DEVICE: &str = "fc-rootfs-";

/// Where to look, and for whose things.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) proc: &'a Path,
    pub(super) sys: &'a Path,
    pub(super) jails: &'a Path,
    pub(super) vms: &'a Path,
    pub(super) uid: u32,
    /// No other banger has jails and cgroups in these places.
    pub(super) is_exclusive: bool,
    /// The daemon's bridge.
    pub(super) bridge: &'a str,
    /// The taps of the daemon's network, anybody's.
    pub(super) taps: Vec<Tap>,
    /// Machines that were asked for.
    pub(super) marked: BTreeSet<String>,
}

impl Place<'_> {
    /// Lists it all.
    pub(super) fn traces(&self) -> Vec<Orphan> {
        let mut all = self.vmms();
        all.extend(self.taps());
        all.extend(self.mounts());
        all.extend(self.jails());
        all.extend(self.cgroups());
        all.extend(self.devices());
        all.extend(self.loops());
        all
    }

    fn is_ours(&self, id: &str) -> bool {
        self.is_exclusive || self.marked.contains(id)
    }

    fn vmms(&self) -> Vec<Orphan> {
        let pids = names(self.proc).into_iter().filter_map(|name| name.parse::<u32>().ok());
        pids.filter_map(|pid| Some(orphan(OrphanKind::Vmm, pid, &self.machine_of(pid)?))).collect()
    }

    /// Returns whose Firecracker a process is.
    pub(super) fn machine_of(&self, pid: u32) -> Option<String> {
        let process = self.proc.join(pid.to_string());
        if fs::metadata(&process).ok()?.uid() != self.uid {
            return None;
        }
        let words = fs::read(process.join("cmdline")).ok()?;
        let id = id_of(&words).filter(|id| self.is_ours(id))?;
        let root = |path: PathBuf| fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
        let jail = root(self.jails.join("firecracker").join(&id).join("root"));
        let is_jailed = jail.is_some() && jail == root(process.join("root/."));
        let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        let is_in_cgroup = cgroup.lines().any(|line| {
            let path = line.strip_prefix("0::/").map(Path::new);
            path == Some(&Path::new(UNIT).join(&id))
        });
        (is_jailed || is_in_cgroup).then_some(id)
    }

    fn taps(&self) -> Vec<Orphan> {
        let ours = self.taps.iter().filter(|tap| {
            tap.owner == Some(self.uid)
                && tap.bridge.as_deref().is_none_or(|bridge| bridge == self.bridge)
        });
        let named = ours.filter_map(|tap| Some((&tap.name, tap.name.strip_prefix(TAP)?)));
        named.map(|(name, vm)| orphan(OrphanKind::Tap, name, vm)).collect()
    }

    fn mounts(&self) -> Vec<Orphan> {
        let jails = self.jails.join("firecracker");
        let table = fs::read_to_string(self.proc.join("self/mountinfo")).unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        let inside = points.filter_map(|point| Some((point, point.strip_prefix(&jails).ok()?)));
        let mut found: Vec<Orphan> = inside
            .filter_map(|(point, rest)| {
                let id = vm_id(rest.components().next()?.as_os_str())?;
                self.is_ours(&id).then(|| orphan(OrphanKind::Mount, point.display(), &id))
            })
            .collect();
        // The deepest first.
        found.sort_by(|a, b| b.name.cmp(&a.name));
        found
    }

    /// A mark stands for a jail: its clean-up was not finished, also where the jail is gone and only
    /// a cgroup is left that nobody but root sees.
    fn jails(&self) -> Vec<Orphan> {
        let folder = self.jails.join("firecracker");
        let mut ids = self.named_in(&folder);
        ids.extend(self.marked.iter().cloned());
        ids.iter().map(|id| orphan(OrphanKind::Jail, folder.join(id).display(), id)).collect()
    }

    fn cgroups(&self) -> Vec<Orphan> {
        let folder = self.sys.join("fs/cgroup").join(UNIT);
        let ids = self.named_in(&folder);
        ids.iter().map(|id| orphan(OrphanKind::Cgroup, folder.join(id).display(), id)).collect()
    }

    /// Our directories there; none where the list may not be read.
    fn named_in(&self, folder: &Path) -> BTreeSet<String> {
        let listed = names(folder).into_iter().filter_map(|name| vm_id(OsStr::new(&name)));
        let ours = listed.filter(|id| self.is_ours(id));
        let is_folder =
            |id: &String| fs::symlink_metadata(folder.join(id)).is_ok_and(|found| found.is_dir());
        ours.filter(is_folder).collect()
    }

    fn devices(&self) -> Vec<Orphan> {
        let folder = self.sys.join("block");
        let named = names(&folder).into_iter().filter_map(|block| {
            let name = fs::read_to_string(folder.join(&block).join("dm/name")).ok()?;
            let name = name.trim().to_owned();
            let id = vm_id(OsStr::new(name.strip_prefix(DEVICE)?))?;
            Some((block, name, id))
        });
        let ours = named.filter(|(block, _, id)| {
            let slaves = names(&folder.join(block).join("slaves"));
            slaves.iter().all(|slave| self.stands_on(slave).as_ref() == Some(id))
        });
        ours.map(|(_, name, id)| orphan(OrphanKind::Device, name, &id)).collect()
    }

    fn loops(&self) -> Vec<Orphan> {
        let folder = self.sys.join("block");
        let free = names(&folder)
            .into_iter()
            .filter(|block| names(&folder.join(block).join("holders")).is_empty());
        free.filter_map(|block| {
            let id = self.stands_on(&block)?;
            Some(orphan(OrphanKind::Loop, format!("/dev/{block}"), &id))
        })
        .collect()
    }

    /// Returns in which VM's directory the file of a loop device is.
    fn stands_on(&self, block: &str) -> Option<String> {
        let file = self.sys.join("block").join(block).join("loop/backing_file");
        let file = fs::read_to_string(file).ok()?;
        let file = Path::new(file.trim_end_matches('\n'));
        // The path is told from the root of the helper's mounts; of a helper that has ended, from
        // the state directory on, which was a mount of its own.
        let inside = file.strip_prefix(self.vms).or_else(|_| file.strip_prefix("/vms")).ok()?;
        let mut parts = inside.components();
        let id = vm_id(parts.next()?.as_os_str())?;
        parts.next().is_some().then_some(id)
    }
}

fn orphan(kind: OrphanKind, name: impl ToString, vm: &str) -> Orphan {
    Orphan { kind, name: name.to_string(), vm: vm.to_owned() }
}

/// Returns the machines that are marked in a directory.
pub(super) fn marked(marks: &Path) -> BTreeSet<String> {
    names(marks).iter().filter_map(|name| vm_id(OsStr::new(name))).collect()
}

/// Returns the names in a directory; none where it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries: io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
    let names = entries.unwrap_or_default().into_iter();
    names.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn vm_id(name: &OsStr) -> Option<String> {
    let id: VmId = name.to_str()?.parse().ok()?;
    Some(id.to_string())
}

/// Returns the machine in a Firecracker's command line, as the jailer writes it: `--id ID` or
/// `--id=ID`.
fn id_of(cmdline: &[u8]) -> Option<String> {
    let words: Vec<&str> = cmdline
        .split(|byte| *byte == 0)
        .filter_map(|word| std::str::from_utf8(word).ok())
        .collect();
    if Path::new(words.first()?).file_name() != Some(OsStr::new("firecracker")) {
        return None;
    }
    let after = words.windows(2).find(|pair| pair[0] == "--id").map(|pair| pair[1]);
    let id = after.or_else(|| words.iter().find_map(|word| word.strip_prefix("--id=")))?;
    vm_id(OsStr::new(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "00112233445566778899aabbccddeeff";
    const OTHER: &str = "ffeeddccbbaa99887766554433221100";

    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn folder(&self, path: &str) {
            fs::create_dir_all(self.0.path().join(path)).unwrap();
        }

        fn found(&self, is_exclusive: bool, marked: &[&str]) -> Vec<String> {
            self.found_with(is_exclusive, marked, Vec::new())
        }

        fn found_with(&self, is_exclusive: bool, marked: &[&str], taps: Vec<Tap>) -> Vec<String> {
            let [proc, sys, jails] = ["proc", "sys", "jails"].map(|name| self.0.path().join(name));
            let place = Place {
                proc: &proc,
                sys: &sys,
                jails: &jails,
                vms: Path::new("/var/lib/banger/vms"),
                uid: rustix::process::getuid().as_raw(),
                is_exclusive,
                bridge: "br-fc",
                taps,
                marked: marked.iter().map(ToString::to_string).collect(),
            };
            let root = format!("{}/", self.0.path().display());
            let words = |orphan: &Orphan| format!("{orphan} {}", orphan.vm).replace(&root, "");
            let mut found: Vec<String> = place.traces().iter().map(words).collect();
            found.sort();
            found
        }
    }

    #[test]
    fn devices_and_loops_are_ours_by_their_files() {
        let fake = Fake::new();
        let dm = |number: u32, name: &str, slaves: &[&str]| {
            fake.write(&format!("sys/block/dm-{number}/dm/name"), &format!("{name}\n"));
            for slave in slaves {
                fake.folder(&format!("sys/block/dm-{number}/slaves/{slave}"));
                fake.folder(&format!("sys/block/{slave}/holders/dm-{number}"));
            }
        };
        let device = |number: u32, file: &str| {
            fake.write(&format!("sys/block/loop{number}/loop/backing_file"), &format!("{file}\n"));
        };
        let vms = "/var/lib/banger/vms";
        device(0, &format!("{vms}/{OURS}/base.ext4"));
        device(1, &format!("/vms/{OURS}/root.cow (deleted)"));
        dm(0, &format!("fc-rootfs-{OURS}"), &["loop0", "loop1"]);
        // Another installation's, one on others' files, one that only looks so, one without a table.
        device(2, &format!("/home/x/.local/state/banger/vms/{OTHER}/root.cow"));
        dm(1, &format!("fc-rootfs-{OTHER}"), &["loop2"]);
        device(3, &format!("{vms}/{OURS}/root.cow"));
        device(4, "/srv/backup.img");
        dm(2, "fc-rootfs-00000000000000000000000000000000", &["loop3", "loop4"]);
        dm(3, "fc-rootfs-mine", &[]);
        dm(4, &format!("vg-fc-rootfs-{OURS}"), &[]);
        dm(5, "fc-rootfs-11111111111111111111111111111111", &[]);
        // Loop devices that nothing stands on.
        device(5, &format!("{vms}/{OTHER}/work.ext4"));
        device(6, &format!("{vms}/{OTHER}"));
        device(7, &format!("{vms}-of-mine/{OTHER}/work.ext4"));
        device(8, &format!("{vms}/notes/{OTHER}/work.ext4"));
        assert_eq!(
            fake.found(true, &[]),
            [
                format!("device-mapper device fc-rootfs-{OURS} {OURS}"),
                "device-mapper device fc-rootfs-11111111111111111111111111111111 \
                 11111111111111111111111111111111"
                    .to_owned(),
                format!("loop device /dev/loop5 {OTHER}"),
            ]
        );
    }

    #[test]
    fn jails_mounts_cgroups_and_taps_are_ours_by_their_place_and_owner() {
        let fake = Fake::new();
        let uid = rustix::process::getuid().as_raw();
        fake.folder(&format!("jails/firecracker/{OURS}/root"));
        fake.folder("jails/firecracker/notes");
        fake.folder(&format!("jails/qemu/{OTHER}"));
        let root = fake.0.path().display().to_string();
        let mount = |point: &str| format!("1 1 0:1 / {point} rw - tmpfs t rw\n");
        let mounts = [
            mount("/"),
            mount(&format!("{root}/jails/firecracker/{OURS}/root/vmlinux")),
            mount(&format!("{root}/jails/firecracker/notes/x")),
            mount(&format!("/elsewhere/jails/firecracker/{OTHER}/root")),
        ];
        fake.write("proc/self/mountinfo", &mounts.concat());
        fake.folder(&format!("sys/fs/cgroup/{UNIT}/{OURS}"));
        fake.folder(&format!("sys/fs/cgroup/{UNIT}/other"));
        fake.write(&format!("sys/fs/cgroup/{UNIT}/cgroup.procs"), "");
        let tap = |name: &str, owner, bridge: Option<&str>| Tap {
            name: name.to_owned(),
            owner,
            bridge: bridge.map(str::to_owned),
        };
        let taps = [
            tap("tap-fc-00112233", Some(uid), None),
            tap("tap-fc-44556677", Some(uid + 1), None),
            tap("tap0", Some(uid), None),
            tap("tap-fc-8899aabb", None, None),
            // On our bridge, on another daemon's, on ours and another's.
            tap("tap-fc-01010101", Some(uid), Some("br-fc")),
            tap("tap-fc-02020202", Some(uid), Some("br-fc-60907")),
            tap("tap-fc-03030303", Some(uid + 1), Some("br-fc")),
        ];
        let found = |is_exclusive: bool, marked: &[&str]| {
            fake.found_with(is_exclusive, marked, taps.to_vec())
        };
        let all = [
            format!("cgroup sys/fs/cgroup/{UNIT}/{OURS} {OURS}"),
            format!("jail jails/firecracker/{OURS} {OURS}"),
            format!("mount jails/firecracker/{OURS}/root/vmlinux {OURS}"),
            "tap tap-fc-00112233 00112233".to_owned(),
            "tap tap-fc-01010101 01010101".to_owned(),
        ];
        assert_eq!(found(true, &[]), all);
        // Shared places: what is marked, and the tap, which has an owner.
        assert_eq!(found(false, &[OURS]), all);
        let unfinished = format!("jail jails/firecracker/{OTHER} {OTHER}");
        let shared = [unfinished, all[3].clone(), all[4].clone()];
        assert_eq!(found(false, &[OTHER]), shared);
    }

    #[test]
    fn a_process_is_ours_by_its_root_or_its_cgroup() {
        let fake = Fake::new();
        let process = |pid: u32, words: &str, cgroup: &str| {
            fake.write(&format!("proc/{pid}/cmdline"), &words.replace(' ', "\0"));
            fake.write(&format!("proc/{pid}/cgroup"), cgroup);
            fake.folder(&format!("proc/{pid}/root"));
        };
        let jail = fake.0.path().join("jails/firecracker").join(OURS).join("root");
        fs::create_dir_all(&jail).unwrap();
        let firecracker = format!("./firecracker --id={OURS} --api-sock x");
        process(10, &firecracker, "0::/user.slice");
        fs::remove_dir(fake.0.path().join("proc/10/root")).unwrap();
        std::os::unix::fs::symlink(&jail, fake.0.path().join("proc/10/root")).unwrap();
        process(11, &firecracker, "0::/user.slice");
        let cgroup = format!("0::/{UNIT}/{OTHER}");
        process(12, &format!("/usr/bin/firecracker --id {OTHER}"), &cgroup);
        process(13, &format!("/usr/bin/firecracker --id {OURS}"), &cgroup);
        process(14, &format!("/usr/bin/tail --id {OTHER}"), &cgroup);
        process(15, "firecracker", &cgroup);
        process(16, "firecracker --id=../../etc", &cgroup);
        let found: Vec<String> =
            fake.found(true, &[]).into_iter().filter(|line| line.starts_with("VMM")).collect();
        let [ours, other] = [format!("VMM process 10 {OURS}"), format!("VMM process 12 {OTHER}")];
        assert_eq!(found, [ours.clone(), other]);
        let marked = fake.found(false, &[OURS]);
        assert!(marked.contains(&ours) && !marked.iter().any(|line| line.contains("process 12")));
    }
}
