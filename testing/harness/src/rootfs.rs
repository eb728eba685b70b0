//! Small root file systems, made in memory.

use std::io::Write;

/// Builds a tar archive entry by entry.
pub struct RootfsTar {
    builder: tar::Builder<Vec<u8>>,
}

impl std::fmt::Debug for RootfsTar {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("RootfsTar").field("bytes", &self.builder.get_ref().len()).finish()
    }
}

impl Default for RootfsTar {
    fn default() -> Self {
        Self { builder: tar::Builder::new(Vec::new()) }
    }
}

impl RootfsTar {
    fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(size);
        header
    }

    /// Adds a directory.
    #[must_use]
    pub fn folder(mut self, path: &str, mode: u32) -> Self {
        let mut header = Self::header(tar::EntryType::Directory, mode, 0);
        self.builder.append_data(&mut header, path, std::io::empty()).expect("memory has room");
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = Self::header(tar::EntryType::Regular, mode, content.len() as u64);
        self.builder.append_data(&mut header, path, content).expect("memory has room");
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        self.builder.append_link(&mut header, path, target).expect("memory has room");
        self
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hard_link(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Link, 0o644, 0);
        self.builder.append_link(&mut header, path, target).expect("memory has room");
        self
    }

    /// Adds a device node or a fifo.
    #[must_use]
    pub fn node(mut self, path: &str, kind: tar::EntryType, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind, 0o600, 0);
        header.set_device_major(major).expect("a GNU header has device numbers");
        header.set_device_minor(minor).expect("a GNU header has device numbers");
        self.builder.append_data(&mut header, path, std::io::empty()).expect("memory has room");
        self
    }

    /// Adds a file under a name that `tar` itself would refuse to write.
    #[must_use]
    pub fn raw_name(mut self, name: &[u8], content: &[u8]) -> Self {
        let mut header = Self::header(tar::EntryType::Regular, 0o644, content.len() as u64);
        let field = &mut header.as_old_mut().name;
        field.fill(0);
        field[..name.len()].copy_from_slice(name);
        header.set_cksum();
        self.builder.append(&header, content).expect("memory has room");
        self
    }

    /// The archive.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.builder.into_inner().expect("memory has room")
    }
}

/// The commands that the tests use in the busybox image.
const APPLETS: &str = "sh cat echo ls id true false head tail wc dd tee test sleep ps kill stty tty hostname \
    uname env pwd mkdir rm cp mv chmod grep sed awk sync mount df free ip ping md5sum sha256sum seq yes \
    find stat touch ln tr fold printf readlink od mknod";

/// A root file system of nothing but a static busybox: no init, no libraries.
///
/// `None` where this machine has no static busybox.
#[must_use]
pub fn busybox_rootfs() -> Option<Vec<u8>> {
    let busybox = std::fs::read(crate::find_program("busybox")?).ok()?;
    // An interpreter segment (PT_INTERP) names a loader that the image lacks.
    let has_loader = busybox
        .windows(9)
        .take(4096)
        .any(|window| window == b"/lib64/ld" || window == b"/lib/ld-l");
    if has_loader {
        return None;
    }
    let mut tar = RootfsTar::default();
    for (path, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
        ("var", 0o755),
        ("usr", 0o755),
    ] {
        tar = tar.folder(path, mode);
    }
    tar = tar
        .file("bin/busybox", 0o755, &busybox)
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:Alice:/tmp:/bin/sh\n",
        )
        .file("etc/group", 0o644, b"root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n")
        .file("etc/os-release", 0o644, b"ID=busybox\nVERSION_ID=1\nNAME=Busybox\n");
    for applet in APPLETS.split_whitespace() {
        tar = tar.symlink(&format!("bin/{applet}"), "busybox");
    }
    Some(tar.finish())
}

/// Compresses with a program of this machine (`gzip`, `zstd`).
#[must_use]
pub fn compressed(program: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    use std::process::{Command, Stdio};
    let mut child = Command::new(crate::find_program(program)?)
        .args(["-q", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take()?;
    let bytes = bytes.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().ok()?;
    feeder.join().ok()?.ok()?;
    output.status.success().then_some(output.stdout)
}
