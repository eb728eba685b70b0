//! `GET /v1/ping`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::API_VERSION;
use banger_daemon_api::daemon::Ping;

use super::Shared;

/// Says which daemon this is.
#[utoipa::path(get, path = "/v1/ping", responses((status = 200, body = Ping)))]
pub async fn get(State(api): Shared) -> Json<Ping> {
    Json(Ping {
        api_version: API_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build_id: api.build_id.clone(),
        pid: api.identity.pid,
        uid: api.identity.uid,
        started_at: api.started_at,
        state_dir: api.directories.state.display().to_string(),
        cache_dir: api.directories.cache.display().to_string(),
        runtime_dir: api.directories.runtime.display().to_string(),
        vmms: api.services.engine().vmm_names().map(str::to_owned).collect(),
        running_vms: api.services.running_vms(),
        active_operations: api.services.active_operations(),
        // Only for what is chosen where nobody says: a host that does not know it leaves that as it is.
        disk_headroom: api.services.engine().disk_headroom().ok().flatten(),
        open_sessions: u32::try_from(api.sessions.len()).unwrap_or(u32::MAX),
    })
}
