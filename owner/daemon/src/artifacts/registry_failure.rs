//! Errors of `banger-registry` as clients see them.

use std::error::Error;

use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_registry::RegistryError;
use banger_types::OciReference;

/// A pull of `reference` failed.
pub fn pull(reference: &OciReference, error: &RegistryError) -> ApiError {
    let registry = reference.registry();
    let (code, hint) = match error {
        RegistryError::Unauthorized { with_credentials: false, .. } => (
            ErrorCode::Unauthorized,
            Some(format!(
                "there may be no such image; if it is private, `docker login {registry}` (or podman, \
                 skopeo) first: banger reads its file"
            )),
        ),
        RegistryError::Unauthorized { .. } => (
            ErrorCode::Unauthorized,
            Some(format!("the credentials for {registry} do not suffice; log in again")),
        ),
        RegistryError::NotFound { .. } => {
            (ErrorCode::NotFound, Some("look at its name and tag".to_owned()))
        }
        RegistryError::Throttled { .. } | RegistryError::Status { status: 429, .. } => {
            (ErrorCode::Unavailable, Some("try again later, or log in to the registry".to_owned()))
        }
        RegistryError::Slow { .. } => {
            (ErrorCode::Timeout, Some("try again: it goes on where it stopped".to_owned()))
        }
        RegistryError::CutOff { .. } => (
            ErrorCode::Unavailable,
            Some(
                "it answers, and its answers break off, also when it is asked again: try again, what \
                 has arrived is kept"
                    .to_owned(),
            ),
        ),
        RegistryError::Transport { .. } | RegistryError::Unusable { .. } => (
            ErrorCode::Unavailable,
            Some(
                "is there a network? A registry without encryption has to be in \
                 `banger config set registry.insecure`; HTTPS_PROXY names a proxy"
                    .to_owned(),
            ),
        ),
        RegistryError::Redirect { .. } => (ErrorCode::OperationFailed, None),
        RegistryError::Status { status: 500.., .. } => (
            ErrorCode::Unavailable,
            Some(
                "it was asked several times, and the trouble is the registry's: try again later; what \
                 has arrived is kept"
                    .to_owned(),
            ),
        ),
        RegistryError::Status { .. } | RegistryError::Protocol { .. } => {
            (ErrorCode::OperationFailed, None)
        }
        RegistryError::Digest { .. } | RegistryError::Manifest { .. } => {
            (ErrorCode::BadArchive, None)
        }
        error if error.is_full() => (
            ErrorCode::NoSpace,
            Some(
                "`banger system df` shows what takes it, `banger image cache prune` frees some"
                    .to_owned(),
            ),
        ),
        RegistryError::Store { .. } | RegistryError::NoRoom { .. } => {
            (ErrorCode::OperationFailed, None)
        }
        RegistryError::Certificates(_) => (
            ErrorCode::Unavailable,
            Some(
                "apt-get install ca-certificates; for an authority of your own: `banger config set \
                 registry.ca_file FILE`"
                    .to_owned(),
            ),
        ),
        RegistryError::Cancelled => (ErrorCode::Cancelled, None),
    };
    let mut api = ApiError::new(code, format!("cannot pull {reference}"));
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        api.causes.push(error.to_string());
        cause = error.source();
    }
    api.hint = hint;
    api
}

/// A failure of the blob store as such.
pub fn store(error: &RegistryError) -> ApiError {
    ApiError::new(ErrorCode::OperationFailed, error.to_string()).caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn who_answered_is_not_asked_for_a_network() {
        let reference = "registry.example/x".parse().unwrap();
        let (place, source) = ("registry.example".to_owned(), Arc::new(std::fmt::Error));
        let hint = |error| pull(&reference, &error).hint.unwrap();
        let cut_off = RegistryError::CutOff { place: place.clone(), source: source.clone() };
        assert!(hint(cut_off).contains("try again"));
        assert!(hint(RegistryError::Transport { place, source }).contains("a network"));
    }
}
