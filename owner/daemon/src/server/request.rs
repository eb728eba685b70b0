//! What every request goes through: operation id, API version, the answer's error body, the log.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use banger_daemon_api::API_VERSION;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::routes::{API_VERSION_HEADER, OP_ID_HEADER};
use banger_types::OperationId;
use futures::FutureExt;

use super::extract::OpId;
use super::failure::Failure;
use super::peer::Peer;

/// Wraps the whole router.
pub async fn handle(mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let peer = request.extensions().get::<Peer>().copied();

    let (op_id, checked) = check_headers(&request);
    let mut response = match checked {
        Ok(()) => {
            request.extensions_mut().insert(OpId(op_id.clone()));
            AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
                Failure::new(ErrorCode::Internal, "the request met a defect of banger")
                    .hint("the daemon's log has the place; please report it")
                    .into_response()
            })
        }
        Err(failure) => failure.into_response(),
    };

    let error = response.extensions_mut().remove::<ApiError>();
    let code = error.as_ref().map(|error| error.code.as_str());
    tracing::info!(
        %method,
        path,
        op_id = op_id.as_str(),
        peer_uid = peer.map(|peer| peer.uid),
        peer_pid = peer.and_then(|peer| peer.pid),
        status = response.status().as_u16(),
        code,
        error = error.as_ref().map(|error| error.message.as_str()),
        duration_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        "request"
    );
    if let Some(error) = error {
        response = with_error_body(response, error, &op_id);
    }
    if let Ok(value) = HeaderValue::from_str(op_id.as_str()) {
        response.headers_mut().insert(OP_ID_HEADER, value);
    }
    response
}

fn check_headers(request: &Request) -> (OperationId, Result<(), Failure>) {
    let headers = request.headers();
    let op_id = match headers.get(OP_ID_HEADER) {
        None => OperationId::random(),
        Some(value) => match value.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(op_id) => op_id,
            None => {
                let failure = Failure::new(
                    ErrorCode::BadParams,
                    format!("header {OP_ID_HEADER} must be `op-` and 16 hexadecimal digits"),
                );
                return (OperationId::random(), Err(failure));
            }
        },
    };
    let version = headers.get(API_VERSION_HEADER);
    let speaks_ours = version.is_none_or(|value| {
        value.to_str().ok().and_then(|text| text.parse::<u32>().ok()) == Some(API_VERSION)
    });
    // `ping` says which version this is, so a client of another one must be able to ask.
    let checked = if speaks_ours || request.uri().path() == banger_daemon_api::routes::PING {
        Ok(())
    } else {
        let theirs = version.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        Err(Failure::new(
            ErrorCode::BadVersion,
            format!(
                "this bangerd speaks API version {API_VERSION}, the client {}",
                theirs.unwrap_or_default()
            ),
        )
        .hint("`banger daemon stop`, then use banger and bangerd of one build"))
    };
    (op_id, checked)
}

fn with_error_body(response: Response, mut error: ApiError, op_id: &OperationId) -> Response {
    error.op_id.get_or_insert_with(|| op_id.clone());
    let (mut parts, _) = response.into_parts();
    let body = serde_json::to_vec(&error).unwrap_or_default();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(body))
}
