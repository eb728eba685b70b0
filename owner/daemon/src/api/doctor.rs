//! `GET /v1/doctor`: what only the daemon can check.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use banger_daemon_api::daemon::{Check, CheckStatus, DoctorReport};
use banger_daemon_api::orphan::{Orphan, OrphanKind};
use banger_daemon_api::vm::{LEFTOVERS_NOTE, VmState};
use banger_engine::seams::{Acceleration, Vmm, VmmError};
use banger_engine::{DamagedVm, Engine};
use banger_helper_api::{DNS_PORTS, Method, ProcessRunningParams, ProcessRunningResult};
use banger_network::Status;
use banger_vmm::firecracker::Exposure;
use banger_vmm::{probe, qemu};
use rustix::process::Resource;
use tokio::io::AsyncReadExt;

use super::{Api, Shared};
use crate::agent_binary::AGENT;

/// Where the system's programs are; `$PATH` is the user's word and not the host's.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Programs that the daemon runs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 2] = [("e2fsck", "e2fsprogs"), ("depmod", "kmod")];

/// Free space below which an image may not fit any more, and below which nothing does.
const LITTLE_SPACE: u64 = 5 << 30;
const NO_SPACE: u64 = 512 << 20;

/// Descriptors that some dozens of VMs and clients take.
const ENOUGH_FILES: u64 = 1024;

/// How long QEMU may take to say its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// Checks the daemon and its host.
#[utoipa::path(get, path = "/v1/doctor", responses((status = 200, body = DoctorReport)))]
pub async fn get(State(api): Shared) -> Json<DoctorReport> {
    let mut checks = vec![mode(&api), helper(&api).await];
    checks.extend(directories(&api));
    checks.extend(store(&api));
    checks.push(vmm(&api).await);
    checks.extend(firecracker(&api).await);
    checks.extend(network(&api).await);
    checks.extend(collision(&api).await);
    checks.extend(PROGRAMS.map(|(program, package)| installed(program, package)));
    checks.push(agent());
    checks.extend(leftovers(&api).await);
    checks.push(open_files());
    Json(DoctorReport { checks })
}

fn check(name: &str, status: CheckStatus, detail: impl Into<String>) -> Check {
    Check { name: name.to_owned(), status, detail: detail.into(), hint: None }
}

fn hinted(mut check: Check, hint: impl Into<String>) -> Check {
    check.hint = Some(hint.into());
    check
}

fn mode(api: &Api) -> Check {
    let (uid, pid) = (api.identity.uid, api.identity.pid);
    let detail = if api.is_service {
        format!("installed service, uid {uid}, pid {pid}")
    } else {
        format!(
            "direct mode, uid {uid}, pid {pid}: no root anywhere but in the helper, and looser than \
             an installed system: VMs of one user share one uid, without a jail each"
        )
    };
    check("daemon", CheckStatus::Pass, detail)
}

/// Asks the root helper something that changes nothing.
async fn helper(api: &Api) -> Check {
    let Some(helper) = &api.helper else {
        let detail = "none: VMs run rootless, with a user-mode network and copied disks";
        return check("root helper", CheckStatus::Pass, detail);
    };
    let socket = api.directories.runtime.join("doctor");
    let question = ProcessRunningParams { pid: 2, api_sock: socket.display().to_string() };
    let asked = Method::ProcessRunning;
    match helper.call::<_, ProcessRunningResult>(asked, &question, "").await {
        Ok(_) => check("root helper", CheckStatus::Pass, "answers"),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            let detail = format!("{error}{}", cause.unwrap_or_default());
            let hint = if api.is_service {
                "systemctl status bangerd-root, journalctl -u bangerd-root"
            } else {
                "the next command that finds nothing under way starts it again, or: banger daemon stop"
            };
            hinted(check("root helper", CheckStatus::Fail, detail), hint)
        }
    }
}

fn directories(api: &Api) -> Vec<Check> {
    let directories = &api.directories;
    [
        ("state directory", &directories.state),
        ("cache directory", &directories.cache),
        ("runtime directory", &directories.runtime),
    ]
    .into_iter()
    .map(|(name, path)| free_space(name, path))
    .collect()
}

fn free_space(name: &str, path: &Path) -> Check {
    let free = match rustix::fs::statvfs(path) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(errno) => {
            let detail = format!("{}: {}", path.display(), std::io::Error::from(errno));
            return hinted(
                check(name, CheckStatus::Fail, detail),
                "stop the daemon (`banger daemon stop`) and start again",
            );
        }
    };
    let detail = format!("{}, {} MiB free", path.display(), free >> 20);
    // A runtime directory holds sockets only.
    let (status, shortage) = match free {
        _ if name.starts_with("runtime") => (CheckStatus::Pass, ""),
        0..NO_SPACE => (CheckStatus::Fail, ", too little for what VMs write"),
        NO_SPACE..LITTLE_SPACE => (CheckStatus::Warn, ", too little to build another image"),
        _ => (CheckStatus::Pass, ""),
    };
    let check = check(name, status, detail + shortage);
    match status {
        CheckStatus::Pass => check,
        _ => hinted(check, "free some space: `banger vm delete`, `banger image delete`"),
    }
}

fn store(api: &Api) -> Vec<Check> {
    let notices = &api.services.notices().store;
    let mut checks: Vec<Check> =
        notices.iter().map(|notice| check("store", CheckStatus::Warn, notice)).collect();
    for path in api.services.engine().stores_set_aside() {
        let found = check(
            "store",
            CheckStatus::Warn,
            format!("a damaged database is kept at {}", path.display()),
        );
        checks.push(hinted(
            found,
            "once `banger vm list` shows all your VMs, remove the file; if not, please report it",
        ));
    }
    if checks.is_empty() {
        let file = api.directories.state.join(banger_store::DATABASE_NAME);
        checks.push(check("store", CheckStatus::Pass, file.display().to_string()));
    }
    checks
}

async fn vmm(api: &Api) -> Check {
    let program = match qemu::find_program() {
        Ok(program) => program,
        Err(error) => {
            return hinted(
                check("VMM", CheckStatus::Fail, error.to_string()),
                "apt-get install qemu-system-x86",
            );
        }
    };
    let version = match version(&program).await {
        Ok(version) => version,
        Err(problem) => {
            let detail = format!("{} does not run: {problem}", program.display());
            return hinted(
                check("VMM", CheckStatus::Fail, detail),
                "apt-get install --reinstall qemu-system-x86",
            );
        }
    };
    let report = probe::host_report(api.services.acceleration());
    let detail = format!(
        "QEMU {version} ({}), {}; the guest's agent is reached through a virtio-serial port",
        program.display(),
        report.reason
    );
    match report.chosen {
        Acceleration::Kvm => check("VMM", CheckStatus::Pass, detail),
        Acceleration::Tcg => {
            let mut check = check("VMM", CheckStatus::Warn, detail);
            check.hint = report.kvm.hint().map(str::to_owned);
            check
        }
    }
}

/// Says whether Firecracker can be used, and what is known against it. Where it is missing, QEMU
/// does.
async fn firecracker(api: &Api) -> Vec<Check> {
    const NAME: &str = "Firecracker";
    let Some(driver) = api.services.firecracker() else { return Vec::new() };
    let program = match driver.program().await {
        Ok(program) => program,
        Err(VmmError::Unavailable { why, hint, .. }) => {
            return vec![hinted(check(NAME, CheckStatus::Warn, why), hint)];
        }
        Err(error) => return vec![check(NAME, CheckStatus::Fail, error.to_string())],
    };
    let about = format!("{} ({})", program.version, program.path.display());
    let usable = match driver.probe().await {
        Ok(_) => check(
            NAME,
            CheckStatus::Pass,
            format!("{about}; machines run with it unless --vmm says otherwise"),
        ),
        Err(error) => check(NAME, CheckStatus::Pass, format!("{about}; not used here: {error}")),
    };
    let flaws = program.version.flaws().map(|flaw| {
        let detail = match flaw.exposure {
            Exposure::NotReached(why) => {
                format!("{}: {}; not reached: {why}", flaw.name, flaw.what)
            }
            Exposure::Reached => format!("{}: {}", flaw.name, flaw.what),
        };
        check(NAME, CheckStatus::Warn, detail)
    });
    std::iter::once(usable).chain(flaws).collect()
}

/// Says which network VMs get. None of it is set up to find out.
async fn network(api: &Api) -> Option<Check> {
    const NAME: &str = "network";
    let network = api.services.network()?;
    let bridge = network.bridge();
    Some(match network.status().await {
        Status::Off => {
            check(NAME, CheckStatus::Pass, "network.mode is user: VMs have QEMU's own network")
        }
        Status::Idle => {
            check(NAME, CheckStatus::Pass, format!("{bridge} is set up when a VM starts"))
        }
        Status::Up { subnet, names: Some(names), waiting } => {
            let mut detail = format!("{bridge}, {subnet}; names of VMs are answered at {names}");
            if waiting > 0 {
                detail += &format!("; {waiting} taps wait for VMs");
            }
            let first = *DNS_PORTS.start();
            if names.port() == first {
                return Some(check(NAME, CheckStatus::Pass, detail));
            }
            detail += &format!(": another process had port {first} when the bridge was set up");
            let hint = format!(
                "`ss -lnp 'sport = :{first}'` shows whose it is; machines and systemd-resolved know the \
                 other port, who asks by hand has to name it"
            );
            hinted(check(NAME, CheckStatus::Warn, detail), hint)
        }
        Status::Up { subnet, names: None, .. } => hinted(
            check(NAME, CheckStatus::Warn, format!("{bridge}, {subnet}; no name server")),
            "its log says why: bangerd.log in the state directory",
        ),
    })
}

/// Says whether another network has come into the bridge's subnet.
async fn collision(api: &Api) -> Option<Check> {
    let network = api.services.network()?;
    let Status::Up { .. } = network.status().await else { return None };
    let collision = network.collided()?;
    let check = check("network", CheckStatus::Warn, collision.to_string());
    Some(hinted(check, collision.hint()))
}

/// Returns what stands behind `version` in the first line of `--version`.
async fn version(program: &Path) -> Result<String, String> {
    let mut child = tokio::process::Command::new(program)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let Some(stdout) = child.stdout.take() else { return Err("no output".to_owned()) };
    let talk = async {
        let mut text = String::new();
        stdout.take(4096).read_to_string(&mut text).await.map_err(|error| error.to_string())?;
        let status = child.wait().await.map_err(|error| error.to_string())?;
        if !status.success() {
            return Err(status.to_string());
        }
        let mut words = text.lines().next().unwrap_or_default().split_whitespace();
        words.find(|word| *word == "version");
        words.next().map(str::to_owned).ok_or_else(|| "it does not say its version".to_owned())
    };
    tokio::time::timeout(VERSION_DEADLINE, talk)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", VERSION_DEADLINE.as_secs())))
}

fn installed(program: &str, package: &str) -> Check {
    let found = DIRECTORIES
        .iter()
        .map(|directory| PathBuf::from(directory).join(program))
        .find(|path| path.is_file());
    match found {
        Some(path) => check(program, CheckStatus::Pass, path.display().to_string()),
        None => hinted(
            check(program, CheckStatus::Fail, format!("in none of {}", DIRECTORIES.join(", "))),
            format!("apt-get install {package}"),
        ),
    }
}

fn agent() -> Check {
    let size = format!("{} KiB", AGENT.len() >> 10);
    if AGENT.starts_with(b"\x7fELF") {
        let detail = format!(
            "version {}, protocol {}, {size}, carried in bangerd",
            env!("CARGO_PKG_VERSION"),
            banger_agent_api::PROTOCOL_VERSION
        );
        check("guest agent", CheckStatus::Pass, detail)
    } else {
        check("guest agent", CheckStatus::Fail, format!("{size} that are no executable"))
    }
}

/// Says what belongs to no VM, a line for each thing.
async fn leftovers(api: &Api) -> Vec<Check> {
    let engine = api.services.engine();
    let mut checks: Vec<Check> = match engine.orphans(&[]).await {
        Ok(orphans) => orphans.iter().map(orphan).collect(),
        Err(error) => vec![check("leftovers", CheckStatus::Warn, error.to_api().message)],
    };
    checks.extend(of_resting(engine).await);
    checks.extend(engine.unlisted().await.iter().map(|directory| {
        let detail = format!("{directory} has a whole VM that the database does not have");
        let hint = format!(
            "to have it again: `banger daemon stop`, move {} away, and start again; it is made \
             anew of what is in the VMs' directories",
            api.directories.state.join(banger_store::DATABASE_NAME).display()
        );
        hinted(check("VMs", CheckStatus::Warn, detail), hint)
    }));
    checks.extend(engine.damaged().iter().map(damaged));
    let warnings = api.services.notices().reconciled.warnings.iter();
    checks.extend(warnings.map(|warning| check("VMs", CheckStatus::Warn, warning)));
    if checks.is_empty() {
        let detail = "nothing on the host belongs to no VM, or to one that does not run";
        checks.push(check("leftovers", CheckStatus::Pass, detail));
    }
    checks
}

/// Says what is left of VMs that do not run, and of half deleted ones: a line for each thing, or what
/// failed where nothing is seen.
async fn of_resting(engine: &Engine) -> Vec<Check> {
    const NAME: &str = "leftovers";
    let seen = match engine.left_by_resting().await {
        Ok(seen) => seen,
        Err(error) => return vec![check(NAME, CheckStatus::Warn, error.to_api().message)],
    };
    let mut checks: Vec<Check> = seen
        .iter()
        .map(|(vm, orphan)| {
            let detail = format!("{orphan} is left of VM {vm}, which does not run");
            let hint = format!("`banger vm stop {vm}` or `banger doctor --fix` removes it");
            hinted(check(NAME, CheckStatus::Warn, detail), hint)
        })
        .collect();
    for vm in engine.list().await {
        let is_seen = seen.iter().any(|(name, _)| *name == vm.name);
        if let Some(why) = vm.notes.get(LEFTOVERS_NOTE).filter(|_| !is_seen) {
            let detail = format!("something is left of VM {}, which does not run: {why}", vm.name);
            let hint = format!("`banger vm stop {}` or `banger doctor --fix` tries again", vm.name);
            checks.push(hinted(check(NAME, CheckStatus::Warn, detail), hint));
        } else if let (VmState::Deleting, Some(why)) = (vm.state, &vm.last_error) {
            let detail = format!("VM {} is half deleted: {}", vm.name, why.message);
            let hint =
                format!("`banger vm delete {}` or `banger doctor --fix` tries again", vm.name);
            checks.push(hinted(check(NAME, CheckStatus::Warn, detail), hint));
        }
    }
    checks
}

fn damaged(vm: &DamagedVm) -> Check {
    let paths = |paths: &[PathBuf]| {
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    };
    let (name, gone, left) = (&vm.name, paths(&vm.gone), paths(&vm.left));
    let detail = format!("VM {name} cannot start: {gone} is gone; {left} is there");
    let hint = format!(
        "put {gone} back, or copy what you need of {left} and then `banger vm delete {name}`; \
         `banger doctor --fix` leaves it"
    );
    hinted(check("VMs", CheckStatus::Warn, detail), hint)
}

fn orphan(orphan: &Orphan) -> Check {
    let hint = match orphan.kind {
        OrphanKind::Folder => {
            "`banger doctor --fix` removes it with its disks: copy first what you need of them"
        }
        _ => "`banger doctor --fix` removes it",
    };
    let vm = &orphan.vm;
    let detail = match orphan.kind {
        OrphanKind::Row => orphan.to_string(),
        _ => format!("{orphan} belongs to no VM (it was made for {vm})"),
    };
    hinted(check("leftovers", CheckStatus::Warn, detail), hint)
}

fn open_files() -> Check {
    let most = rustix::process::getrlimit(Resource::Nofile).current;
    match most {
        Some(most) if most < ENOUGH_FILES => hinted(
            check("open files", CheckStatus::Warn, format!("at most {most}")),
            "raise the hard limit (`ulimit -Hn`) for many VMs at a time",
        ),
        Some(most) => check("open files", CheckStatus::Pass, format!("at most {most}")),
        None => check("open files", CheckStatus::Pass, "no limit"),
    }
}
