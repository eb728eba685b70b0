//! Taps that wait for a guest, so that a start finds one that is already a port of the bridge.
//!
//! ```text
//! making ──create_tap──► waiting ──a VM starts──► a guest's ──it stops──► delete_tap, and another
//! ```
//!
//! What a guest gave back is ended, not given on: of the guest before, nothing (a rule, an address
//! that the bridge learned, a setting that its VMM left on the tap) can be there for the next one.
//! Which VM has which tap is written down before the tap becomes its, so a daemon that dies leaves
//! nothing that the next one does not know.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use banger_helper_api::{CreateTapParams, DeleteTapParams, Empty, Method};
use banger_helper_client::{CallError, HelperClient};
use banger_types::{Subnet, VmId};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

/// What begins the names of these taps, and what the names of all others do not begin with.
pub(crate) const PREFIX: &str = "tap-pool-";
/// How many are made at a time.
const BATCH: usize = 8;
/// A name has at most 15 bytes (IFNAMSIZ), six of which are a number's.
const NUMBERS: u32 = 1_000_000;
/// A file larger than this is not ours: some thousands of VMs.
const LONGEST: u64 = 1 << 20;
/// The interfaces of our network; `/sys/class/net` may show another's.
const INTERFACES: &str = "/proc/thread-self/net/dev";

/// What a tap is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Use {
    /// Being made or ended: of a daemon that has died, it may be anything.
    Unknown,
    Waiting,
    Guest(VmId),
}

#[derive(Debug, Default)]
struct State {
    taps: BTreeMap<String, Use>,
    /// How many are to wait.
    size: usize,
    /// The bridge's, as soon as it is there.
    subnet: Option<Subnet>,
    /// The number that the next one gets if nobody has it.
    next: u32,
    /// What was here before has been looked at.
    is_swept: bool,
}

impl State {
    fn waiting(&self) -> usize {
        self.taps.values().filter(|used| **used == Use::Waiting).count()
    }
}

/// The pool of one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    helper: HelperClient,
    bridge: String,
    path: PathBuf,
    state: Mutex<State>,
    /// Held by who makes taps, or ends them.
    turn: tokio::sync::Mutex<()>,
}

impl Pool {
    /// Opens the pool of a bridge: its file says which taps of before are guests'.
    pub(crate) fn open(helper: HelperClient, bridge: String, path: PathBuf) -> Self {
        let mut taps = read(&path);
        let here = interfaces();
        // What the host has forgotten (it was started anew) is nobody's.
        taps.retain(|name, _| here.iter().any(|other| other == name));
        for used in taps.values_mut().filter(|used| **used == Use::Waiting) {
            *used = Use::Unknown;
        }
        let state = State { taps, ..State::default() };
        Self(Arc::new(Inner {
            helper,
            bridge,
            path,
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting()
    }

    /// Returns the taps that are VMs' and are there.
    pub(crate) fn used(&self) -> Vec<(String, VmId)> {
        let state = self.state();
        let used = state.taps.iter().filter_map(|(name, used)| match used {
            Use::Guest(vm) => Some((name.clone(), vm.clone())),
            _ => None,
        });
        used.collect()
    }

    /// Returns the tap of a VM, if it has one of these.
    pub(crate) fn of(&self, vm: &VmId) -> Option<String> {
        self.used().into_iter().find(|(_, other)| other == vm).map(|(name, _)| name)
    }

    /// Returns the tap that a VM has, or one that waits and is the VM's from now on.
    pub(crate) fn take(&self, vm: &VmId) -> Option<String> {
        if let Some(name) = self.of(vm) {
            return Some(name);
        }
        let mut state = self.state();
        let (name, used) = state.taps.iter_mut().find(|(_, used)| **used == Use::Waiting)?;
        let name = name.clone();
        *used = Use::Guest(vm.clone());
        if let Err(error) = self.write(&state) {
            tracing::warn!(%error, tap = name, "a tap that waits is not used");
            state.taps.insert(name, Use::Waiting);
            return None;
        }
        Some(name)
    }

    /// Ends the tap of a VM, if it has one of these: whether it had.
    pub(crate) async fn give_back(&self, vm: &VmId, op_id: &str) -> Result<bool, CallError> {
        let Some(name) = self.of(vm) else { return Ok(false) };
        self.end(&name, op_id).await?;
        self.settle();
        Ok(true)
    }

    /// Takes what the daemon's bridge is now, if there is one, and how many are to wait.
    pub(crate) fn set(&self, subnet: Option<Subnet>, size: u16) {
        {
            let mut state = self.state();
            state.is_swept &= state.subnet == subnet;
            state.subnet = subnet;
            state.size = if subnet.is_some() { size.into() } else { 0 };
        }
        self.settle();
    }

    /// Ends all that waits: nothing is made any more.
    pub(crate) async fn close(&self) {
        self.state().size = 0;
        let _turn = self.0.turn.lock().await;
        self.shrink().await;
    }

    /// The same with what a daemon of before left, until [`Self::set`] says how many are to wait.
    pub(crate) async fn empty(&self) {
        self.state().size = 0;
        // Whoever has the turn may still be making some.
        let _turn = self.0.turn.lock().await;
        for used in self.state().taps.values_mut().filter(|used| **used == Use::Waiting) {
            *used = Use::Unknown;
        }
        self.sweep().await;
    }

    /// Makes what is missing and ends what is too much, in the background; one at a time does.
    pub(crate) fn settle(&self) {
        let pool = self.clone();
        tokio::spawn(async move {
            loop {
                // Who has the turn sees to it, or looks again after it.
                let Ok(turn) = pool.0.turn.try_lock() else { return };
                pool.sweep().await;
                pool.shrink().await;
                let mut goes_on = true;
                while goes_on && pool.missing() > 0 {
                    goes_on = pool.batch().await;
                }
                drop(turn);
                if !goes_on || pool.missing() == 0 && pool.surplus() == 0 {
                    return;
                }
            }
        });
    }

    fn missing(&self) -> usize {
        let state = self.state();
        let size = if state.subnet.is_some() { state.size } else { 0 };
        size.saturating_sub(state.waiting())
    }

    fn surplus(&self) -> usize {
        let state = self.state();
        state.waiting().saturating_sub(state.size)
    }

    /// Ends what daemons of before left, and nothing of another daemon.
    async fn sweep(&self) {
        let (unknown, known, has_bridge) = {
            let mut state = self.state();
            let has_bridge =
                state.subnet.is_some() && !std::mem::replace(&mut state.is_swept, true);
            let known: Vec<String> = state.taps.keys().cloned().collect();
            let unknown = known.iter().filter(|name| state.taps[*name] == Use::Unknown);
            (unknown.cloned().collect::<Vec<_>>(), known, has_bridge)
        };
        for name in unknown {
            self.end_or_say(&name).await;
        }
        let others = interfaces().into_iter().filter(|_| has_bridge);
        for name in others.filter(|name| name.starts_with(PREFIX) && !known.contains(name)) {
            // The helper refuses one of another owner or bridge, and cannot open one that is in use.
            if self.make(&name, true).await.is_ok() {
                tracing::warn!(tap = name, "a tap of before waits for nobody; it is ended");
                self.end_or_say(&name).await;
            }
        }
    }

    async fn shrink(&self) {
        let surplus: Vec<String> = {
            let mut state = self.state();
            let size = state.size;
            let waiting = state.taps.iter_mut().filter(|(_, used)| **used == Use::Waiting);
            let surplus = waiting.skip(size).map(|(name, used)| {
                *used = Use::Unknown;
                name.clone()
            });
            surplus.collect()
        };
        for name in surplus {
            self.end_or_say(&name).await;
        }
    }

    /// Makes some of what is missing. Where a whole batch fails, which is false, the next one would.
    async fn batch(&self) -> bool {
        let names = self.names();
        if names.is_empty() {
            return false;
        }
        let mut making = JoinSet::new();
        for name in names {
            let pool = self.clone();
            making.spawn(async move {
                let made = pool.make(&name, false).await;
                (name, made)
            });
        }
        let mut any = false;
        while let Some(Ok((name, made))) = making.join_next().await {
            match made {
                Ok(()) => {
                    any = true;
                    self.state().taps.insert(name, Use::Waiting);
                }
                Err(error) => {
                    tracing::warn!(tap = name, %error, "no tap was made to wait");
                    // It may have been made all the same; another's is refused.
                    if !matches!(error, CallError::Helper { .. }) {
                        self.end_or_say(&name).await;
                    }
                    self.state().taps.remove(&name);
                }
            }
        }
        self.write_or_say();
        any
    }

    /// Chooses the names of the next batch and writes them down.
    fn names(&self) -> Vec<String> {
        let here = interfaces();
        let mut state = self.state();
        let missing = state.size.saturating_sub(state.waiting()).min(BATCH);
        let number = |name: &String| name.strip_prefix(PREFIX)?.parse::<u32>().ok();
        let highest = here.iter().chain(state.taps.keys()).filter_map(number).max();
        let first = state.next.max(highest.map_or(0, |highest| highest.saturating_add(1)));
        let numbers = (0..NUMBERS).map(|offset| first.saturating_add(offset) % NUMBERS);
        let names = numbers.map(|number| (number, format!("{PREFIX}{number}")));
        let free = names.filter(|(_, name)| !here.contains(name) && !state.taps.contains_key(name));
        let chosen: Vec<(u32, String)> = free.take(missing).collect();
        if let Some((number, _)) = chosen.last() {
            state.next = number.saturating_add(1) % NUMBERS;
        }
        let names: Vec<String> = chosen.into_iter().map(|(_, name)| name).collect();
        state.taps.extend(names.iter().map(|name| (name.clone(), Use::Unknown)));
        if let Err(error) = self.write(&state) {
            tracing::warn!(%error, "no tap is made to wait");
            state.taps.retain(|name, _| !names.contains(name));
            return Vec::new();
        }
        names
    }

    async fn make(&self, name: &str, return_fd: bool) -> Result<(), CallError> {
        let Some(subnet) = self.state().subnet else {
            let source = std::io::Error::other("the bridge is gone");
            return Err(CallError::Answer { method: Method::CreateTap, source });
        };
        let params = CreateTapParams {
            bridge_name: self.0.bridge.clone(),
            bridge_ip: subnet.gateway().to_string(),
            cidr: subnet.prefix().to_string(),
            tap_name: name.to_owned(),
            guest_mac: None,
            guest_ip: None,
            group: None,
            isolated: None,
            return_fd,
        };
        let asked = self.0.helper.call_for_descriptor(Method::CreateTap, &params, "").await;
        asked.map(|(Empty {}, _)| ())
    }

    async fn end(&self, name: &str, op_id: &str) -> Result<(), CallError> {
        let params = DeleteTapParams { tap_name: name.to_owned() };
        self.0.helper.call::<_, Empty>(Method::DeleteTap, &params, op_id).await?;
        self.state().taps.remove(name);
        self.write_or_say();
        Ok(())
    }

    async fn end_or_say(&self, name: &str) {
        if let Err(error) = self.end(name, "").await {
            tracing::warn!(tap = name, %error, "a tap that waits for nobody was not ended");
        }
    }

    fn write_or_say(&self) {
        if let Err(error) = self.write(&self.state()) {
            tracing::warn!(%error, path = %self.0.path.display(), "not written");
        }
    }

    /// The file outlives this process, which is all it has to: taps do not outlive the host's memory.
    fn write(&self, state: &State) -> std::io::Result<()> {
        let temporary = self.0.path.with_extension("json.new");
        std::fs::write(&temporary, serde_json::to_vec(&state.taps)?)?;
        std::fs::rename(&temporary, &self.0.path)
    }
}

fn read(path: &Path) -> BTreeMap<String, Use> {
    let size = std::fs::metadata(path).map_or(0, |found| found.len());
    let text = if size <= LONGEST { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
    let mut taps: BTreeMap<String, Use> = serde_json::from_slice(&text).unwrap_or_default();
    // A damaged file names no tap but one of ours.
    taps.retain(|name, _| name.starts_with(PREFIX));
    taps
}

/// The names of the host's interfaces.
pub(crate) fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string(INTERFACES).unwrap_or_default();
    table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool over a helper that is not there.
    fn pool(directory: &Path) -> Pool {
        let helper = HelperClient::new(directory.join("nobody"));
        Pool::open(helper, "br-fc".to_owned(), directory.join("taps.json"))
    }

    #[tokio::test]
    async fn a_tap_is_one_vms_before_it_is_used_and_until_it_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let (pool, file) = (pool(directory.path()), directory.path().join("taps.json"));
        let (vm, other) = (VmId::random(), VmId::random());
        assert_eq!(pool.take(&vm), None);
        let tap = "tap-pool-3".to_owned();
        pool.state().taps.insert(tap.clone(), Use::Waiting);
        assert_eq!(pool.waiting(), 1);
        assert_eq!(pool.take(&vm), Some(tap.clone()));
        assert_eq!(pool.take(&vm), Some(tap.clone()), "again");
        assert_eq!((pool.take(&other), pool.waiting()), (None, 0));
        assert_eq!(read(&file), [(tap.clone(), Use::Guest(vm.clone()))].into());
        // What was not ended is still its.
        assert!(pool.give_back(&vm, "").await.is_err());
        assert!(!pool.give_back(&other, "").await.unwrap());
        assert_eq!(pool.used(), [(tap.clone(), vm)]);
        // What cannot be written down is not given away.
        pool.state().taps.insert("tap-pool-4".to_owned(), Use::Waiting);
        drop(directory);
        assert_eq!((pool.take(&other), pool.waiting()), (None, 1));
    }

    #[tokio::test]
    async fn names_are_nobodys_are_written_down_and_a_batch_that_fails_is_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let (pool, file) = (pool(directory.path()), directory.path().join("taps.json"));
        {
            let mut state = pool.state();
            state.taps.insert("tap-pool-999998".to_owned(), Use::Guest(VmId::random()));
            state.size = 20;
            state.subnet = Some("10.1.2.1/24".parse().unwrap());
        }
        assert_eq!(pool.missing(), 20);
        let names = pool.names();
        assert_eq!(names.len(), BATCH);
        assert_eq!(names[..3], ["tap-pool-999999", "tap-pool-0", "tap-pool-1"]);
        assert!(names.iter().all(|name| name.len() < 16 && read(&file)[name] == Use::Unknown));
        assert_eq!(pool.names()[0], "tap-pool-7");
        assert!(!pool.batch().await, "nobody makes them");
        assert_eq!(pool.waiting(), 0);
    }

    #[test]
    fn a_damaged_file_names_nothing_but_taps_of_ours() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("taps.json");
        let long = format!("{}{}", " ".repeat(1 << 20), r#"{"tap-pool-1":"waiting"}"#);
        for damage in ["", "[]", r#"{"tap-pool-1":"nobody"}"#, r#"{"eth0":"waiting"}"#, &long] {
            std::fs::write(&file, damage).unwrap();
            assert_eq!(read(&file), BTreeMap::new());
        }
        // Of before, and the host has forgotten it.
        std::fs::write(&file, r#"{"tap-pool-1":"waiting"}"#).unwrap();
        assert_eq!(read(&file).len(), 1);
        assert!(pool(directory.path()).state().taps.is_empty());
    }
}
