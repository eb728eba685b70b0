//! `DELETE /v1/vms/{vm}`.

use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::OperationStarted;
use banger_types::VmReference;
use serde::Deserialize;

use super::begun;
use crate::api::{Accepted, Shared};
use crate::server::{OpId, PathPart, Query};

/// What of a VM is to be deleted only on a condition.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteWhen {
    /// Not if it runs, or if anything is under way that could make it.
    #[serde(default)]
    idle: bool,
}

/// Deletes a VM and its disks, running or not.
#[utoipa::path(
    delete,
    path = "/v1/vms/{vm}",
    params(("vm" = String, Path), DeleteWhen),
    responses(
        (status = 202, body = OperationStarted),
        (status = 404, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn delete(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    Query(when): Query<DeleteWhen>,
    OpId(op_id): OpId,
) -> Accepted {
    let engine = api.services.engine();
    begun(match when.idle {
        true => engine.delete_idle(&vm, op_id).await,
        false => engine.delete(&vm, op_id).await,
    })
}
