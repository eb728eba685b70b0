//! The one error body of the API.

use banger_types::OperationId;
use serde::{Deserialize, Serialize};

/// A stable code: what kind of thing went wrong. Scripts may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not HTTP or JSON of the expected form.
    BadRequest,
    /// A parameter broke its rule.
    BadParams,
    /// Client and daemon speak different API versions.
    BadVersion,
    /// The peer's uid may not use this daemon, or a registry wants other credentials.
    Unauthorized,
    /// No such VM, image, kernel, operation or route.
    NotFound,
    /// A reference matches more than one VM.
    Ambiguous,
    /// The name is taken.
    AlreadyExists,
    /// The VM is not running.
    NotRunning,
    /// The object is used by another one (an image by a VM), or an operation on it is under way.
    InUse,
    /// The host lacks memory, disk or another resource for this.
    InsufficientResources,
    /// The disk is full.
    NoSpace,
    /// Something the host should have is missing (a program, a device, a kernel).
    Unavailable,
    /// An archive, package or disk is broken or hostile.
    BadArchive,
    /// Stored state cannot be read.
    Corrupt,
    /// The guest's agent does not answer.
    AgentUnreachable,
    /// The guest ended before it was ready.
    GuestFailed,
    /// It took longer than its deadline.
    Timeout,
    /// The operation was cancelled.
    Cancelled,
    /// The act itself failed.
    OperationFailed,
    /// A defect of banger.
    Internal,
}

impl ErrorCode {
    /// Returns the code as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::BadParams => "bad_params",
            Self::BadVersion => "bad_version",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::Ambiguous => "ambiguous",
            Self::AlreadyExists => "already_exists",
            Self::NotRunning => "not_running",
            Self::InUse => "in_use",
            Self::InsufficientResources => "insufficient_resources",
            Self::NoSpace => "no_space",
            Self::Unavailable => "unavailable",
            Self::BadArchive => "bad_archive",
            Self::Corrupt => "corrupt",
            Self::AgentUnreachable => "agent_unreachable",
            Self::GuestFailed => "guest_failed",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::OperationFailed => "operation_failed",
            Self::Internal => "internal",
        }
    }

    /// Returns whether the message itself is all there is to know: the request was wrong, or what
    /// it names is not there or not in that state. The daemon's log adds nothing.
    #[must_use]
    pub const fn is_the_callers(self) -> bool {
        matches!(
            self,
            Self::BadParams
                | Self::NotFound
                | Self::Ambiguous
                | Self::AlreadyExists
                | Self::NotRunning
                | Self::InUse
                | Self::InsufficientResources
                | Self::Cancelled
        )
    }

    /// Returns the HTTP status that carries this code.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::BadRequest | Self::BadParams | Self::BadVersion | Self::BadArchive => 400,
            Self::Unauthorized => 403,
            Self::NotFound => 404,
            Self::Ambiguous
            | Self::AlreadyExists
            | Self::NotRunning
            | Self::InUse
            | Self::Cancelled => 409,
            Self::InsufficientResources | Self::NoSpace => 507,
            Self::Unavailable | Self::AgentUnreachable => 503,
            Self::Timeout => 504,
            Self::Corrupt | Self::GuestFailed | Self::OperationFailed | Self::Internal => 500,
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// What went wrong, for a program and for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ApiError {
    /// The stable code.
    pub code: ErrorCode,
    /// What failed, on what: one sentence without a final period.
    pub message: String,
    /// The causes, outermost first; each one line, made printable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do next, where banger knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The request this belongs to; the daemon's log lines carry the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub op_id: Option<OperationId>,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl ApiError {
    /// Makes an error without causes or hint.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hint: None, op_id: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the chain of causes below `error`, `error` itself not included.
    #[must_use]
    pub fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut cause = error.source();
        while let Some(error) = cause {
            self.causes.push(error.to_string());
            cause = error.source();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_and_wire_form_agree() {
        for code in [ErrorCode::BadParams, ErrorCode::AgentUnreachable, ErrorCode::NoSpace] {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{code}\""));
        }
    }
}
