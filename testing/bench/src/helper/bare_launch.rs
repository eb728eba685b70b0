//! A jailed machine without the helper: what anyone must do who uses the jailer.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use banger_privileged_tests::vmm::PROGRAMS;
use banger_privileged_tests::{Directories, OWNER};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::json;

/// Between two looks for the API socket.
const STEP: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that is ended with this.
#[derive(Debug)]
pub(super) struct Held(OwnedFd);

impl Held {
    pub(super) fn of(pid: i32) -> Result<Self> {
        let pid = Pid::from_raw(pid).context("a pid")?;
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).map(Self).context("hold a process")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.0, Signal::KILL);
        let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit));
    }
}

/// A machine of the bare jailer's.
#[derive(Debug)]
pub(super) struct Bare {
    process: Held,
    jail: PathBuf,
}

/// Makes the jail with the kernel and the disk linked into it and the machine's file, runs the
/// jailer with the helper's words, and waits for the API's first byte. Where the host has cgroups,
/// the helper's machine gets one as well, which this leaves out.
pub(super) fn launch(directories: &Directories, id: &str) -> Result<Bare> {
    let base = directories.root().join("bare");
    let jail = base.join("firecracker").join(id);
    let root = jail.join("root");
    let make = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&root);
    make.context("make a jail")?;
    std::fs::hard_link(directories.state.join("kernel"), root.join("vmlinux"))
        .and_then(|()| std::fs::hard_link(directories.state.join("disk"), root.join("disk-data")))
        .context("link a file into the jail")?;
    let config = root.join("vm.json");
    std::fs::write(&config, machine())
        .and_then(|()| std::fs::set_permissions(&config, Permissions::from_mode(0o400)))
        .and_then(|()| chown(&config, Some(OWNER), Some(OWNER)))
        .context("write vm.json")?;
    let log = directories.state.join(format!("{id}.log"));
    let log = File::options().create(true).append(true).open(log).context("open a log")?;
    let mut command = Command::new(Path::new(PROGRAMS).join("jailer"));
    command
        .args(["--id", id, "--new-pid-ns", "--exec-file"])
        .arg(Path::new(PROGRAMS).join("firecracker"))
        .args(["--uid", &OWNER.to_string(), "--gid", &OWNER.to_string(), "--chroot-base-dir"])
        .arg(&base)
        .args(["--", "--api-sock", "/run/firecracker.socket", "--config-file", "/vm.json"])
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("open a log")?)
        .stderr(log);
    let status = command.status().context("run the jailer")?;
    ensure!(status.success(), "the jailer: {status}");
    let pid = std::fs::read_to_string(root.join("firecracker.pid")).context("read its pid")?;
    let process = Held::of(pid.trim().parse().context("a pid")?)?;
    let end = Instant::now() + PATIENCE;
    while !answers(&root.join("run/firecracker.socket")) {
        ensure!(Instant::now() < end, "the bare jailer's Firecracker does not answer");
        std::thread::sleep(STEP);
    }
    Ok(Bare { process, jail })
}

fn machine() -> Vec<u8> {
    let machine = json!({
        "boot-source": {"kernel_image_path": "/vmlinux", "boot_args": "console=ttyS0"},
        "drives": [{
            "drive_id": "data",
            "path_on_host": "/disk-data",
            "is_root_device": false,
            "is_read_only": false,
        }],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "network-interfaces": [],
    });
    machine.to_string().into_bytes()
}

fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    asked.is_ok() && stream.read(&mut [0]).is_ok_and(|read| read == 1)
}

impl Bare {
    /// Ends it and removes its jail.
    pub(super) fn end(self) -> Result<()> {
        drop(self.process);
        std::fs::remove_dir_all(&self.jail).context("remove a jail")
    }
}
