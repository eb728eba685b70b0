//! From the initrd to the image: mounts move, the root changes, and the image's init takes over.
//!
//! The root is mounted read-write (the host has checked it), because systemd then skips its own
//! check; the moved /dev, /proc, /sys and our /run, /dev/pts, /dev/shm and cgroup tree are kept by
//! systemd and needed by images that have no init.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use banger_agent_api::{BootConfig, InitChoice};
use rustix::mount::MountFlags;

use super::disks::Disks;
use super::{BootError, NO_PROGRAMS, files, grow, mount, system_error};
use crate::role::Role;
use crate::supervise::Duty;
use crate::{console, supervise};

const NEW_ROOT: &str = "/sysroot";
const ROOT_FLAGS: MountFlags = MountFlags::NOATIME;

/// Mounts the disks, changes the root, starts the supervisor and hands over.
pub(super) fn run(
    config: &BootConfig,
    disks: &Disks,
    network_state: OwnedFd,
) -> Result<Infallible, BootError> {
    mount_disk(&disks.root, NEW_ROOT, ROOT_FLAGS)?;
    grow::to_device(&disks.root, NEW_ROOT, ROOT_FLAGS);
    change_root()?;
    mount_inside(config, disks);
    files::write(Path::new("/"), config);
    let init = choose_init(&config.init)?;
    if let Some(init) = init {
        let mut supervisor = Role::Supervisor.command();
        supervisor.stdin(Stdio::from(network_state));
        supervisor.spawn().map_err(system_error("start", "the agent's supervisor"))?;
        drop(supervisor);
        return Err(exec(&init));
    }
    // The image has no init: this process reaps and powers off, and starts the server itself.
    rustix::stdio::dup2_stdin(&network_state)
        .map_err(system_error("pass on", "the network's state"))?;
    drop(network_state);
    supervise::run(Duty::Init);
    Err(BootError::NoInit("any more: PID 1's duty ended".to_owned()))
}

fn mount_disk(disk: &Path, target: &str, flags: MountFlags) -> Result<(), BootError> {
    mount(&disk.to_string_lossy(), target, "ext4", flags, "")
}

/// The switch_root dance: a root file system of type rootfs cannot be pivoted away from.
fn change_root() -> Result<(), BootError> {
    for name in ["dev", "proc", "sys"] {
        let (from, to) = (format!("/{name}"), format!("{NEW_ROOT}/{name}"));
        std::fs::create_dir_all(&to).map_err(system_error("make directory", &to))?;
        rustix::mount::mount_move(&from, &to).map_err(|source| BootError::Mount {
            what: from.clone(),
            target: to.clone(),
            source,
        })?;
    }
    rustix::process::chdir(NEW_ROOT).map_err(system_error("enter", NEW_ROOT))?;
    rustix::mount::mount_move(".", "/").map_err(|source| BootError::Mount {
        what: NEW_ROOT.to_owned(),
        target: "/".to_owned(),
        source,
    })?;
    rustix::process::chroot(".").map_err(system_error("change the root to", NEW_ROOT))?;
    rustix::process::chdir("/").map_err(system_error("enter", "/"))
}

/// Mounts the rest inside the image. None of it is worth a machine that does not start, and the
/// console says what is missing.
fn mount_inside(config: &BootConfig, disks: &Disks) {
    let attempt = |result: Result<(), BootError>| {
        if let Err(error) = result {
            console::error(&console::chain(&error));
        }
    };
    let volatile = MountFlags::NOSUID | MountFlags::NODEV;
    attempt(mount("tmpfs", "/run", "tmpfs", volatile, "mode=0755,size=20%"));
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    attempt(mount("devpts", "/dev/pts", "devpts", terminals, "mode=620,gid=5,ptmxmode=000"));
    attempt(mount("tmpfs", "/dev/shm", "tmpfs", volatile, "mode=1777"));
    let cgroup_options = "nsdelegate,memory_recursiveprot";
    attempt(mount("cgroup2", "/sys/fs/cgroup", "cgroup2", NO_PROGRAMS, cgroup_options));
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(target, link);
    }
    if let Some(work) = &disks.work {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        let mounted = mount_disk(work, "/root", flags);
        if mounted.is_ok() {
            grow::to_device(work, "/root", flags);
        }
        attempt(mounted);
    }
    if let Some(modules) = &disks.modules {
        attempt(mount_modules(modules));
    }
    if config.hostname.is_none() {
        console::info("no host name was given; the image's own is kept");
    }
}

/// Supplies modules for this kernel to an image that brings none, which is every image that was
/// not made for it.
fn mount_modules(disk: &Path) -> Result<(), BootError> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let directory = format!("/lib/modules/{release}");
    let has_own = Path::new(&directory).join("modules.dep").exists();
    if has_own {
        return Ok(());
    }
    mount_disk(disk, &directory, MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV)
}

/// Where images keep their init, in the order of the kernel's own search (init/main.c), systemd first.
const CANDIDATES: [&str; 4] =
    ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init"];

/// Decides who becomes PID 1; `None` is the agent.
fn choose_init(choice: &InitChoice) -> Result<Option<PathBuf>, BootError> {
    match choice {
        InitChoice::None => Ok(None),
        InitChoice::Auto => Ok(CANDIDATES
            .iter()
            .map(Path::new)
            .find(|path| executable(path) && !is_bare_busybox(path))
            .map(Path::to_path_buf)),
        InitChoice::Path(path) => {
            use std::os::unix::ffi::OsStrExt;
            let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
            if executable(path) {
                Ok(Some(path.to_path_buf()))
            } else {
                Err(BootError::NoInit(path.display().to_string()))
            }
        }
    }
}

fn executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Container images of busybox and Alpine carry busybox's init without anything for it to start;
/// it would respawn missing programs for ever. OpenRC, or an inittab that needs none, makes it an
/// init; Alpine's inittab is there in either case and names OpenRC.
fn is_bare_busybox(path: &Path) -> bool {
    let target = std::fs::canonicalize(path).unwrap_or_default();
    let busybox =
        target.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"busybox"));
    let inittab = std::fs::read_to_string("/etc/inittab").unwrap_or_default();
    let serves =
        !inittab.is_empty() && (!inittab.contains("openrc") || Path::new("/sbin/openrc").exists());
    busybox && !serves
}

/// Becomes the image's init, with the words that the kernel passed on; returns only a failure.
fn exec(init: &Path) -> BootError {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let source = Command::new(init)
        .args(arguments)
        .env_clear()
        .env("HOME", "/")
        .env("TERM", "linux")
        .current_dir("/")
        .exec();
    system_error("execute", init.display())(source)
}
