//! What a VM uses, and a word in time about disks that fill up.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use banger_daemon_api::stats::{GuestUse, HostUse, VmStats};
use banger_guest_client::GuestChannel;
use banger_types::{VmId, VmReference};
use jiff::Timestamp;

use super::{Engine, LastHandle, shown};
use crate::error::EngineError;
use crate::guest;
use crate::shared::Shared;
use crate::vm::View;

/// Over how long the CPU is measured.
const SAMPLE: Duration = Duration::from_millis(250);
/// How long a guest may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks at the disks of the machines that run.
const BETWEEN_LOOKS: Duration = Duration::from_secs(30);
/// A disk that has been told of is told of again after this many percent more.
const SAID_AGAIN: u8 = 5;

impl Engine {
    /// Measures what a VM uses; takes a moment. A guest that does not answer is no failure.
    pub async fn stats(&self, vm: &VmReference) -> Result<VmStats, EngineError> {
        let view = self.view(vm)?;
        let (host, guest, disks) =
            tokio::join!(self.host_use(&view), guest_use(&view), self.show_disks(&view.record));
        let (guest, guest_problem) = match guest {
            Some(Ok(guest)) => (Some(guest), None),
            Some(Err(problem)) => (None, Some(problem)),
            None => (None, None),
        };
        let record = &view.record;
        Ok(VmStats {
            id: record.id.clone(),
            name: record.name.clone(),
            state: record.state,
            measured_at: Timestamp::now(),
            host,
            guest,
            guest_problem,
            disks,
        })
    }

    async fn host_use(&self, view: &View) -> Option<HostUse> {
        let process = view.process.as_ref()?;
        let (pid, facts) = (process.identity().pid, &self.shared.host);
        let (before, began) = (facts.cpu_time(pid)?, tokio::time::Instant::now());
        tokio::time::sleep(SAMPLE).await;
        let (after, elapsed) = (facts.cpu_time(pid)?, began.elapsed());
        let spent = after.saturating_sub(before).as_micros();
        let spec = &view.record.spec;
        Some(HostUse {
            pid,
            cpu_time_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
            cpu_milli: u64::try_from(spent * 1000 / elapsed.as_micros().max(1)).unwrap_or(u64::MAX),
            vcpus: spec.vcpus.get(),
            memory_bytes: facts.resident(pid),
            memory_limit_bytes: spec.memory_mib.bytes(),
        })
    }

    /// Looks at the disks of the machines that run, for as long as the engine is there, and logs a
    /// warning about those that break or will soon be full.
    pub fn watch_disks(&self) {
        let last: Weak<LastHandle> = Arc::downgrade(&self._last);
        tokio::spawn(async move {
            let mut said = HashMap::new();
            loop {
                tokio::time::sleep(BETWEEN_LOOKS).await;
                let Some(last) = last.upgrade() else { return };
                let engine = Self { shared: Arc::clone(&last.0), _last: last };
                for (vm, warning) in engine.look_at_disks(&mut said).await {
                    tracing::warn!(%vm, disk = warning, "a disk needs a look");
                }
            }
        });
    }

    /// Returns what is to be said now of disks of machines that run, given what has been said.
    pub(crate) async fn look_at_disks(&self, said: &mut HashMap<VmId, u8>) -> Vec<(VmId, String)> {
        let shared: &Shared = &self.shared;
        let running: Vec<View> = shared
            .table()
            .vms
            .values()
            .map(|entry| entry.view.borrow().clone())
            .filter(|view| view.process.is_some())
            .collect();
        said.retain(|vm, _| running.iter().any(|view| view.record.id == *vm));
        let mut warnings = Vec::new();
        for view in running {
            let id = &view.record.id;
            for disk in self.show_disks(&view.record).await {
                let Some(warning) = shown::what_to_say(&disk) else { continue };
                // A broken one is said once, like a full one that gets no fuller.
                let level =
                    if disk.broken.is_some() { u8::MAX } else { disk.fill_percent.unwrap_or(0) };
                if said
                    .get(id)
                    .is_none_or(|last| level >= last.saturating_add(SAID_AGAIN) && level > *last)
                {
                    said.insert(id.clone(), level);
                    warnings.push((id.clone(), warning));
                }
            }
        }
        warnings
    }
}

/// Asks the guest; `None` where there is none, else what it says or why it says nothing.
async fn guest_use(view: &View) -> Option<Result<GuestUse, String>> {
    let channel: Arc<dyn GuestChannel> = view.process.as_ref()?.channel();
    Some(match tokio::time::timeout(PATIENCE, guest::stats(&channel)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the agent took longer than {} s", PATIENCE.as_secs())),
    })
}
