//! What of ours is on the host and belongs to no VM: listed, and removed when somebody asks.
//!
//! The host is looked at first and the VMs afterwards: a VM is in the table before anything of it is
//! made, so whatever was seen and has no VM then never gets one. Each thing is looked at once more
//! right before it is removed, because names (a pid, `/dev/loop3`) are given anew.
//!
//! What is left of a VM that does not run is that VM's: its own end is what removes it.
//!
//! A directory whose `vm.json` is whole is no orphan, nor is anything that is its VM's: a store
//! that is rebuilt has that VM again. Nor is a record as long as one of its VM's disks is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_daemon_api::operation::OperationState;
use banger_daemon_api::orphan::{KeptOrphan, Orphan, OrphanKind, OrphansRemoved};
use banger_daemon_api::vm::VmState;
use banger_types::{OperationId, VmId, VmName, VmReference};
use serde::de::IgnoredAny;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::layout::VmFiles;
use crate::seams::{Vmm, VmmIdentity};
use crate::shared::Shared;
use crate::vm::{Details, View, remove_tree};

/// The fewest digits of an id that stand for a VM.
const LEAST_DIGITS: usize = 8;

/// Ids of VMs that there are, or may be.
struct Known(BTreeSet<String>);

impl Known {
    async fn of(shared: &Shared) -> Result<Self, EngineError> {
        let rows = shared.store.vms::<IgnoredAny>().await?;
        let mut ids: BTreeSet<String> = rows.unreadable.into_iter().map(|row| row.id).collect();
        ids.extend(rows.rows.into_iter().map(|row| row.id.to_string()));
        ids.extend(shared.table().vms.keys().map(ToString::to_string));
        for id in entries(&shared.vms_dir).filter_map(|name| name.parse::<VmId>().ok()) {
            if shared.store.is_mirrored(&id).await {
                ids.insert(id.to_string());
            }
        }
        Ok(Self(ids))
    }

    /// Whether something that tells this much of its VM's id may belong to one. What does not tell
    /// enough is taken to.
    fn may_have(&self, vm: &str) -> bool {
        let tells = vm.len() >= LEAST_DIGITS && vm.bytes().all(|byte| byte.is_ascii_hexdigit());
        !tells || self.0.iter().any(|id| id.starts_with(vm))
    }
}

/// The names of the directories in a directory that is ours. Links are not followed.
fn entries(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
}

fn is_digits(text: &str, count: usize) -> bool {
    text.len() == count && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// All things of VMs on the host, known VMs' too.
async fn everything(shared: &Shared) -> Result<Vec<Orphan>, EngineError> {
    let mut all: Vec<Orphan> = vmms(shared).await?.into_iter().map(|(orphan, ..)| orphan).collect();
    for vmm in &shared.vmms {
        all.extend(vmm.traces(&shared.vms_dir).await?);
    }
    let taps = shared.network.iter().flat_map(|network| network.taps());
    all.extend(taps.map(|(name, vm)| Orphan { kind: OrphanKind::Tap, name, vm: vm.to_string() }));
    let short = VmId::random().short().len();
    let directories = |root: &Path, kind, digits| {
        let root = root.to_owned();
        entries(&root).filter(move |name| is_digits(name, digits)).map(move |vm| Orphan {
            kind,
            name: root.join(&vm).display().to_string(),
            vm,
        })
    };
    all.extend(directories(&shared.runtime_root, OrphanKind::Sockets, short));
    all.extend(directories(&shared.vms_dir, OrphanKind::Folder, 32));
    Ok(all)
}

/// The VMMs that their drivers find, with what it takes to end them.
async fn vmms(shared: &Shared) -> Result<Vec<(Orphan, Arc<dyn Vmm>, VmmIdentity)>, EngineError> {
    let mut all = Vec::new();
    for vmm in &shared.vmms {
        for (directory, identity) in vmm.find(&shared.runtime_root).await? {
            let vm = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let orphan = Orphan { kind: OrphanKind::Vmm, name: identity.pid.to_string(), vm };
            all.push((orphan, Arc::clone(vmm), identity));
        }
    }
    Ok(all)
}

/// A VM at rest that has lost some of its disks and not all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedVm {
    /// Its name.
    pub name: VmName,
    /// The disks that are gone.
    pub gone: Vec<PathBuf>,
    /// Those that are there.
    pub left: Vec<PathBuf>,
}

/// VMs at rest of which a disk is gone: they cannot start.
fn without_disks(shared: &Shared) -> Vec<(VmId, DamagedVm)> {
    let table = shared.table();
    let views = table.vms.iter().map(|(id, entry)| (id, entry.view.borrow().clone()));
    views
        .filter_map(|(id, view)| {
            let record = &view.record;
            let rests = matches!(record.state, VmState::Stopped | VmState::Failed);
            let disks = record.disks.as_ref().filter(|_| rests && record.complete)?;
            let paths = [&disks.root.path, &disks.work.path].map(PathBuf::clone).into_iter();
            // Only where the kernel says so: a disk that cannot be looked at is there.
            let (gone, left): (Vec<PathBuf>, Vec<PathBuf>) =
                paths.partition(|disk| matches!(disk.try_exists(), Ok(false)));
            let is_whole = gone.is_empty() || view.process.is_some();
            (!is_whole).then(|| (id.clone(), DamagedVm { name: record.name.clone(), gone, left }))
        })
        .collect()
}

/// Records of VMs at rest with no disk left: there is nothing to lose with them.
fn rows(shared: &Shared) -> Vec<Orphan> {
    let lost = without_disks(shared).into_iter().filter(|(_, vm)| vm.left.is_empty());
    lost.map(|(id, vm)| Orphan {
        kind: OrphanKind::Row,
        name: vm.name.to_string(),
        vm: id.to_string(),
    })
    .collect()
}

/// VMs that have lost a disk and keep another, by name.
pub(crate) fn damaged(shared: &Shared) -> Vec<DamagedVm> {
    let all = without_disks(shared).into_iter().map(|(_, vm)| vm);
    let mut damaged: Vec<DamagedVm> = all.filter(|vm| !vm.left.is_empty()).collect();
    damaged.sort_by(|a, b| a.name.cmp(&b.name));
    damaged
}

pub(crate) async fn find(shared: &Shared, told: &[Orphan]) -> Result<Vec<Orphan>, EngineError> {
    let mut all = everything(shared).await?;
    all.extend(told.iter().filter(|orphan| orphan.kind == OrphanKind::Firewall).cloned());
    let known = Known::of(shared).await?;
    // A VMM may be found in more than one way, by more or less of its VM's id.
    all.sort_by(|a, b| (a.kind, &a.name, b.vm.len()).cmp(&(b.kind, &b.name, a.vm.len())));
    all.dedup_by(|a, b| (a.kind, &a.name) == (b.kind, &b.name));
    all.retain(|orphan| !known.may_have(&orphan.vm));
    let mut rows = rows(shared);
    rows.sort();
    all.extend(rows);
    Ok(all)
}

/// Things on the host of VMs that do not run and that nothing is done with: their last end could not
/// remove them. Their directories are theirs.
pub(crate) async fn of_resting(shared: &Shared) -> Result<Vec<(VmName, Orphan)>, EngineError> {
    let mut all = everything(shared).await?;
    all.retain(|orphan| orphan.kind != OrphanKind::Folder);
    all.sort();
    all.dedup_by(|a, b| (a.kind, &a.name) == (b.kind, &b.name));
    // As above: what belongs to a VM that rests now has been there since it ended.
    let table = shared.table();
    let found = all.into_iter().filter_map(|orphan| {
        let is_its =
            |id: &VmId| orphan.vm.len() >= LEAST_DIGITS && id.as_str().starts_with(&orphan.vm);
        let (_, entry) = table.vms.iter().find(|(id, _)| is_its(id))?;
        let view = entry.view.borrow();
        let rests = matches!(view.record.state, VmState::Stopped | VmState::Failed);
        (rests && view.process.is_none()).then(|| (view.record.name.clone(), orphan))
    });
    Ok(found.collect())
}

pub(crate) async fn remove(
    engine: &Engine,
    shared: &Shared,
    told: &[Orphan],
) -> Result<OrphansRemoved, EngineError> {
    let mut outcome = OrphansRemoved::default();
    engine.clean_resting(shared, &mut outcome).await;
    for orphan in find(shared, told).await? {
        let user = outcome.kept.iter().find(|kept| {
            let (kept, own) = (kept.orphan.vm.as_str(), orphan.vm.as_str());
            kept.starts_with(own) || own.starts_with(kept)
        });
        let removed = match user {
            Some(user) => Err(format!("{} is still there and may use it", user.orphan)),
            None => match find(shared, told).await {
                Ok(still) if still.contains(&orphan) => one(engine, shared, &orphan).await,
                Ok(_) => Ok(()),
                Err(error) => Err(in_words(&error)),
            },
        };
        match removed {
            Ok(()) => {
                tracing::warn!(%orphan, vm = orphan.vm, "removed: it belonged to no VM");
                outcome.removed.push(orphan);
            }
            Err(reason) => {
                tracing::warn!(%orphan, vm = orphan.vm, reason, "not removed");
                outcome.kept.push(KeptOrphan { orphan, reason });
            }
        }
    }
    Ok(outcome)
}

async fn one(engine: &Engine, shared: &Shared, orphan: &Orphan) -> Result<(), String> {
    let words = |error: EngineError| in_words(&error);
    match orphan.kind {
        OrphanKind::Row => return forget(engine, orphan).await,
        OrphanKind::Vmm => {
            for (found, vmm, identity) in vmms(shared).await.map_err(words)? {
                if found.name == orphan.name {
                    vmm.end(&identity).await.map_err(|error| words(error.into()))?;
                }
            }
        }
        _ => {}
    }
    for vmm in &shared.vmms {
        let erased = vmm.erase(orphan, &shared.vms_dir).await;
        erased.map_err(|error| words(error.into()))?;
    }
    match orphan.kind {
        OrphanKind::Sockets | OrphanKind::Folder => {
            remove_tree(Path::new(&orphan.name)).await.map(drop).map_err(words)
        }
        _ => Ok(()),
    }
}

impl Engine {
    /// Has what VMs left that do not run, or are half deleted, removed once more.
    async fn clean_resting(&self, shared: &Shared, outcome: &mut OrphansRemoved) {
        let left: Vec<(VmReference, View)> = {
            let table = shared.table();
            let views = table.vms.values().map(|entry| entry.view.borrow().clone());
            views.filter_map(|view| Some((view.record.id.as_str().parse().ok()?, view))).collect()
        };
        for (vm, view) in left {
            let Some(request) = view.cleaning() else { continue };
            let details = Details::default();
            let ended = match self.order(&vm, request, details, OperationId::random()).await {
                Ok(started) => started.operation.ended().await.error,
                Err(error) => Some(error.to_api()),
            };
            let orphan = Orphan {
                kind: OrphanKind::Leftovers,
                name: view.record.name.to_string(),
                vm: view.record.id.to_string(),
            };
            match ended {
                None => outcome.removed.push(orphan),
                Some(error) => {
                    let reason =
                        std::iter::once(error.message).chain(error.causes).collect::<Vec<_>>();
                    outcome.kept.push(KeptOrphan { orphan, reason: reason.join(": ") });
                }
            }
        }
    }
}

/// Deletes a VM that has lost its disks, as its owner would.
async fn forget(engine: &Engine, orphan: &Orphan) -> Result<(), String> {
    let vm: VmReference = orphan.vm.parse().map_err(|error| format!("{error}"))?;
    let started = engine.delete(&vm, OperationId::random()).await;
    let ended = started.map_err(|error| in_words(&error))?.operation.ended().await;
    match (ended.state, ended.error) {
        (OperationState::Succeeded, _) => Ok(()),
        (_, Some(error)) => Err(error.message),
        (state, None) => Err(format!("its deletion ended as {state:?}")),
    }
}

fn in_words(error: &EngineError) -> String {
    let error = error.to_api();
    std::iter::once(error.message).chain(error.causes).collect::<Vec<_>>().join(": ")
}

impl Shared {
    /// Returns the directories of VMs that have a whole `vm.json` and no row.
    pub(crate) async fn unlisted(&self) -> Vec<String> {
        let mut found = Vec::new();
        for id in entries(&self.vms_dir).filter_map(|name| name.parse::<VmId>().ok()) {
            let is_known = self.table().vms.contains_key(&id);
            if !is_known && self.store.is_mirrored(&id).await {
                let files = VmFiles::new(&self.vms_dir, &self.runtime_root, &id);
                found.push(files.dir().display().to_string());
            }
        }
        found
    }
}
