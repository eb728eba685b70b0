//! How a VM and its disks are shown.

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;

use banger_daemon_api::error::ApiError;
use banger_daemon_api::vm::{DISK_NOTE, Disk, HELD_NOTE, LEFTOVERS_NOTE, SUBNET_NOTE, Vm};
use banger_types::ByteSize;

use super::Engine;
use crate::orphans::{self, DamagedVm};
use crate::record::VmRecord;
use crate::seams::{DiskImage, FULL_SOON, hardware_address, hardware_text};
use crate::vm::View;

impl Engine {
    pub(super) async fn show(&self, view: &View) -> Vm {
        self.show_beside(view, self.bridge_warning().as_deref()).await
    }

    /// Returns what is wrong with the bridge now.
    pub(super) fn bridge_warning(&self) -> Option<String> {
        self.shared.network.as_ref()?.warning()
    }

    /// Shows a VM; `bridge` is [`Self::bridge_warning`], asked once for many.
    pub(super) async fn show_beside(&self, view: &View, bridge: Option<&str>) -> Vm {
        let record = &view.record;
        let disks = self.show_disks(record).await;
        let mut notes = record.notes.clone();
        if let Some(why) = view.process.as_ref().and_then(|process| process.stall()) {
            notes.insert(HELD_NOTE.to_owned(), why.to_owned());
        }
        // As it is now: the note was written when the VM started.
        if record.running.as_ref().is_some_and(|running| running.on_bridge) {
            notes.remove(SUBNET_NOTE);
            notes.extend(bridge.map(|warning| (SUBNET_NOTE.to_owned(), warning.to_owned())));
        }
        if let Some(left) = &record.leftovers {
            notes.insert(LEFTOVERS_NOTE.to_owned(), in_words(left));
        }
        let said: Vec<String> = disks.iter().filter_map(what_to_say).collect();
        if !said.is_empty() {
            notes.insert(DISK_NOTE.to_owned(), said.join("; "));
        }
        Vm {
            id: record.id.clone(),
            name: record.name.clone(),
            state: record.state,
            image: record.image.clone(),
            kernel: record.kernel.clone(),
            spec: record.spec.clone(),
            ephemeral: record.lease.is_some(),
            runtime: record.running.as_ref().map(crate::record::Running::shown),
            disks,
            // A guest without an address has no card; one that does not run would get the user's.
            network: match (&record.running, self.bridge_address(record)) {
                (Some(running), _) if running.on_bridge => "tap".to_owned(),
                (Some(running), _) if running.guest_ip.is_none() => "none".to_owned(),
                (None, Some(_)) => "tap".to_owned(),
                _ => "user".to_owned(),
            },
            address: self.bridge_address(record),
            mac: self.bridge_address(record).map(|ip| hardware_text(hardware_address(ip))),
            ports: self.published(record),
            workspace: record.workspace.clone(),
            main: record.programs.main.clone(),
            main_exit: record.main_exit,
            last_error: record.last_error.clone(),
            created_at: record.created_at,
            updated_at: record.updated_at,
            console_log: self.files(&record.id).console_log().display().to_string(),
            notes,
        }
    }

    /// Lists the VMs at rest that have lost a disk and keep another, by name.
    #[must_use]
    pub fn damaged(&self) -> Vec<DamagedVm> {
        orphans::damaged(&self.shared)
    }

    /// Returns the address that a VM has on the bridge, or would get at its next start.
    fn bridge_address(&self, record: &VmRecord) -> Option<Ipv4Addr> {
        match &record.running {
            Some(running) => running.guest_ip.filter(|_| running.on_bridge),
            None => self.shared.network.as_ref()?.subnet()?.guest(record.address_number?),
        }
    }

    pub(super) async fn show_disks(&self, record: &VmRecord) -> Vec<Disk> {
        let Some(disks) = &record.disks else { return Vec::new() };
        let kind = &disks.root.kind;
        let driver = self.shared.root_disks().into_iter().find(|driver| driver.kind() == kind);
        let (root, broken) = match driver {
            Some(driver) => (
                driver.measure(&disks.root).await.ok(),
                driver.check(&disks.root).await.err().map(|error| error.to_string()),
            ),
            None => (None, None),
        };
        let work = tokio::fs::metadata(&disks.work.path).await.ok();
        let path = |image: &DiskImage| image.path.display().to_string();
        vec![
            Disk {
                role: "root".to_owned(),
                kind: disks.root.kind.clone(),
                path: path(&disks.root),
                size: root.map_or(0, |usage| usage.size),
                allocated: root.map_or(0, |usage| usage.allocated),
                fill_percent: root.and_then(|usage| usage.fill_percent),
                broken,
            },
            Disk {
                role: "work".to_owned(),
                kind: disks.work.kind.clone(),
                path: path(&disks.work),
                size: work.as_ref().map_or(0, MetadataExt::size),
                // st_blocks counts in units of 512 bytes, whatever the file system's blocks are.
                allocated: work.as_ref().map_or(0, |stat| stat.blocks().saturating_mul(512)),
                fill_percent: None,
                broken: None,
            },
        ]
    }
}

/// Returns an error and its causes in one line.
fn in_words(error: &ApiError) -> String {
    let causes = error.causes.iter();
    std::iter::once(&error.message).chain(causes).map(String::as_str).collect::<Vec<_>>().join(": ")
}

/// Returns what a person has to know of a disk's state.
pub(super) fn what_to_say(disk: &Disk) -> Option<String> {
    if let Some(broken) = &disk.broken {
        return Some(format!("{}: {broken}", disk.role));
    }
    let percent = disk.fill_percent.filter(|percent| *percent >= FULL_SOON)?;
    Some(format!(
        "{}: its {} is {percent} % full, with {} on the host; it breaks where the host's disk has no \
         room for the rest",
        disk.role,
        disk.kind,
        ByteSize::from_bytes(disk.allocated)
    ))
}
