//! Request parts as checked types, with the API's own errors.

use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use banger_daemon_api::error::ErrorCode;
use banger_types::OperationId;
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;

use super::failure::Failure;

/// The most bytes of a JSON body.
const JSON_MOST: usize = 1 << 20;

/// How long a JSON body may take to arrive.
const JSON_DEADLINE: Duration = Duration::from_secs(20);

/// A JSON body. Its content type is not looked at: nothing but JSON is taken there.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Failure> {
        let bytes = read_body(request).await?;
        parse(&bytes).map(Self)
    }
}

/// A JSON body that may be empty, which stands for the default.
#[derive(Debug)]
pub struct OptionalJsonBody<T>(pub T);

impl<S: Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJsonBody<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Failure> {
        let bytes = read_body(request).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        parse(&bytes).map(Self)
    }
}

async fn read_body(request: Request) -> Result<bytes::Bytes, Failure> {
    let body = Limited::new(request.into_body(), JSON_MOST).collect();
    match tokio::time::timeout(JSON_DEADLINE, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Failure::new(
            ErrorCode::BadRequest,
            format!("the request's body has more than {JSON_MOST} bytes"),
        )),
        Ok(Err(error)) => {
            Err(Failure::new(ErrorCode::BadRequest, format!("reading the request's body: {error}")))
        }
        Err(_) => Err(Failure::new(
            ErrorCode::Timeout,
            format!("the request's body took longer than {} s", JSON_DEADLINE.as_secs()),
        )),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        let code = match error.classify() {
            serde_json::error::Category::Data => ErrorCode::BadParams,
            _ => ErrorCode::BadRequest,
        };
        let what = if bytes.is_empty() { "the request has no JSON body" } else { "JSON body" };
        Failure::new(code, format!("{what}: {error}"))
    })
}

/// The query as a checked type.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => {
                let reason = rejection.source().map(ToString::to_string).unwrap_or_default();
                Err(Failure::new(ErrorCode::BadParams, format!("query: {reason}")))
            }
        }
    }
}

/// The one variable part of the path as a checked type.
#[derive(Debug)]
pub struct PathPart<T>(pub T);

impl<S: Send + Sync, T> FromRequestParts<S> for PathPart<T>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let text = match axum::extract::Path::<String>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(text)) => text,
            Err(rejection) => {
                return Err(Failure::new(ErrorCode::BadParams, rejection.body_text()));
            }
        };
        text.parse().map(Self).map_err(|error| {
            let shown: String = text.chars().take(80).collect();
            Failure::new(ErrorCode::BadParams, format!("{shown:?} in the path: {error}"))
        })
    }
}

/// The request's operation id: the client's, or a new one.
#[derive(Clone, Debug)]
pub struct OpId(pub OperationId);

impl<S: Sync> FromRequestParts<S> for OpId {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_else(|| Self(OperationId::random())))
    }
}
