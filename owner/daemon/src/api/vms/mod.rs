//! `/v1/vms`: the VMs and what can be done to them, one file a method; what reads or carries more is
//! beside this directory.

pub mod change;
pub mod create;
pub mod delete;
pub mod get;
pub mod kill;
pub mod list;
pub mod rename;
pub mod restart;
pub mod start;
pub mod stop;

use banger_daemon_api::operation::OperationStarted;
use banger_engine::{EngineError, Started};

use crate::api::{Accepted, accepted};

/// Answers with an act that has begun, or says why it has not.
pub(super) fn begun(outcome: Result<Started, EngineError>) -> Accepted {
    let started = outcome.map_err(|error| error.to_api())?;
    let started =
        OperationStarted { operation: started.operation.snapshot(), joined: started.joined };
    Ok(accepted(started))
}
