//! `/v1/operations`: long work, watched and cancelled, one file a method.

pub mod cancel;
pub mod events;
pub mod get;
pub mod list;
pub mod upload;

use banger_daemon_api::error::ErrorCode;
use banger_engine::OperationHandle;
use banger_types::OperationId;

use crate::api::Api;
use crate::server::{Answer, Failure};

fn find(api: &Api, id: &OperationId) -> Answer<OperationHandle> {
    api.services.operations().get(id).ok_or_else(|| {
        Failure::new(ErrorCode::NotFound, format!("there is no operation {id}"))
            .hint("an operation is kept for ten minutes after its end")
    })
}

fn ending() -> Failure {
    Failure::new(ErrorCode::Unavailable, "bangerd is ending").hint("try again")
}
