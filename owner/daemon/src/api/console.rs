//! `POST /v1/vms/{vm}/console`: a byte stream between a client and a guest's serial console.
//!
//! What the guest prints is the guest's own: whoever prints it has to make it harmless.

use axum::extract::State;
use axum::response::Response;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::routes::CONSOLE_PROTOCOL;
use banger_types::VmReference;

use super::Shared;
use crate::server::{Answer, OpId, PathPart, Upgrade};

/// Attaches to the serial console: what the guest prints from now on comes, what is sent is typed. It
/// ends with the VM.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/console",
    params(("vm" = String, Path)),
    responses(
        (status = 101, description = "Bytes of the console follow"),
        (status = 404, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn post(
    State(api): Shared,
    PathPart(vm): PathPart<VmReference>,
    OpId(op_id): OpId,
    upgrade: Upgrade,
) -> Answer<Response> {
    let engine = api.services.engine();
    let opened = async { engine.open_console(&vm).await.map_err(|error| error.to_api()) };
    api.carry(upgrade, CONSOLE_PROTOCOL, opened, op_id).await
}
