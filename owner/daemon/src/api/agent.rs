//! `POST /v1/vms/{vm}/agent`: a byte stream between a client and the guest's agent.
//!
//! The daemon does not look into it: client and agent speak the agent's own protocol.

use axum::extract::State;
use axum::response::Response;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::routes::AGENT_PROTOCOL;
use banger_types::VmReference;

use super::Shared;
use crate::server::{Answer, OpId, PathPart, Upgrade};

/// Opens a stream to the agent and carries bytes both ways.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/agent",
    params(("vm" = String, Path)),
    responses(
        (status = 101, description = "Bytes of the guest agent's protocol follow"),
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
    let opened = api.services.open_agent(&vm);
    api.carry(upgrade, AGENT_PROTOCOL, opened, op_id).await
}
