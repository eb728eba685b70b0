//! The contract of `Vmm` and `VmmProcess`, with guests a few instructions long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use crate::seams::{LaunchPlan, Vmm, VmmIdentity, VmmKind, VmmState};

/// How long anything here may take before the suite gives up on it. Generous: a loaded machine with
/// emulated guests is no failure.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a tiny guest does when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TinyGuest {
    /// Writes `hello from the guest` to its console, then waits for ever.
    Hello,
    /// Writes to its console without end.
    Flood,
    /// Restarts at once.
    Restart,
    /// Its kernel file does not exist.
    Missing,
}

/// Makes launch plans for tiny guests.
pub trait TinyGuests {
    /// Returns a plan with the given runtime directory (0700, empty) and console log.
    fn plan(&self, guest: TinyGuest, runtime_dir: &Path, console_log: &Path) -> LaunchPlan;
}

/// Where VMs' directories are made; both are empty.
#[derive(Clone, Copy, Debug)]
pub struct Directories<'a> {
    /// For sockets; its path is short.
    pub runtime: &'a Path,
    /// For logs.
    pub state: &'a Path,
}

/// Runs the contract.
pub async fn vmm(vmm: &dyn Vmm, guests: &dyn TinyGuests, directory: Directories<'_>) {
    vmm.probe().await.unwrap();
    assert!(!vmm.root_disks().is_empty());
    lives_held_adopted_and_dies(vmm, guests, directory).await;
    identities_that_fit_nothing_find_nothing(vmm, guests, directory).await;
    a_failed_launch_leaves_nothing(vmm, guests, directory).await;
    a_cancelled_launch_leaves_nothing(vmm, guests, directory).await;
    ends_are_told_apart(vmm, guests, directory).await;
    a_flood_is_bounded(vmm, guests, directory).await;
}

/// A VM's directory, made fresh.
struct Place {
    root: PathBuf,
    runtime: PathBuf,
    state: PathBuf,
    log: PathBuf,
}

impl Place {
    fn new(directory: Directories<'_>, name: &str) -> Self {
        use std::os::unix::fs::DirBuilderExt;
        let (root, state) = (directory.runtime.join(name), directory.state.join(name));
        let runtime = root.join("r");
        for path in [&runtime, &state] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).unwrap();
        }
        Self { log: state.join("console.log"), root, runtime, state }
    }

    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.runtime).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    async fn wait_for_console(&self, wanted: &str) {
        let read = async {
            loop {
                let log = std::fs::read(&self.log).unwrap_or_default();
                if String::from_utf8_lossy(&log).contains(wanted) {
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(PATIENCE, read).await.is_ok(), "{wanted:?} never came on the console");
    }

    /// Waits until no process of ours mentions this VM's directory in its command line.
    async fn wait_until_nobody_is_left(&self, vmm: &dyn Vmm) {
        let gone = async {
            while !processes_naming(&self.runtime).is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(PATIENCE, gone).await.is_ok(), "a VMM was left behind");
        let gone = async {
            while !vmm.find(&self.root).await.unwrap().is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(PATIENCE, gone).await.is_ok(), "a VMM is still found");
    }

    /// Waits until a launch that was given up is undone: its files go last.
    async fn wait_until_empty(&self) {
        let empty = async {
            while !self.files().is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(PATIENCE, empty).await.is_ok(), "left: {:?}", self.files());
    }
}

/// Returns the living processes whose command line names `directory`; a zombie has none.
fn processes_naming(directory: &Path) -> Vec<u32> {
    let needle = directory.to_str().unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&cmdline);
            text.starts_with('/') && text.contains(needle)
        })
        .collect()
}

async fn patient<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took longer than {PATIENCE:?}"),
    }
}

async fn lives_held_adopted_and_dies(
    vmm: &dyn Vmm,
    guests: &dyn TinyGuests,
    directory: Directories<'_>,
) {
    let place = Place::new(directory, "life");
    let plan = || guests.plan(TinyGuest::Hello, &place.runtime, &place.log);
    let process = patient("launch", vmm.launch(plan())).await.unwrap();
    let identity = process.identity().clone();
    assert_eq!(identity.kind, vmm.kind());
    assert_eq!(process.state(), VmmState::Alive);
    if vmm.holds() {
        assert_eq!(processes_naming(&place.runtime), [identity.pid]);
    }
    let found = vmm.find(&place.root).await.unwrap();
    assert_eq!(found, [(place.runtime.clone(), identity.clone())]);

    // A second one in the same place is refused and does the first no harm.
    assert!(patient("launch", vmm.launch(plan())).await.is_err());
    assert_eq!(process.state(), VmmState::Alive);

    // Held: it has not run an instruction. A daemon that goes away leaves it held.
    if vmm.holds() {
        sleep(Duration::from_millis(300)).await;
        assert!(std::fs::read(&place.log).unwrap_or_default().is_empty(), "it ran before resume");
    }
    drop(process);
    sleep(Duration::from_millis(50)).await;
    let process = adopt(vmm, &identity, &place).await.expect("it still runs");
    assert_eq!(process.identity(), &identity);

    process.resume().await.unwrap();
    place.wait_for_console("hello from the guest").await;
    process.resume().await.unwrap();

    // Adopted while it runs, twice over: the earlier holder is gone, as after a crash.
    drop(process);
    let process = adopt(vmm, &identity, &place).await.expect("it still runs");
    assert_eq!(process.state(), VmmState::Alive);
    assert!(process.signal(Signal::CONT).unwrap());

    patient("kill", process.kill()).await.unwrap();
    let told_to_end = VmmState::Dead { reason: None };
    assert_eq!(process.state(), told_to_end);
    assert_eq!(patient("wait", process.wait()).await, told_to_end);
    patient("second kill", process.kill()).await.unwrap();
    assert!(!process.signal(Signal::KILL).unwrap());
    assert!(process.resume().await.is_err());
    patient("closed", process.channel().closed()).await;
    assert!(adopt(vmm, &identity, &place).await.is_none());
    assert!(!vmm.end(&identity).await.unwrap());
    place.wait_until_nobody_is_left(vmm).await;

    assert!(vmm.clean(&place.runtime).await.unwrap());
    assert!(!vmm.clean(&place.runtime).await.unwrap());
    assert!(place.files().is_empty(), "left: {:?}", place.files());

    // The same directories serve again, and the log goes on.
    let process = patient("launch", vmm.launch(plan())).await.unwrap();
    process.resume().await.unwrap();
    assert!(vmm.end(process.identity()).await.unwrap());
    assert!(matches!(patient("wait", process.wait()).await, VmmState::Dead { .. }));
    vmm.clean(&place.runtime).await.unwrap();
    let log = std::fs::read_to_string(&place.log).unwrap();
    assert!(log.contains("hello from the guest"));
}

async fn adopt(
    vmm: &dyn Vmm,
    identity: &VmmIdentity,
    place: &Place,
) -> Option<std::sync::Arc<dyn crate::seams::VmmProcess>> {
    patient("adopt", vmm.adopt(identity, &place.runtime, &place.log)).await.unwrap()
}

async fn identities_that_fit_nothing_find_nothing(
    vmm: &dyn Vmm,
    guests: &dyn TinyGuests,
    directory: Directories<'_>,
) {
    let place = Place::new(directory, "identity");
    let plan = guests.plan(TinyGuest::Hello, &place.runtime, &place.log);
    let process = patient("launch", vmm.launch(plan)).await.unwrap();
    let right = process.identity().clone();
    let wrong = [
        VmmIdentity { start_time: right.start_time + 1, ..right.clone() },
        VmmIdentity { pid: std::process::id(), ..right.clone() },
        VmmIdentity { pid: 0, ..right.clone() },
        VmmIdentity { pid: u32::MAX, ..right.clone() },
        VmmIdentity { host_boot_id: "another boot".to_owned(), ..right.clone() },
    ];
    for identity in &wrong {
        assert!(adopt(vmm, identity, &place).await.is_none(), "{identity:?}");
        assert!(!vmm.end(identity).await.unwrap(), "{identity:?}");
    }
    assert_eq!(process.state(), VmmState::Alive);
    assert!(vmm.end(&right).await.unwrap());
    assert!(matches!(process.wait().await, VmmState::Dead { .. }));
    vmm.clean(&place.runtime).await.unwrap();
}

async fn a_failed_launch_leaves_nothing(
    vmm: &dyn Vmm,
    guests: &dyn TinyGuests,
    directory: Directories<'_>,
) {
    let place = Place::new(directory, "failed");
    let plan = guests.plan(TinyGuest::Missing, &place.runtime, &place.log);
    let Err(error) = patient("launch", vmm.launch(plan)).await else {
        panic!("a kernel that is not there was started");
    };
    assert!(!error.to_string().is_empty());
    place.wait_until_nobody_is_left(vmm).await;
    assert!(place.files().is_empty(), "left: {:?}", place.files());

    let plan = guests.plan(TinyGuest::Hello, &place.root.join("missing"), &place.log);
    assert!(patient("launch", vmm.launch(plan)).await.is_err());
}

async fn a_cancelled_launch_leaves_nothing(
    vmm: &dyn Vmm,
    guests: &dyn TinyGuests,
    directory: Directories<'_>,
) {
    let place = Place::new(directory, "cancelled");
    for milliseconds in [0, 1, 2, 5, 10, 20, 40, 80, 160] {
        let plan = guests.plan(TinyGuest::Hello, &place.runtime, &place.log);
        let launch = vmm.launch(plan);
        match timeout(Duration::from_millis(milliseconds), launch).await {
            Ok(launched) => {
                let process = launched.unwrap();
                process.kill().await.unwrap();
                vmm.clean(&place.runtime).await.unwrap();
            }
            Err(_) => {
                place.wait_until_empty().await;
                place.wait_until_nobody_is_left(vmm).await;
            }
        }
    }
}

async fn ends_are_told_apart(vmm: &dyn Vmm, guests: &dyn TinyGuests, directory: Directories<'_>) {
    let place = Place::new(directory, "ends");
    let plan = |guest| guests.plan(guest, &place.runtime, &place.log);

    let process = patient("launch", vmm.launch(plan(TinyGuest::Restart))).await.unwrap();
    process.resume().await.unwrap();
    match patient("wait", process.wait()).await {
        VmmState::Dead { reason: Some(reason) } => assert!(reason.contains("restart"), "{reason}"),
        // Firecracker's guests have no way to switch off but a restart, so that is a good end there.
        VmmState::Dead { reason: None } => assert_eq!(vmm.kind(), VmmKind::Firecracker),
        VmmState::Alive => panic!("a guest's restart ends its VMM"),
    }
    vmm.clean(&place.runtime).await.unwrap();

    let process = patient("launch", vmm.launch(plan(TinyGuest::Hello))).await.unwrap();
    assert!(process.signal(Signal::KILL).unwrap());
    let VmmState::Dead { reason: Some(reason) } = patient("wait", process.wait()).await else {
        panic!("a VMM that somebody killed has a reason");
    };
    assert!(reason.contains("signal 9") && !reason.contains('\n'), "{reason}");
    vmm.clean(&place.runtime).await.unwrap();
}

async fn a_flood_is_bounded(vmm: &dyn Vmm, guests: &dyn TinyGuests, directory: Directories<'_>) {
    let place = Place::new(directory, "flood");
    let plan = guests.plan(TinyGuest::Flood, &place.runtime, &place.log);
    let process = patient("launch", vmm.launch(plan)).await.unwrap();
    process.resume().await.unwrap();
    place.wait_for_console("flood").await;
    sleep(Duration::from_secs(1)).await;
    patient("kill", process.kill()).await.unwrap();
    patient("wait", process.wait()).await;
    let size: u64 = std::fs::read_dir(&place.state)
        .unwrap()
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum();
    assert!(size <= 5 << 20, "the console log has {size} bytes");
    vmm.clean(&place.runtime).await.unwrap();
}
