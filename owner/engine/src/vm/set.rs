//! Changing the size and shape of a VM that does not run.

use std::sync::Arc;

use banger_daemon_api::vm::{SetVm, VmSpec};
use banger_types::DiskSize;
use jiff::Timestamp;

use super::space::{Asker, note_space};
use super::{Body, Control, io, space};
use crate::admission::{self, Bounds, DenyReason};
use crate::error::EngineError;
use crate::record::Disks;
use crate::seams::{DiskError, DiskImage, RootDisk};
use crate::step::Step;

/// Changes the VM. Its disks grow first: cut off, they are larger than its record says, which a
/// start, or the same change once more, takes as it is.
pub(super) async fn set(
    body: &mut Body,
    control: &Control,
    wanted: &SetVm,
) -> Result<(), EngineError> {
    if body.process.is_some() {
        // The stop before it in the queue failed.
        let vm = body.record.name.clone();
        return Err(EngineError::Denied { vm, reason: DenyReason::NotStopped });
    }
    let bounds = bounds(body).await?;
    let spec = admission::change(&body.record.spec, wanted, bounds)?;
    let space = space_warning(body, &spec, bounds).await?;
    if let Some(disks) = body.record.disks.clone() {
        grow(body, control, &disks, &spec).await?;
    }
    let notes = body.record.notes.clone();
    note_space(&mut body.record, space);
    let before = std::mem::replace(&mut body.record.spec, spec);
    let changed_at = std::mem::replace(&mut body.record.updated_at, Timestamp::now());
    if let Err(error) = body.save(true).await {
        body.record.spec = before;
        body.record.notes = notes;
        body.record.updated_at = changed_at;
        return Err(error);
    }
    body.publish();
    Ok(())
}

/// Returns the warning of disks that the host may not be able to hold. A disk that is to grow is refused
/// where its VM alone would need more than there is; what else changes is not.
async fn space_warning(
    body: &Body,
    spec: &VmSpec,
    bounds: Bounds,
) -> Result<Option<String>, EngineError> {
    let grows = spec.root_size.bytes() > body.record.spec.root_size.bytes().max(bounds.root_size)
        || spec.work_size.bytes() > body.record.spec.work_size.bytes().max(bounds.work_size);
    let asker =
        if grows { Asker::Growing([bounds.root_size, bounds.work_size]) } else { Asker::Other };
    let growth = match &body.record.disks {
        Some(disks) => space::of_made(&body.shared, disks, spec).await?,
        None => space::of_sizes(spec),
    };
    space::judge(body, spec, growth, asker).await
}

async fn bounds(body: &Body) -> Result<Bounds, EngineError> {
    let shared = &body.shared;
    let mut bounds =
        Bounds { root_size: 0, work_size: 0, host_memory: shared.host.memory()?.total };
    if let Some(disks) = &body.record.disks {
        bounds.root_size = root_driver(body, disks)?.measure(&disks.root).await?.size;
        bounds.work_size = measure_file(&disks.work).await?.0;
    }
    Ok(bounds)
}

fn root_driver(body: &Body, disks: &Disks) -> Result<Arc<dyn RootDisk>, EngineError> {
    let drivers = body.shared.root_disks();
    let driver = drivers.into_iter().find(|driver| driver.kind() == disks.root.kind);
    driver.ok_or_else(|| EngineError::Damaged {
        what: "the root disk",
        vm: body.record.name.clone(),
        problem: format!("is of kind {}, which nothing here can handle", disks.root.kind),
    })
}

/// Refuses a root disk that is known to be broken, and says what is not.
async fn check_root(
    body: &Body,
    disks: &Disks,
    driver: &Arc<dyn RootDisk>,
) -> Result<(), EngineError> {
    match driver.check(&disks.root).await {
        Ok(()) => Ok(()),
        Err(DiskError::Invalid { problem, .. }) => Err(EngineError::Damaged {
            what: "the root disk",
            vm: body.record.name.clone(),
            problem: format!(
                "{problem}; what was in /root is not on it: {} is whole",
                disks.work.path.display()
            ),
        }),
        Err(error) => Err(error.into()),
    }
}

/// Grows the disks to what `spec` says, where they are smaller.
pub(super) async fn grow(
    body: &Body,
    control: &Control,
    disks: &Disks,
    spec: &VmSpec,
) -> Result<(), EngineError> {
    control.enter(body, Step::CreateRootDisk).await?;
    let driver = root_driver(body, disks)?;
    check_root(body, disks, &driver).await?;
    if driver.measure(&disks.root).await?.size < spec.root_size.bytes() {
        driver.grow(&disks.root, spec.root_size).await?;
    }
    grow_file(&disks.work, spec.work_size).await?;
    control.done(body, Step::CreateRootDisk).await
}

/// Returns a raw file's size and what it takes on the host, in bytes.
pub(super) async fn measure_file(disk: &DiskImage) -> Result<(u64, u64), EngineError> {
    use std::os::unix::fs::MetadataExt;
    let found = tokio::fs::metadata(&disk.path).await.map_err(io("measuring", &disk.path))?;
    // st_blocks counts in units of 512 bytes, whatever the file system's blocks are.
    Ok((found.len(), found.blocks().saturating_mul(512)))
}

/// Makes a raw file larger by a hole, where it is smaller.
async fn grow_file(disk: &DiskImage, size: DiskSize) -> Result<(), EngineError> {
    if measure_file(disk).await?.0 >= size.bytes() {
        return Ok(());
    }
    let act = || io("growing", &disk.path);
    let file = tokio::fs::OpenOptions::new().write(true).open(&disk.path).await.map_err(act())?;
    file.set_len(size.bytes()).await.map_err(act())
}
