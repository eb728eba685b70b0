//! The HTTP API, one file a method, in a directory where a resource has several;
//! `banger_daemon_api::routes` has the table.

mod agent;
mod blobs;
mod config;
mod console;
mod doctor;
mod images;
mod kernels;
mod leases;
mod logs;
mod openapi;
mod operations;
mod orphans;
mod ping;
mod ports;
mod pulls;
mod set;
mod shutdown;
mod stats;
mod usage;
mod used;
mod vms;
mod wait;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{BoxError, Json, Router};
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::operation::OperationStarted;
use banger_guest_client::BoxedStream;
use banger_helper_client::HelperClient;
use banger_types::OperationId;
use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::arguments::Arguments;
use crate::directories::Directories;
use crate::process::Identity;
use crate::server::{Answer, Failure, Upgrade};
use crate::services::Services;

/// What the handlers share.
#[derive(Debug)]
pub struct Api {
    /// Who this daemon is.
    pub identity: Identity,
    /// Which build it is, as its starter said.
    pub build_id: String,
    /// When it started.
    pub started_at: Timestamp,
    /// Its directories.
    pub directories: Directories,
    /// The parts that do the work.
    pub services: Services,
    /// The root helper, where there is one.
    pub helper: Option<HelperClient>,
    /// Whether this is the installed service.
    pub is_service: bool,
    /// Ends the daemon.
    pub end: CancellationToken,
    /// Connections that have left HTTP.
    pub sessions: TaskTracker,
    open_sessions: Arc<Semaphore>,
}

/// The most connections that have left HTTP at a time: leases and streams to agents.
const SESSIONS_MOST: usize = 512;

/// The answer of an act that has nothing to say: `{}`.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Nothing {}

/// The answer of an act that goes on after it.
type Accepted = Answer<(StatusCode, Json<OperationStarted>)>;

fn accepted(started: OperationStarted) -> (StatusCode, Json<OperationStarted>) {
    (StatusCode::ACCEPTED, Json(started))
}

/// The media type of bytes as they are.
const OCTETS: &str = "application/octet-stream";
/// The media type of one JSON value a line.
const JSON_LINES: &str = "application/x-ndjson";

/// Answers with bytes of a media type as they come; an error cuts the answer without an end.
fn stream<Error: Into<BoxError>>(
    media_type: &'static str,
    chunks: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
) -> Response {
    ([(header::CONTENT_TYPE, media_type)], Body::from_stream(chunks)).into_response()
}

/// The handlers' state.
pub type Shared = axum::extract::State<Arc<Api>>;

impl Api {
    /// Gathers it.
    pub fn new(
        arguments: &Arguments,
        identity: Identity,
        directories: &Directories,
        services: Services,
        end: CancellationToken,
    ) -> Self {
        Self {
            identity,
            build_id: arguments.build_id.clone(),
            started_at: Timestamp::now(),
            directories: directories.clone(),
            services,
            helper: arguments.helper_socket.clone().map(HelperClient::new),
            is_service: arguments.system,
            end,
            sessions: TaskTracker::new(),
            open_sessions: Arc::new(Semaphore::new(SESSIONS_MOST)),
        }
    }

    /// Makes room for one more connection that leaves HTTP, until the permit is dropped.
    fn open_session(&self) -> Answer<OwnedSemaphorePermit> {
        Arc::clone(&self.open_sessions).try_acquire_owned().map_err(|_| {
            let message = format!("{SESSIONS_MOST} sessions are open, the most there may be");
            Failure::new(ErrorCode::Unavailable, message)
                .hint("end some of them: commands and consoles of `banger vm`, `vm run --rm`")
        })
    }

    /// Has a client leave HTTP for `protocol`, and carries bytes between it and the guest's stream that
    /// `opened` gives, until one side or the daemon ends. Nothing is opened for a client that asks for
    /// another protocol.
    async fn carry(
        self: &Arc<Self>,
        upgrade: Upgrade,
        protocol: &'static str,
        opened: impl Future<Output = Result<BoxedStream, ApiError>>,
        op_id: OperationId,
    ) -> Answer<Response> {
        upgrade.expect(protocol)?;
        let guest = opened.await?;
        let session = self.open_session()?;
        let ending = Arc::clone(self);
        self.sessions.spawn(async move {
            if let Some(connection) = upgrade.connection().await {
                let ended = tokio::select! {
                    ended = connection.splice(guest) => ended,
                    () = ending.end.cancelled() => Ok(()),
                };
                if let Err(error) = ended {
                    tracing::debug!(op_id = op_id.as_str(), %error, protocol, "a guest's stream");
                }
            }
            drop(session);
        });
        Ok(Upgrade::answer(protocol))
    }
}

/// Returns the router.
pub fn router(api: Arc<Api>) -> Router {
    let (router, _) = documented_router().split_for_parts();
    router.fallback(no_such_path).method_not_allowed_fallback(no_such_method).with_state(api)
}

/// Returns the router together with the document that describes it: a route cannot be in one and
/// not in the other.
fn documented_router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(ping::get))
        .routes(routes!(shutdown::post))
        .routes(routes!(openapi::get))
        .routes(routes!(operations::list::list))
        .routes(routes!(operations::get::get, operations::cancel::cancel))
        .routes(routes!(operations::events::events))
        .routes(routes!(operations::upload::upload))
        .routes(routes!(images::list::list, images::import::import))
        .routes(routes!(pulls::begin))
        .routes(routes!(blobs::prune))
        .routes(routes!(usage::usage))
        .routes(routes!(images::export::export))
        .routes(routes!(images::promote::promote))
        .routes(routes!(images::register::register))
        .routes(routes!(images::get::get, images::change::change, images::delete::delete))
        .routes(routes!(kernels::list::list, kernels::import::import))
        .routes(routes!(kernels::get::get, kernels::delete::delete))
        .routes(routes!(vms::list::list, vms::create::create))
        .routes(routes!(vms::get::get, vms::change::change, vms::delete::delete))
        .routes(routes!(vms::start::start))
        .routes(routes!(vms::stop::stop))
        .routes(routes!(vms::restart::restart))
        .routes(routes!(set::post))
        .routes(routes!(ports::get::get, ports::change::change))
        .routes(routes!(vms::kill::kill))
        .routes(routes!(vms::rename::rename))
        .routes(routes!(stats::get))
        .routes(routes!(logs::get))
        .routes(routes!(wait::get))
        .routes(routes!(agent::post))
        .routes(routes!(console::post))
        .routes(routes!(leases::post))
        .routes(routes!(doctor::get))
        .routes(routes!(orphans::list::list, orphans::remove::remove))
        .routes(routes!(config::list::list, config::set::set))
}

async fn no_such_path(request: Request) -> Failure {
    let path: String = request.uri().path().chars().take(200).collect();
    Failure::new(ErrorCode::NotFound, format!("there is nothing at {path:?}"))
        .hint("GET /openapi.json lists all paths")
}

async fn no_such_method(request: Request) -> Failure {
    let path: String = request.uri().path().chars().take(200).collect();
    Failure::new(ErrorCode::NotFound, format!("{path:?} does not take {}", request.method()))
        .hint("GET /openapi.json lists all paths and their methods")
}
