//! Loop devices on files below the state root (loop(4)).

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use banger_gates::{LoopDevice as LoopName, ManagedPath, Name, Refusal, State};
use banger_privileged_sys::loop_device::{Backing, LoopDevice};
use serde::{Deserialize, Serialize};

use super::snapshot::{KIND, SnapshotRecord};
use crate::vmm::Use;
use crate::{During, Host, Result};

const GRACE: Duration = Duration::from_secs(2);

/// A loop device that the helper made, and the file that it made it of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LoopRecord {
    number: u32,
    device: u64,
    inode: u64,
}

impl LoopRecord {
    pub(super) fn of(device: &LoopDevice, file: &File) -> Result<Self> {
        let (volume, inode) = identity(file)?;
        Ok(Self { number: device.number(), device: volume, inode })
    }

    fn is(&self, number: u32, backing: Backing) -> bool {
        (self.number, self.device, self.inode) == (number, backing.device, backing.inode)
    }
}

/// The file system and the file there, as the kernel numbers them.
pub(crate) fn identity(file: &File) -> Result<(u64, u64)> {
    let metadata = file.metadata().during("look at", "a disk's file")?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Every loop device that stands on a file, and what that is.
fn attached() -> Result<Vec<(u32, Backing)>> {
    let mut found = Vec::new();
    for number in LoopDevice::all(true).during("list", "/sys/block")? {
        let Some(device) = LoopDevice::open(number).during("look at", number)? else { continue };
        let backing = device.backing().during("look at", number)?;
        found.extend(backing.map(|backing| (number, backing)));
    }
    Ok(found)
}

/// That no loop device hinders the use of files, but for one's own and, for who only reads, those
/// that only read. One whose last user just went is waited for: udev looks into each for a moment.
pub(crate) fn check_loops(uses: &[(Name, Use)], own: Option<u32>) -> Result<()> {
    let end = Instant::now() + GRACE;
    loop {
        let others = attached()?.into_iter().filter(|(number, _)| own != Some(*number));
        let found = others.into_iter().find_map(|(number, backing)| {
            let file = (backing.device, backing.inode);
            let hinders = |it: &&(Name, Use)| it.1.0 == file && !(it.1.1 && backing.is_read_only);
            Some((uses.iter().find(hinders)?.0, number))
        });
        let Some((parameter, number)) = found else { return Ok(()) };
        Refusal::when(Instant::now() >= end, parameter, format!("in use by /dev/loop{number}"))?;
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Makes a loop device of a file that nothing hinders: attached first, looked around then, so that
/// of two made at once at least one sees the other.
pub(super) fn attach(parameter: Name, file: &File, read_only: bool) -> Result<LoopDevice> {
    let device = LoopDevice::attach(file, read_only).during("attach", parameter)?;
    check_loops(&[(parameter, (identity(file)?, read_only))], Some(device.number()))?;
    Ok(device)
}

impl Host {
    /// Opens a loop device that is to be detached; none if it stands on nothing. What it stands on
    /// cannot change while it is open.
    ///
    /// # Errors
    /// It stands on a file that is neither below the state root nor recorded as the helper's own
    /// work (refused). The record is what counts for a file that was deleted, and for one that the
    /// helper opened before it was started again: the kernel tells its path in a mount namespace
    /// that is gone.
    pub(super) fn open_detachable(&self, name: Name, it: LoopName) -> Result<Option<LoopDevice>> {
        let number = it.number();
        let path = format!("/dev/loop{number}");
        let device = LoopDevice::open(number).during("look at", &path)?;
        let Some(device) = device else { return Ok(None) };
        let Some(backing) = device.backing().during("look at", &path)? else { return Ok(None) };
        let mut records = self.records.all::<SnapshotRecord>(KIND).into_iter();
        let is_recorded =
            records.any(|(_, record)| record.loops.iter().any(|own| own.is(number, backing)));
        if is_recorded || self.is_below_state(name, number, backing) {
            return Ok(Some(device));
        }
        Err(Refusal::new(name, "stands on a file outside the state directory").into())
    }

    /// Whether the path that the kernel tells leads, below the state root, to that very file.
    fn is_below_state(&self, parameter: Name, number: u32, backing: Backing) -> bool {
        let told = std::fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file"));
        let path = told.ok().and_then(|told| {
            let path = told.strip_suffix('\n').unwrap_or(&told);
            ManagedPath::<State>::parse(parameter, path, &self.policy).ok()
        });
        let found = path.and_then(|path| self.state.look(parameter, &path).ok().flatten());
        found.is_some_and(|(_, stat)| (stat.st_dev, stat.st_ino) == (backing.device, backing.inode))
    }
}
