//! A refused or failed request, on its way to the client.

use axum::response::{IntoResponse, Response};
use banger_daemon_api::error::{ApiError, ErrorCode};

/// What a handler returns instead of an answer. The body is written by `server::request`, which
/// knows the operation id.
#[derive(Debug)]
pub struct Failure(pub ApiError);

/// What a handler returns.
pub type Answer<T> = Result<T, Failure>;

impl Failure {
    /// Makes a failure without causes or hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(ApiError::new(code, message))
    }

    /// Adds what to do next.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self(self.0.hint(hint))
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = axum::http::StatusCode::from_u16(self.0.code.http_status())
            .unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}
