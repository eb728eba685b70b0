//! Other names for VMs.

use banger_daemon_api::vm::Vm;
use banger_types::{VmName, VmReference};

use super::Engine;
use crate::error::EngineError;
use crate::vm::Change;

impl Engine {
    /// Gives a VM another name, after what is under way, and returns it. One that runs is told: it is
    /// its host name, too. A name that it has already is told once more.
    ///
    /// # Errors
    /// The name is another VM's, or is about to be.
    pub async fn rename(&self, vm: &VmReference, name: VmName) -> Result<Vm, EngineError> {
        self.order_any_change(vm, Change::Name(name)).await
    }
}
