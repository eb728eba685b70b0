//! A gate's no.

use banger_helper_api::ErrorCode;

use crate::Name;

/// Which parameter was refused and why. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}: {reason}")]
pub struct Refusal {
    /// The code that the peer gets.
    pub code: ErrorCode,
    /// The parameter's name on the wire.
    pub parameter: Name,
    /// The rule that it breaks.
    pub reason: String,
}

impl Refusal {
    /// A refusal with the code of most: `bad_params`.
    pub fn new(parameter: Name, reason: impl Into<String>) -> Self {
        Self { code: ErrorCode::BadParams, parameter, reason: reason.into() }
    }

    /// Refuses a parameter that breaks a rule.
    ///
    /// # Errors
    /// It does.
    pub fn when(is_broken: bool, parameter: Name, reason: impl Into<String>) -> Result<(), Self> {
        if is_broken { Err(Self::new(parameter, reason)) } else { Ok(()) }
    }

    /// The same with another code.
    #[must_use]
    pub fn with_code(self, code: ErrorCode) -> Self {
        Self { code, ..self }
    }
}
