//! `GET /v1/vms/{vm}/wait`: the answer comes when the VM has ended.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::vm::{Vm, VmState};
use banger_types::VmReference;

use super::Shared;
use crate::server::{Answer, PathPart};

/// Waits until a VM has no machine that runs, and shows it. A daemon that ends shows it as it is then.
#[utoipa::path(
    get,
    path = "/v1/vms/{vm}/wait",
    params(("vm" = String, Path)),
    responses((status = 200, body = Vm), (status = 404, body = ApiError))
)]
pub async fn get(State(api): Shared, PathPart(vm): PathPart<VmReference>) -> Answer<Json<Vm>> {
    // By its id, because its name may be another's by then.
    let id = VmReference::from(&api.services.vm(&vm).await?.id);
    let mut watch = api.services.engine().watch(&id).map_err(|error| error.to_api())?;
    let mut state = watch.state();
    while state.is_some_and(goes_on) {
        tokio::select! {
            changed = watch.changed() => state = changed,
            () = api.end.cancelled() => break,
        }
    }
    Ok(Json(api.services.vm(&id).await?))
}

const fn goes_on(state: VmState) -> bool {
    matches!(state, VmState::Starting | VmState::Running | VmState::Stopping | VmState::Deleting)
}
