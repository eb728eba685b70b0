//! The serial consoles of VMs that have a VMM.

use banger_guest_client::BoxedStream;
use banger_types::VmReference;

use super::Engine;
use crate::admission::DenyReason;
use crate::error::EngineError;

impl Engine {
    /// Attaches to a VM's serial console as soon as there is a VMM, before there is an agent.
    ///
    /// # Errors
    /// The VM has no VMM, or its VMM is ending.
    pub async fn open_console(&self, vm: &VmReference) -> Result<BoxedStream, EngineError> {
        let view = self.view(vm)?;
        let Some(process) = view.process else {
            let reason = DenyReason::NotRunning(view.record.state);
            return Err(EngineError::Denied { vm: view.record.name.clone(), reason });
        };
        Ok(process.console().await?)
    }
}
