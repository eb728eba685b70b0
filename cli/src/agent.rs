//! Calls to a guest's agent through the daemon, which passes the bytes on.

use banger_agent_api::{
    AgentError, Call, ErrorCode, MAX_REQUEST, MAX_RESPONSE, Outcome, Request, Response,
    printable_excerpt, read_message, write_message,
};
use banger_daemon_api::routes;
use banger_types::VmId;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;

use crate::client::{Client, UpgradedStream};
use crate::error::CliError;

/// The most of a guest's message that is shown, in characters.
const MESSAGE_LIMIT: usize = 500;

/// Why a call has no answer.
#[derive(Debug)]
pub enum CallError {
    /// The agent refused.
    Agent(AgentError),
    /// It was not reached, or broke off.
    Way(CliError),
}

/// Makes a call; returns its answer and the stream on which frames follow.
pub async fn call<T: DeserializeOwned>(
    client: &Client,
    vm: &VmId,
    call: Call,
) -> Result<(T, UpgradedStream), CliError> {
    try_call(client, vm, call).await.map_err(|error| match error {
        CallError::Agent(error) => refusal(&error),
        CallError::Way(error) => error,
    })
}

/// As [`call`], for those who do something about a refusal.
pub async fn try_call<T: DeserializeOwned>(
    client: &Client,
    vm: &VmId,
    call: Call,
) -> Result<(T, UpgradedStream), CallError> {
    let path = routes::vm(&vm.into(), "/agent");
    let way = CallError::Way;
    let (_, mut stream) = client
        .upgrade(&path, routes::AGENT_PROTOCOL)
        .await
        .map_err(|error| way(client.explain(error)))?;
    write_message(&mut stream, &Request::new(call), MAX_REQUEST)
        .await
        .map_err(|error| way(CliError::new("cannot ask the guest's agent").because(&error)))?;
    let _ = stream.flush().await;
    let response: Response<T> = read_message(&mut stream, MAX_RESPONSE)
        .await
        .map_err(|error| way(CliError::new("the guest's agent does not answer").because(&error)))?;
    match response.outcome {
        Outcome::Ok(answer) => Ok((answer, stream)),
        Outcome::Error(error) => Err(CallError::Agent(error)),
    }
}

fn refusal(error: &AgentError) -> CliError {
    let mut made = CliError::new(printable_excerpt(&error.to_string(), MESSAGE_LIMIT));
    made.guest_code = Some(error.code);
    match error.code {
        ErrorCode::NoSuchUser => {
            made.hint("--user takes a name or a number of the machine's own /etc/passwd")
        }
        _ => made,
    }
}
