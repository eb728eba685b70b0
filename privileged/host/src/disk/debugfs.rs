//! e2fsprogs on an ext4 file system: debugfs(8) and e2fsck(8).
//!
//! What is in an image is the guest's work and may be made to break its reader, so the tools run
//! as the owner, whose file it is anyway, and a tool that was taken over has nothing that the owner
//! has not. The image is their standard input, opened by the helper; what else they need lies in
//! their working directory, a file system in memory that is mounted nowhere and vanishes with who
//! holds it. A snapshot's node there, made by number, is the owner's; all other files are root's.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use banger_gates::{Name, Refusal};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::tool::{Input, Outcome, Paths, Tool};
use crate::{During, Host, HostError, LOOK, Result, descriptor_path};

const DEBUGFS: &[&str] = &["/usr/sbin/debugfs", "/sbin/debugfs"];
const E2FSCK: &[&str] = &["/usr/sbin/e2fsck", "/sbin/e2fsck"];
const DEBUGFS_LIMIT: Duration = Duration::from_secs(60);
const E2FSCK_LIMIT: Duration = Duration::from_secs(600);
/// The most bytes that are read from a file, and that a tool may say otherwise.
pub(super) const MOST: u64 = 16 << 20;
/// How much of what a tool said is told on.
const LONGEST_TOLD: usize = 2000;
/// What is placed for the tools to read: a script, and what is to be written.
pub(super) const PLACED: [&str; 2] = ["commands", "content"];
const DISK: &str = "/proc/self/fd/0";

/// What of an inode is asked for (`struct ext2_inode`, lib/ext2fs/ext2_fs.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) kind: FileType,
    /// In bytes.
    pub(super) size: u64,
    /// Whether it has a block of extended attributes.
    pub(super) has_attribute_block: bool,
}

/// The part of an inode that is read.
const INODE: usize = 128;

/// An ext4 file system, held for the tools.
#[derive(Debug)]
pub(super) struct Image {
    disk: OwnedFd,
    folder: OwnedFd,
    owner: (u32, u32),
}

/// Whoever still holds a file that was placed for the tools, it takes no memory any more.
impl Drop for Image {
    fn drop(&mut self) {
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
        for name in PLACED {
            let _ = rustix::fs::openat(&self.folder, name, flags, Mode::empty());
        }
    }
}

/// What debugfs complains of: all but its first line, which tells its version.
fn complaint(error: &str) -> Option<String> {
    let lines: Vec<&str> = error.lines().skip(1).filter(|line| !line.is_empty()).collect();
    (!lines.is_empty()).then(|| lines.join("; ").chars().take(LONGEST_TOLD).collect())
}

impl Image {
    /// Holds a file.
    pub(super) fn file(host: &Host, file: File) -> Result<Self> {
        let owner = (host.policy.owner.uid(), host.policy.owner.gid());
        let folder = folder().during("make", "a directory in memory")?;
        Ok(Self { disk: file.into(), folder, owner })
    }

    /// Holds a block device by its number.
    pub(super) fn device(host: &Host, device: u64) -> Result<Self> {
        let (uid, gid) = (host.policy.owner.uid(), host.policy.owner.gid());
        let make = || {
            let folder = folder()?;
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mknodat(&folder, "disk", FileType::BlockDevice, mode, device)?;
            let (user, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(&folder, "disk", user, group, AtFlags::SYMLINK_NOFOLLOW)?;
            let disk = rustix::fs::openat(&folder, "disk", LOOK, Mode::empty())?;
            Ok::<_, rustix::io::Errno>(Self { disk, folder, owner: (uid, gid) })
        };
        make().during("make a node for", format!("device {device:#x}"))
    }

    /// Whether its journal holds what is not written yet: it is mounted, or was not unmounted (ext4(5);
    /// Linux `Documentation/filesystems/ext4/super.rst`).
    ///
    /// # Errors
    /// No ext4 file system (refused).
    pub(super) fn is_dirty(&self, parameter: Name) -> Result<bool> {
        let read = || {
            let mut block = [0; 1024];
            File::open(descriptor_path(&self.disk))?.read_exact_at(&mut block, 1024)?;
            Ok::<_, std::io::Error>(block)
        };
        let block = match read() {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => [0; 1024],
            block => block.during("read", "the image")?,
        };
        let is_ext4 = u16::from_le_bytes([block[0x38], block[0x39]]) == 0xEF53;
        Refusal::when(!is_ext4, parameter, "no ext4 file system")?;
        Ok(block[0x60] & 4 != 0)
    }

    /// Puts a file into the tools' working directory.
    pub(super) fn place(&self, name: &str, content: &[u8]) -> Result<()> {
        let place = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.folder, name, flags, Mode::RUSR)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444))?;
            File::from(file).write_all(content)
        };
        place().during("write in memory", name)
    }

    fn run(&self, paths: Paths, arguments: &[&str], limit: Duration) -> Result<Outcome> {
        let clone = || Ok::<_, std::io::Error>((self.disk.try_clone()?, self.folder.try_clone()?));
        let (disk, folder) = clone().during("hold", "the image")?;
        let tool = Tool {
            input: Input::File(disk.into()),
            longest_output: MOST,
            user: Some(self.owner),
            folder: Some(folder),
            ..Tool::of(paths, arguments, limit)
        };
        tool.run()
    }

    /// Runs debugfs for the sake of one file.
    ///
    /// # Errors
    /// Whatever it complains of: debugfs itself goes on and exits with success.
    fn debugfs(&self, arguments: &[&str], operation: &'static str, path: &str) -> Result<Vec<u8>> {
        let outcome = self.run(DEBUGFS, arguments, DEBUGFS_LIMIT)?;
        let exit = (!outcome.status.success()).then(|| outcome.status.to_string());
        match complaint(&outcome.error).or(exit) {
            None => Ok(outcome.output),
            Some(complaint) => Err(HostError::of(operation, path)(complaint)),
        }
    }

    /// Runs a script of debugfs that changes the image for the sake of one file.
    pub(super) fn edit(&self, path: &str, script: &[String]) -> Result<()> {
        self.place("commands", (script.join("\n") + "\n").as_bytes())?;
        self.debugfs(&["-w", "-f", "commands", DISK], "write", path).map(drop)
    }

    /// Looks at inodes, none where there is nothing. Paths are of [`banger_gates::GuestPath`]'s form.
    pub(super) fn inodes(&self, paths: &[&str]) -> Result<Vec<Option<Inode>>> {
        let failed = |cause: String| HostError::of("look into", "the image")(cause);
        let commands: Vec<String> =
            paths.iter().map(|path| format!("inode_dump \"{path}\"")).collect();
        self.place("commands", (commands.join("\n") + "\n").as_bytes())?;
        let outcome = self.run(DEBUGFS, &["-f", "commands", DISK], DEBUGFS_LIMIT)?;
        let is_absence = |line: &str| {
            line.ends_with(": File not found by ext2_lookup")
                || line.ends_with(": Ext2 inode is not a directory")
        };
        let mut lines = outcome.error.lines().skip(1).map(str::trim_end);
        if let Some(line) = lines.find(|line| !line.is_empty() && !is_absence(line)) {
            return Err(failed(line.chars().take(LONGEST_TOLD).collect()));
        }
        // Each command is said before its answer, which is numbers and no text of the image's.
        let output = String::from_utf8_lossy(&outcome.output);
        let mut lines = output.lines().peekable();
        let mut found = Vec::new();
        for command in &commands {
            if lines.next().and_then(|line| line.strip_prefix("debugfs: ")) != Some(command) {
                return Err(failed("debugfs answers otherwise than expected".to_owned()));
            }
            let mut dump = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with("debugfs: ")) {
                dump.push(line);
            }
            found.push(inode(&dump));
        }
        Ok(found)
    }

    /// Reads a file whole, at most [`MOST`] bytes.
    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.debugfs(&["-R", &format!("cat \"{path}\""), DISK], "read", path)
    }

    /// Checks and repairs it.
    ///
    /// # Errors
    /// What e2fsck says, unless all is well (0) or was made well (1).
    pub(super) fn check(&self) -> Result<()> {
        let outcome = self.run(E2FSCK, &["-fy", DISK], E2FSCK_LIMIT)?;
        if matches!(outcome.status.code(), Some(0 | 1)) {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&outcome.output);
        let said = format!("{}: {}\n{}", outcome.status, outcome.error, said.trim());
        let end: Vec<char> = said.chars().rev().take(LONGEST_TOLD).collect();
        Err(HostError::of("check", "the file system")(end.iter().rev().collect::<String>()))
    }
}

/// Makes a file system in memory that is mounted nowhere.
fn folder() -> Result<OwnedFd, rustix::io::Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "mode", "0711")?;
    rustix::mount::fsconfig_set_string(&context, "size", "32m")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NOSUID;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Reads what `inode_dump` says: rows of an octal offset, 16 bytes as eight words of hexadecimal
/// digits, and text; `*` for rows that are like the one before.
fn inode(dump: &[&str]) -> Option<Inode> {
    let mut bytes = [0; INODE];
    let mut last = [0; 16];
    let mut at = 0;
    for line in dump {
        let words: Vec<&str> = line.split_ascii_whitespace().take(9).collect();
        let Some((offset, words)) = words.split_first() else { continue };
        if *offset == "*" {
            // Until a row says otherwise.
            for row in bytes[at..].chunks_exact_mut(16) {
                row.copy_from_slice(&last);
            }
            continue;
        }
        let digits: String = words.concat();
        for (index, byte) in last.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(index * 2..index * 2 + 2)?, 16).ok()?;
        }
        at = usize::from_str_radix(offset, 8).ok()?;
        let Some(row) = bytes.get_mut(at..at + 16) else { break };
        row.copy_from_slice(&last);
        at += 16;
    }
    let u16_at = |offset: usize| u16::from_le_bytes([bytes[offset], bytes[offset + 1]]);
    let u32_at = |offset| u32::from(u16_at(offset)) | u32::from(u16_at(offset + 2)) << 16;
    // Regular files alone use the upper half of the size.
    let size = u64::from(u32_at(4)) | u64::from(u32_at(108)) << 32;
    (at > 0).then(|| Inode {
        kind: FileType::from_raw_mode(u32::from(u16_at(0))),
        size,
        has_attribute_block: u32_at(104) != 0 || u16_at(118) != 0,
    })
}
