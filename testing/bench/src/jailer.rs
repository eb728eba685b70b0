//! A jailed machine without banger: what anyone must do who uses the jailer.

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
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

/// Between two looks for the API socket.
const STEP: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that is ended with this.
#[derive(Debug)]
pub(crate) struct Held(OwnedFd);

impl Held {
    pub(crate) fn of(pid: i32) -> Result<Self> {
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

/// What a machine is made of.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// Where jails are made.
    pub(crate) base: PathBuf,
    /// Firecracker's uid and gid.
    pub(crate) owner: u32,
    /// Files of one file system with `base`, and their names in the jail.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// What `vm.json` holds.
    pub(crate) machine: Vec<u8>,
    /// Where its console goes.
    pub(crate) log: PathBuf,
}

/// A machine of the bare jailer's.
#[derive(Debug)]
pub(crate) struct Bare {
    process: Held,
    jail: PathBuf,
}

/// Makes the jail with the files linked into it and the machine's file, and runs the jailer with the
/// helper's words. Where the host has cgroups, the helper's machine gets one as well, which this
/// leaves out.
pub(crate) fn launch(parts: &Parts, id: &str) -> Result<Bare> {
    let jail = parts.base.join("firecracker").join(id);
    let root = jail.join("root");
    let make = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&root);
    make.context("make a jail")?;
    for (file, name) in &parts.files {
        std::fs::hard_link(file, root.join(name)).context("link a file into the jail")?;
    }
    let config = root.join("vm.json");
    std::fs::write(&config, &parts.machine)
        .and_then(|()| std::fs::set_permissions(&config, Permissions::from_mode(0o400)))
        .and_then(|()| chown(&config, Some(parts.owner), Some(parts.owner)))
        .context("write vm.json")?;
    let log = File::options().create(true).append(true).open(&parts.log).context("open a log")?;
    let owner = parts.owner.to_string();
    let mut command = Command::new(Path::new(PROGRAMS).join("jailer"));
    command
        .args(["--id", id, "--new-pid-ns", "--exec-file"])
        .arg(Path::new(PROGRAMS).join("firecracker"))
        .args(["--uid", &owner, "--gid", &owner, "--chroot-base-dir"])
        .arg(&parts.base)
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
    Ok(Bare { process, jail })
}

fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    asked.is_ok() && stream.read(&mut [0]).is_ok_and(|read| read == 1)
}

impl Bare {
    /// Waits for the API's first byte.
    pub(crate) fn wait_for_api(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !answers(&self.jail.join("root/run/firecracker.socket")) {
            ensure!(Instant::now() < end, "the bare jailer's Firecracker does not answer");
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    /// Ends it and removes its jail.
    pub(crate) fn end(self) -> Result<()> {
        drop(self.process);
        std::fs::remove_dir_all(&self.jail).context("remove a jail")
    }
}
