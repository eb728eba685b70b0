//! `/v1/vms`: the VMs and what can be done to them.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::operation::OperationStarted;
use banger_daemon_api::vm::{ChangeVm, CreateVm, KillVm, RenameVm, StopVm, Vm};
use banger_engine::{EngineError, Started};
use banger_types::VmReference;
use serde::Deserialize;

use super::{Accepted, Nothing, Shared, accepted};
use crate::server::{Answer, JsonBody, OpId, OptionalJsonBody, PathPart, Query};

/// Lists the VMs.
#[utoipa::path(get, path = "/v1/vms", responses((status = 200, body = Vec<Vm>)))]
pub async fn list(State(api): Shared) -> Json<Vec<Vm>> {
    Json(api.services.engine().list().await)
}

/// Shows a VM.
#[utoipa::path(
    get,
    path = "/v1/vms/{vm}",
    params(("vm" = String, Path)),
    responses((status = 200, body = Vm), (status = 404, body = ApiError))
)]
pub async fn get(State(api): Shared, PathPart(vm): PathPart<VmReference>) -> Answer<Json<Vm>> {
    Ok(Json(api.services.vm(&vm).await?))
}

/// Changes what a VM's guest may on the network, at once where it is on the host's bridge.
#[utoipa::path(
    patch,
    path = "/v1/vms/{vm}",
    params(("vm" = String, Path)),
    request_body = ChangeVm,
    responses(
        (status = 200, body = Vm),
        (status = 400, body = ApiError),
        (status = 404, body = ApiError)
    )
)]
pub async fn change(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    OpId(op_id): OpId,
    JsonBody(change): JsonBody<ChangeVm>,
) -> Answer<Json<Vm>> {
    let changed = api.services.engine().change(&vm, &change, op_id).await;
    Ok(Json(changed.map_err(|error| error.to_api())?))
}

/// Creates a VM and starts it.
#[utoipa::path(
    post,
    path = "/v1/vms",
    request_body = CreateVm,
    responses(
        (status = 202, body = OperationStarted),
        (status = 409, body = ApiError),
        (status = 507, body = ApiError)
    )
)]
pub async fn create(
    State(api): Shared,
    OpId(op_id): OpId,
    JsonBody(request): JsonBody<CreateVm>,
) -> Accepted {
    let operation = api.services.engine().create(request, op_id);
    begun(operation.map(|operation| Started { operation, joined: false }))
}

/// Starts a stopped VM; one that runs stays as it is.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/start",
    params(("vm" = String, Path)),
    responses((status = 202, body = OperationStarted), (status = 404, body = ApiError))
)]
pub async fn start(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    OpId(op_id): OpId,
) -> Accepted {
    begun(api.services.engine().start(&vm, op_id).await)
}

/// Stops a VM; one that is stopped stays as it is.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/stop",
    params(("vm" = String, Path)),
    request_body = Option<StopVm>,
    responses((status = 202, body = OperationStarted), (status = 404, body = ApiError))
)]
pub async fn stop(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    OpId(op_id): OpId,
    OptionalJsonBody(how): OptionalJsonBody<StopVm>,
) -> Accepted {
    begun(api.services.engine().stop(&vm, &how, op_id).await)
}

/// Stops a VM and starts it again.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/restart",
    params(("vm" = String, Path)),
    request_body = Option<StopVm>,
    responses((status = 202, body = OperationStarted), (status = 404, body = ApiError))
)]
pub async fn restart(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    OpId(op_id): OpId,
    OptionalJsonBody(how): OptionalJsonBody<StopVm>,
) -> Accepted {
    begun(api.services.engine().restart(&vm, &how, op_id).await)
}

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

/// Gives a VM another name, running or not.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/rename",
    params(("vm" = String, Path)),
    request_body = RenameVm,
    responses(
        (status = 200, body = Vm),
        (status = 404, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn rename(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    JsonBody(RenameVm { name }): JsonBody<RenameVm>,
) -> Answer<Json<Vm>> {
    let renamed = api.services.engine().rename(&vm, name).await;
    Ok(Json(renamed.map_err(|error| error.to_api())?))
}

/// Sends a signal to the VM's VMM.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/kill",
    params(("vm" = String, Path)),
    request_body = KillVm,
    responses(
        (status = 200, body = Nothing),
        (status = 404, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn kill(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    JsonBody(how): JsonBody<KillVm>,
) -> Answer<Json<Nothing>> {
    api.services.engine().kill(&vm, &how.signal).await.map_err(|error| error.to_api())?;
    Ok(Json(Nothing {}))
}

pub(super) fn begun(outcome: Result<Started, EngineError>) -> Accepted {
    let started = outcome.map_err(|error| error.to_api())?;
    let started =
        OperationStarted { operation: started.operation.snapshot(), joined: started.joined };
    Ok(accepted(started))
}
