//! What a VM's disks may still take of the host, and whether it has that.

use std::sync::atomic::Ordering;

use banger_daemon_api::vm::{SPACE_NOTE, VmSpec};

use super::Body;
use super::set::measure_file;
use crate::admission::{self, Growth, HostSpace, SpaceRequest};
use crate::error::EngineError;
use crate::record::{Disks, VmRecord};
use crate::seams::RootDisk;
use crate::shared::Shared;

/// What disks of the sizes that were asked for may still take, and what those that there are may.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    asked: Growth,
    actual: Growth,
}

/// On whose behalf it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A VM that is made: its sizes can be chosen.
    Creating,
    /// A VM that is to have larger disks than these, root and work, in bytes.
    Growing([u64; 2]),
    /// A VM that starts, with the sizes that it has.
    Starting,
    /// Something else of the VM changes: never refused.
    Other,
}

/// Returns what the disks of a VM may take that is made over an image of `base_size` bytes.
pub(super) fn of_new(root_disk: &dyn RootDisk, spec: &VmSpec, base_size: u64) -> Wanted {
    let root = spec.root_size.bytes();
    let of = |root| Growth { root: root_disk.most(root), work: spec.work_size.bytes() };
    Wanted { asked: of(root), actual: of(root.max(base_size)) }
}

/// The same where neither image nor kind of disk is known yet.
pub(super) fn of_sizes(spec: &VmSpec) -> Wanted {
    let growth = Growth { root: spec.root_size.bytes(), work: spec.work_size.bytes() };
    Wanted { asked: growth, actual: growth }
}

/// Returns what disks that there are may still take, grown to what `spec` says where they are smaller.
pub(super) async fn of_made(
    shared: &Shared,
    disks: &Disks,
    spec: &VmSpec,
) -> Result<Wanted, EngineError> {
    let kind = disks.root.kind.as_str();
    let driver = shared.root_disks().into_iter().find(|driver| driver.kind() == kind);
    let driver = driver.ok_or(EngineError::Defect("no driver knows the kind of a root disk"))?;
    let size = driver.measure(&disks.root).await?.size;
    let asked = driver.may_take(&disks.root, spec.root_size.bytes()).await?;
    let actual = driver.may_take(&disks.root, size.max(spec.root_size.bytes())).await?;
    let (work_size, work_taken) = measure_file(&disks.work).await?;
    let work = spec.work_size.bytes().max(work_size).saturating_sub(work_taken);
    Ok(Wanted { asked: Growth { root: asked, work }, actual: Growth { root: actual, work } })
}

/// Refuses a VM that runs and whose disks the host could not hold, as its next start would.
pub(super) async fn judge_restart(body: &Body) -> Result<(), EngineError> {
    let Some(disks) = &body.record.disks else { return Ok(()) };
    // A disk that cannot be measured is for its own step to refuse.
    let Ok(growth) = of_made(&body.shared, disks, &body.record.spec).await else { return Ok(()) };
    judge(body, &body.record.spec, growth, Asker::Starting).await.map(drop)
}

/// Judges a VM's disks by what the host has free; returns a warning for its user.
pub(super) async fn judge(
    body: &Body,
    spec: &VmSpec,
    wanted: Wanted,
    asker: Asker,
) -> Result<Option<String>, EngineError> {
    let shared = &body.shared;
    let request = SpaceRequest {
        root_size: spec.root_size,
        work_size: spec.work_size,
        asked: wanted.asked,
        actual: wanted.actual,
        least: match asker {
            Asker::Creating => Some([0, 0]),
            Asker::Growing(sizes) => Some(sizes),
            Asker::Starting | Asker::Other => None,
        },
    };
    let host = HostSpace {
        free: shared.host.free_disk(&shared.vms_dir)?,
        others: growth_of_others(body).await,
        overcommit: asker == Asker::Other || shared.overcommit.load(Ordering::Relaxed),
        place: &shared.vms_dir,
    };
    admission::judge_space(request, host)
}

/// Returns what the disks of all other VMs may still take. What cannot be measured is told when it is
/// used, and only a warning hangs on it here.
async fn growth_of_others(body: &Body) -> u64 {
    let shared = &body.shared;
    let others: Vec<_> = {
        let table = shared.table();
        let others = table.vms.iter().filter(|(id, _)| *id != body.id());
        others.map(|(_, entry)| entry.view.borrow().clone()).filter(|view| !view.gone).collect()
    };
    let mut sum = 0_u64;
    for view in others {
        let spec = &view.record.spec;
        let growth = match &view.record.disks {
            Some(disks) => of_made(shared, disks, spec).await.map_or(0, |it| it.actual.sum()),
            None => of_sizes(spec).actual.sum(),
        };
        sum = sum.saturating_add(growth);
    }
    sum
}

/// Notes a warning, or that there is none any more.
pub(super) fn note_space(record: &mut VmRecord, warning: Option<String>) {
    match warning {
        Some(warning) => record.notes.insert(SPACE_NOTE.to_owned(), warning),
        None => record.notes.remove(SPACE_NOTE),
    };
}
