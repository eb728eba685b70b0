//! Follows the daemon's operations, shows their progress, and cancels them on a signal.

use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::operation::{Operation, OperationStarted, OperationState};
use banger_daemon_api::routes;

use crate::client::{ByteStream, Client, ClientError};
use crate::error::CliError;
use crate::interrupt::{Interrupt, Interrupts};

/// How an operation ended for us.
#[derive(Debug)]
pub enum Followed {
    /// It succeeded.
    Succeeded,
    /// It failed, and undid what it had made.
    Failed(ApiError),
    /// Somebody else cancelled it.
    Cancelled,
    /// A signal made us cancel it; `undone` unless it was quicker, or is another client's.
    Interrupted {
        /// The signal.
        interrupt: Interrupt,
        /// Whether everything that it had made is undone.
        undone: bool,
    },
}

impl Followed {
    /// Returns the error of an end that is no success; `what` names the work.
    pub fn into_result(self, what: &str) -> Result<(), CliError> {
        match self {
            Self::Succeeded => Ok(()),
            Self::Failed(error) => Err(error.into()),
            Self::Cancelled => Err(CliError::new(format!("{what} was cancelled"))),
            Self::Interrupted { interrupt, undone: true } => {
                Err(CliError::interrupted(interrupt, format!("interrupted, {what} is undone")))
            }
            Self::Interrupted { interrupt, undone: false } => Err(CliError::interrupted(
                interrupt,
                format!("interrupted, {what} goes on without us"),
            )),
        }
    }
}

/// Watches an operation until it ends, showing each snapshot; a signal cancels it, unless we only joined it.
pub async fn follow(
    client: &Client,
    started: OperationStarted,
    show: &dyn Fn(&Operation),
    interrupts: &mut Interrupts,
) -> Result<Followed, CliError> {
    let id = started.operation.id.clone();
    let mut latest = started.operation;
    let mut events: Option<ByteStream> = None;
    let mut interrupted: Option<Interrupt> = None;
    loop {
        show(&latest);
        if latest.state.is_done() {
            return Ok(ended(latest, interrupted));
        }
        let next = next_snapshot(client, &id, &mut events);
        tokio::select! {
            snapshot = next => latest = snapshot.map_err(|error| client.explain(error))?,
            interrupt = interrupts.next() => {
                if started.joined || interrupted.is_some() {
                    return Ok(Followed::Interrupted { interrupt, undone: false });
                }
                interrupted = Some(interrupt);
                match client.delete::<Operation>(&routes::operation(&id, "")).await {
                    Ok(snapshot) => latest = snapshot,
                    Err(error) => return Err(client.explain(error)),
                }
            }
        }
    }
}

fn ended(operation: Operation, interrupted: Option<Interrupt>) -> Followed {
    match (operation.state, interrupted) {
        (OperationState::Succeeded, Some(interrupt)) => {
            Followed::Interrupted { interrupt, undone: false }
        }
        (_, Some(interrupt)) => Followed::Interrupted { interrupt, undone: true },
        (OperationState::Succeeded, None) => Followed::Succeeded,
        (OperationState::Cancelled, None) => Followed::Cancelled,
        (_, None) => {
            let error = operation.error.unwrap_or_else(|| {
                ApiError::new(ErrorCode::Internal, "the operation failed without a reason")
            });
            if error.code == ErrorCode::Cancelled {
                return Followed::Cancelled;
            }
            Followed::Failed(error)
        }
    }
}

async fn next_snapshot(
    client: &Client,
    id: &banger_types::OperationId,
    events: &mut Option<ByteStream>,
) -> Result<Operation, ClientError> {
    let stream = match events {
        Some(stream) => stream,
        None => events.insert(client.stream(&routes::operation(id, "/events")).await?),
    };
    match stream.next_json().await? {
        Some(snapshot) => Ok(snapshot),
        None => Err(ClientError::Lost {
            what: format!("operation {id}"),
            source: "the event stream ended before the operation".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(state: OperationState) -> Operation {
        serde_json::from_value(serde_json::json!({
            "id": "op-0123456789abcdef", "kind": "image_import", "image": "x", "source": "s",
            "state": state, "generation": 1, "stage": "s", "elapsed_ms": 1,
        }))
        .unwrap()
    }

    #[test]
    fn an_operation_that_beat_the_cancellation_is_not_called_undone() {
        let end = ended(operation(OperationState::Succeeded), Some(Interrupt::ControlC));
        assert!(matches!(end, Followed::Interrupted { undone: false, .. }));
        let end = ended(operation(OperationState::Cancelled), Some(Interrupt::ControlC));
        assert!(matches!(end, Followed::Interrupted { undone: true, .. }));
    }

    #[test]
    fn a_failure_without_a_reason_is_still_a_failure() {
        let end = ended(operation(OperationState::Failed), None);
        assert!(matches!(end, Followed::Failed(error) if error.code == ErrorCode::Internal));
        assert!(matches!(ended(operation(OperationState::Succeeded), None), Followed::Succeeded));
    }
}
