//! `banger system install`: copies the programs, writes units and directories, starts both services.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use nix::unistd::{Gid, Group, Uid, User};

use super::services::{self, NAMES, PROGRAMS, SYSCTL, TMPFILES, UDEV, systemctl, units};
use crate::daemon;
use crate::environment::{SYSTEM_RUNTIME, SYSTEM_STATE, Site};
use crate::error::CliError;
use crate::install::{self, Install};
use crate::ui::Ui;

/// How long the services may take until both answer.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// Groups through which a user may use the devices of virtual machines.
const GROUPS: [&str; 1] = ["kvm"];

/// Arguments of `banger system install`.
#[derive(Args, Debug)]
#[command(
    after_help = "The owner is the one user that may use this banger; the default is who ran \
    sudo.\nA second install brings programs and units up to date; machines keep running."
)]
pub struct InstallArgs {
    /// The user that banger is for
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
}

/// Installs.
pub async fn run(ui: &Ui, args: InstallArgs) -> Result<(), CliError> {
    if !services::has_systemd() {
        return Err(CliError::new("this machine was not booted by systemd")
            .hint("banger needs no installation: any command starts a bangerd of your own"));
    }
    let owner = owner(args.owner)?;
    let name = &owner.name;
    if let Some(before) = install::read()?
        && before.owner_uid != owner.uid.as_raw()
    {
        return Err(CliError::new(format!("banger is installed for {} here", before.owner))
            .hint("sudo banger system uninstall, then install for another user"));
    }
    let programs = programs()?;
    ui.status(format_args!("installing banger {} for {name}", env!("CARGO_PKG_VERSION")));
    for (from, to) in &programs {
        replace(to, 0o755, &mut fs::File::open(from).map_err(failed("read", from))?)?;
    }
    let record = Install {
        owner: name.clone(),
        owner_uid: owner.uid.as_raw(),
        owner_gid: owner.gid.as_raw(),
        home: owner.dir.clone(),
        installed_at: Timestamp::now().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    directory(Path::new(SYSTEM_STATE), 0o700, Some((owner.uid, owner.gid)))?;
    directory(Path::new(SYSTEM_RUNTIME), 0o700, Some((owner.uid, owner.gid)))?;
    let groups: Vec<String> = GROUPS
        .iter()
        .filter(|name| matches!(Group::from_name(name), Ok(Some(_))))
        .map(|name| (*name).to_owned())
        .collect();
    let (uid, gid) = (record.owner_uid, record.owner_gid);
    let mut files = vec![
        (PathBuf::from(install::PATH), record.to_toml()?),
        (PathBuf::from(SYSCTL.0), SYSCTL.1.to_owned()),
        (
            PathBuf::from(TMPFILES),
            format!("# Written by `banger system install`.\nd {SYSTEM_RUNTIME} 0700 {uid} {gid}\n"),
        ),
    ];
    files.extend(units(name, uid, gid, &groups));
    // A host without udev has nothing that looks into disks.
    let has_udev = Path::new("/etc/udev").is_dir();
    files.extend(has_udev.then(|| (PathBuf::from(UDEV.0), UDEV.1.to_owned())));
    for (path, text) in &files {
        replace(path, 0o644, &mut text.as_bytes())?;
    }
    let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
    fs::write(forward, "1\n").map_err(failed("write", forward))?;

    systemctl(&["daemon-reload"])?;
    systemctl(&[&["enable", "--quiet"][..], &NAMES].concat())?;
    // The machines' units are started and never restarted. The two others one after the other: the
    // daemon waits for the helper to be ready.
    let [machines, helper, daemon, shutdown] = NAMES;
    systemctl(&["start", machines])?;
    systemctl(&["restart", helper])?;
    systemctl(&["restart", daemon])?;
    systemctl(&["start", shutdown])?;
    wait(&owner).await?;
    ui.status(format_args!("bangerd and its root helper run; {name} can use banger now"));
    Ok(())
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CliError {
    let text = format!("cannot {what} {}", path.display());
    move |error| CliError::new(text).because(&error)
}

/// The user of `--owner`, else who ran sudo.
fn owner(given: Option<String>) -> Result<User, CliError> {
    let name = match given {
        Some(name) => name,
        None => std::env::var("SUDO_USER").map_err(|_| {
            CliError::usage("it is not said for whom banger is to be installed")
                .hint("banger system install --owner USER")
        })?,
    };
    let user = User::from_name(&name)
        .map_err(|error| CliError::new(format!("cannot look up the user {name}")).because(&error))?
        .ok_or_else(|| {
            CliError::new(format!("there is no user {name} on this host to install banger for"))
                .hint("banger system install --owner USER")
        })?;
    if user.uid.is_root() || user.gid.as_raw() == 0 {
        return Err(CliError::usage("the owner cannot be root: bangerd never runs as root")
            .hint("banger system install --owner USER"));
    }
    Ok(user)
}

/// The programs beside this one, and where they go.
fn programs() -> Result<Vec<(PathBuf, PathBuf)>, CliError> {
    let this = std::env::current_exe()
        .map_err(|error| CliError::new("cannot find this program's own file").because(&error))?;
    let beside = this.parent().unwrap_or(Path::new("/")).to_owned();
    let mut found = Vec::new();
    for (name, installed) in PROGRAMS {
        let installed = PathBuf::from(installed);
        let from = [beside.join(name), installed.clone()].into_iter().find(|path| path.is_file());
        let from = from.ok_or_else(|| {
            CliError::new(format!("there is no {name} beside {}", this.display()))
                .hint("build all of them: make build")
        })?;
        found.extend((from != installed).then_some((from, installed)));
    }
    Ok(found)
}

/// Writes a file of root's whole or not at all.
fn replace(path: &Path, mode: u32, content: &mut dyn io::Read) -> Result<(), CliError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        directory(parent, 0o755, None)?;
    }
    let mut write = || -> io::Result<()> {
        let mut staged = tempfile::NamedTempFile::new_in(parent)?;
        io::copy(content, &mut staged)?;
        staged.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        staged.flush()?;
        staged.as_file().sync_all()?;
        staged.persist(path)?;
        Ok(())
    };
    write().map_err(failed("write", path))
}

/// Makes a directory with its owner and mode; one that is there must be a real one.
fn directory(path: &Path, mode: u32, owner: Option<(Uid, Gid)>) -> Result<(), CliError> {
    let make = || -> io::Result<()> {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if !fs::symlink_metadata(path)?.is_dir() {
            return Err(io::Error::other("it is there and no directory"));
        }
        let (uid, gid) = owner.map_or((0, 0), |(uid, gid)| (uid.as_raw(), gid.as_raw()));
        chown(path, Some(uid), Some(gid))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    make().map_err(failed("make", path))
}

/// Waits until the daemon answers, and says that the helper does.
async fn wait(owner: &User) -> Result<(), CliError> {
    let client = daemon::client(&Site::System { owner: owner.uid.as_raw() });
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        let error = match helper_answers(&client).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if Instant::now() > deadline {
            return Err(error
                .context("the services are installed and do not answer")
                .hint("systemctl status bangerd bangerd-root, then: sudo banger system install"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Asks the daemon for its checks, of which one is its helper.
async fn helper_answers(client: &crate::client::Client) -> Result<(), CliError> {
    use banger_daemon_api::daemon::{CheckStatus, DoctorReport};
    let report: DoctorReport = client
        .get(banger_daemon_api::routes::DOCTOR)
        .await
        .map_err(|error| client.explain(error))?;
    let helper = report.checks.into_iter().find(|check| check.name == "root helper");
    match helper {
        Some(check) if check.status == CheckStatus::Pass => Ok(()),
        Some(check) => Err(CliError::new(format!("root helper: {}", check.detail))
            .hint("journalctl -u bangerd-root; banger doctor")),
        None => Err(CliError::new("bangerd says nothing about its root helper")
            .hint("journalctl -u bangerd -u bangerd-root; banger doctor")),
    }
}
