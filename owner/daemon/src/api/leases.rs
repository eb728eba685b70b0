//! `POST /v1/leases`: VMs that live no longer than a client's connection.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::Response;
use banger_daemon_api::daemon::LEASE_HEADER;
use banger_daemon_api::error::ApiError;
use banger_daemon_api::routes::LEASE_PROTOCOL;

use super::Shared;
use crate::server::{Answer, Upgrade};

/// Opens a lease and holds it until the connection closes, however that comes about.
#[utoipa::path(
    post,
    path = "/v1/leases",
    responses((status = 101, description = "The header banger-lease has the lease's id"), (status = 400, body = ApiError))
)]
pub async fn post(State(api): Shared, upgrade: Upgrade) -> Answer<Response> {
    upgrade.expect(LEASE_PROTOCOL)?;
    let session = api.open_session()?;
    let lease = api.services.engine().lease_opened();
    let mut response = Upgrade::answer(LEASE_PROTOCOL);
    if let Ok(value) = HeaderValue::from_str(lease.as_str()) {
        response.headers_mut().insert(LEASE_HEADER, value);
    }
    let holder = Arc::clone(&api);
    api.sessions.spawn(async move {
        if let Some(connection) = upgrade.connection().await {
            tokio::select! {
                () = connection.closed() => {}
                // A daemon that ends cannot keep a lease, and the next one does not know it.
                () = holder.end.cancelled() => {}
            }
        }
        // The deletions are operations of their own, which the daemon's end waits for.
        let deletions = holder.services.engine().lease_closed(&lease).await;
        tracing::info!(lease = lease.as_str(), vms = deletions.len(), "lease closed");
        drop(session);
    });
    Ok(response)
}
