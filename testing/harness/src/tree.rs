//! Trees on the host, as root sees them: an image that is mounted, or a layout unpacked by `umoci`;
//! and where two of them differ.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// All that is compared of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its kind and permissions (`st_mode`).
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// What a device node leads to; else 0.
    pub device: u64,
    /// The first path of the same inode.
    pub first: PathBuf,
    /// Names of the inode; 0 for directories.
    pub links: u64,
    /// Extended attributes, capabilities among them.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A file's bytes, or where a link leads.
    pub content: Vec<u8>,
}

/// Walks `root`; directories have no link count and their own path as the first.
#[must_use]
pub fn walk(root: &Path) -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    let mut firsts = BTreeMap::new();
    let mut rest = vec![PathBuf::new()];
    while let Some(path) = rest.pop() {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).expect("a path that was listed");
        let kind = metadata.file_type();
        let mut content = Vec::new();
        if kind.is_dir() {
            for entry in fs::read_dir(&full).expect("a directory") {
                let name = entry.expect("an entry").file_name();
                if path.as_os_str().is_empty() && name == "lost+found" {
                    continue;
                }
                rest.push(path.join(name));
            }
        } else if kind.is_symlink() {
            content = fs::read_link(&full).expect("a link").as_os_str().as_bytes().to_vec();
        } else if kind.is_file() {
            content = fs::read(&full).expect("a file");
        }
        let device =
            if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 };
        let one = Found {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            device,
            first: PathBuf::new(),
            links: if kind.is_dir() { 0 } else { metadata.nlink() },
            attributes: attributes(&full),
            content,
        };
        if !kind.is_dir() {
            let first: &mut PathBuf = firsts.entry(metadata.ino()).or_insert_with(|| path.clone());
            if path < *first {
                first.clone_from(&path);
            }
        }
        found.insert(path, (metadata.ino(), one));
    }
    found
        .into_iter()
        .map(|(path, (inode, mut one))| {
            if let Some(first) = firsts.get(&inode)
                && one.links > 0
            {
                one.first.clone_from(first);
            }
            (path, one)
        })
        .collect()
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 64 << 10];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names[..]) else {
        return BTreeMap::new();
    };
    let names = names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0_u8; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("an attribute");
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// Before any test ran, in seconds since 1970; what is later was made just now.
pub const JUST_NOW: i64 = 1_750_000_000;

impl Found {
    /// Returns whether this is a directory that was made or changed just now.
    #[must_use]
    pub const fn is_new_directory(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000 && self.modified.0 > JUST_NOW
    }
}

/// Says where two trees differ. `theirs` has directories that were made or changed just now: those
/// without an entry, and those that umoci emptied by an opaque whiteout. Their times are its own,
/// and are not compared; a test that has given all of its entries times of the past looks for such
/// ones with [`Found::is_new_directory`].
#[must_use]
pub fn differences(
    ours: &BTreeMap<PathBuf, Found>,
    theirs: &BTreeMap<PathBuf, Found>,
) -> Vec<String> {
    let mut said = Vec::new();
    for path in ours.keys().chain(theirs.keys()).collect::<std::collections::BTreeSet<_>>() {
        match (ours.get(path), theirs.get(path)) {
            (Some(a), Some(b)) => {
                let (mut a, mut b) = (a.clone(), b.clone());
                if b.is_new_directory() {
                    (a.modified, b.modified) = ((0, 0), (0, 0));
                }
                a.content.truncate(a.content.len().min(1 << 24));
                if a != b {
                    let short = |found: &Found| {
                        let mut found = found.clone();
                        found.content.truncate(60);
                        format!("{found:?}")
                    };
                    said.push(format!("{}: {} is not {}", path.display(), short(&a), short(&b)));
                }
            }
            (Some(_), None) => said.push(format!("{} should not be there", path.display())),
            (None, Some(_)) => said.push(format!("{} is missing", path.display())),
            (None, None) => {}
        }
    }
    said
}

/// An image mounted read-only, until it is dropped.
#[derive(Debug)]
pub struct Mounted(pub tempfile::TempDir);

impl Mounted {
    /// Mounts an ext4 image; needs root and a loop device.
    #[must_use]
    pub fn new(image: &Path) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let output = Command::new("/usr/bin/mount")
            .args(["-t", "ext4", "-o", "loop,ro,noload"])
            .arg(image)
            .arg(directory.path())
            .output()
            .expect("mount");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(directory)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let ended = Command::new("/usr/bin/umount").arg(self.0.path()).status();
        assert!(ended.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// Why trees cannot be made and compared here, if they cannot.
#[must_use]
pub fn cannot_compare() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root can unpack and mount");
    }
    for tool in ["/usr/bin/umoci", "/usr/bin/skopeo"] {
        if !Path::new(tool).exists() {
            return Some("umoci or skopeo is not installed");
        }
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("there are no loop devices");
    }
    None
}

/// Unpacks the tag `test` of the layout at `layout` into the folder `to`, which it makes; returns the
/// tree's root.
///
/// # Errors
/// What `umoci` said.
pub fn umoci_unpack(layout: &Path, to: &Path) -> Result<PathBuf, String> {
    let output = Command::new("/usr/bin/umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:test", layout.display()))
        .arg(to)
        .output()
        .expect("umoci");
    if output.status.success() {
        return Ok(to.join("rootfs"));
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}
