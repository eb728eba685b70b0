//! Requests and responses, whole frames.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The one version of this protocol.
pub const PROTOCOL_VERSION: u32 = 1;

/// The longest request in bytes, its newline not counted.
pub const LONGEST_FRAME: usize = 64 << 10;

/// The longest request of `priv.write_ext4_files`, whose files it carries.
pub const LONGEST_WRITE_FRAME: usize = 16 << 20;

/// A request; `params` is read only when the method is known.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`PROTOCOL_VERSION`]; a request without one is of no version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// A name of [`crate::Method`].
    pub method: String,
    /// The method's parameters; none are an empty object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Box<RawValue>>,
    /// The operation that this is part of, for logs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub op_id: String,
}

/// A response: `ok` says which of the other two is there.
#[derive(Debug, Serialize, Deserialize)]
pub struct Response {
    /// Whether it was done.
    pub ok: bool,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// Why it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<HelperError>,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelperError {
    /// What kind of failure it is.
    pub code: ErrorCode,
    /// The operation, the object and the cause, for people.
    pub message: String,
    /// The request's `op_id`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub op_id: String,
}

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The peer is neither root nor the owner.
    Unauthorized,
    /// A line that is no request, or too long.
    BadRequest,
    /// A version that is not spoken.
    BadVersion,
    /// A method that there is not.
    UnknownMethod,
    /// Parameters that do not decode, or that a gate refused.
    BadParams,
    /// A path that a gate refused, where the path is all there is.
    InvalidPath,
    /// A process that may not be touched.
    InvalidPid,
    /// A signal that may not be sent.
    InvalidSignal,
    /// The act itself failed.
    OperationFailed,
    /// The act was done, and its result could not be written down.
    MarshalFailed,
}

/// A result that says nothing but that it was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}
