//! How a VM's main process ends.
//!
//! The guest waits for someone to have heard it before it powers off, so whoever sees the VMM's end
//! finds it here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_daemon_api::vm::MainExit;

use super::Body;
use crate::error::EngineError;
use crate::guest;

/// Between two tries to listen to a guest whose agent is there and breaks off.
const AGAIN: Duration = Duration::from_millis(500);

/// What the guest said, kept until the VM has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeardExit(Arc<Mutex<Option<MainExit>>>);

impl HeardExit {
    fn set(&self, exit: Option<MainExit>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = exit;
    }

    fn get(&self) -> Option<MainExit> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins to listen for the end of a running VM's main process, if it has one.
pub(crate) fn watch(body: &mut Body) {
    // One of its own: an earlier boot's may still be told something.
    body.heard_exit = HeardExit::default();
    let Some(process) = body.process.as_ref().filter(|_| body.record.programs.main.is_some())
    else {
        return;
    };
    let (channel, heard, vm) = (process.channel(), body.heard_exit.clone(), body.id().clone());
    tokio::spawn(async move {
        // Until the channel closes, which is the machine's end by force or by its own failure.
        while channel.wait_ready().await.is_ok() {
            match guest::main_exit(&channel).await {
                Ok(exit) => {
                    tracing::info!(%vm, %exit, "the main process ended");
                    heard.set(Some(exit));
                    return;
                }
                Err(error) => {
                    let causes = EngineError::from(error).to_api().causes.join(": ");
                    tracing::info!(%vm, causes, "the wait for the main process's end broke off");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    });
}

/// Puts what was heard into the record of a VM that has ended.
pub(super) fn record(body: &mut Body) {
    if body.record.programs.main.is_some() {
        body.record.main_exit = body.heard_exit.get();
    }
}
