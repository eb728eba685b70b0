//! What the engine asks of a guest's agent. The answers are hostile input: capped by the client,
//! and kept only after control characters are taken out.

use std::sync::Arc;
use std::time::Duration;

use banger_agent_api::{
    ConfigureCall, ExitStatus, HealthReply, SetIdentityCall, printable_excerpt,
};
use banger_daemon_api::stats::GuestUse;
use banger_daemon_api::vm::MainExit;
use banger_guest_client::{AgentClient, ClientError, Deadlines, GuestChannel};
use banger_types::VmName;

use crate::error::EngineError;

/// Most characters of a text that the guest gives and the store keeps.
const MAX_TEXT: usize = 128;

/// What the guest's own clean power-off needs to kill, sync and unmount by force.
const FORCE_TIME: Duration = Duration::from_secs(10);

/// Asks who the guest is; its texts come back printable and short.
pub(crate) async fn health(channel: &Arc<dyn GuestChannel>) -> Result<HealthReply, EngineError> {
    let mut reply = AgentClient::new(Arc::clone(channel)).health().await?;
    for text in
        [&mut reply.agent_version, &mut reply.boot_id, &mut reply.kernel, &mut reply.hostname]
    {
        *text = printable_excerpt(text, MAX_TEXT);
    }
    Ok(reply)
}

/// Asks what the guest uses.
pub(crate) async fn stats(channel: &Arc<dyn GuestChannel>) -> Result<GuestUse, ClientError> {
    let reply = AgentClient::new(Arc::clone(channel)).stats().await?;
    Ok(GuestUse {
        load_milli: reply.load_milli,
        processes: reply.processes,
        memory_total_bytes: reply.memory_total_kib.saturating_mul(1024),
        memory_available_bytes: reply.memory_available_kib.saturating_mul(1024),
        root_total_bytes: reply.root_total_bytes,
        root_free_bytes: reply.root_free_bytes,
        work_total_bytes: reply.work_total_bytes,
        work_free_bytes: reply.work_free_bytes,
    })
}

/// Sets the guest's clock and stirs its random number generator.
pub(crate) async fn greet(channel: &Arc<dyn GuestChannel>) -> Result<(), ClientError> {
    let entropy: String = (0..2).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
    let identity = SetIdentityCall {
        hostname: None,
        time_nanos: u64::try_from(jiff::Timestamp::now().as_nanosecond()).ok(),
        entropy: entropy.parse().ok(),
    };
    AgentClient::new(Arc::clone(channel)).set_identity(identity).await
}

/// Tells the guest its name.
pub(crate) async fn set_name(
    channel: &Arc<dyn GuestChannel>,
    name: VmName,
) -> Result<(), ClientError> {
    let identity = SetIdentityCall { hostname: Some(name), ..SetIdentityCall::default() };
    AgentClient::new(Arc::clone(channel)).set_identity(identity).await
}

/// Tells the guest what to run.
pub(crate) async fn configure(
    channel: &Arc<dyn GuestChannel>,
    call: ConfigureCall,
) -> Result<(), ClientError> {
    AgentClient::new(Arc::clone(channel)).configure(call).await
}

/// Waits for the main process to end; returns nothing where the guest cannot tell.
pub(crate) async fn main_exit(channel: &Arc<dyn GuestChannel>) -> Result<MainExit, ClientError> {
    let status = AgentClient::new(Arc::clone(channel)).wait_main().await?;
    let signal = match status {
        ExitStatus::Code(_) => None,
        ExitStatus::Signal(number) => Some(number),
    };
    Ok(MainExit { code: status.shell_code(), signal })
}

/// Asks the guest to write everything to its disks and to power off; returns once it has begun.
pub(crate) async fn power_off(
    channel: &Arc<dyn GuestChannel>,
    grace: Duration,
) -> Result<(), ClientError> {
    let deadlines = Deadlines { answer: grace, sync: grace, ..Deadlines::default() };
    let agent = AgentClient::with_deadlines(Arc::clone(channel), deadlines);
    agent.sync().await?;
    // The agent's own force leaves clean disks, the host's does not: it must come first.
    agent.power_off(grace.saturating_sub(FORCE_TIME).max(grace / 2)).await
}
