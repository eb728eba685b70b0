//! QEMU's monitor (QMP, QEMU `docs/interop/qmp-spec.txt`): commands with their answers, and events.

use std::collections::VecDeque;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Most events that are kept for who has not asked yet.
const MOST_EVENTS: usize = 256;

/// A connection to one QEMU, used by one task.
#[derive(Debug)]
pub(crate) struct Monitor {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    events: VecDeque<Value>,
}

impl Monitor {
    /// Reads the greeting and leaves negotiation mode.
    pub(crate) async fn negotiate(stream: UnixStream) -> Result<Self> {
        let (reader, writer) = stream.into_split();
        let lines = BufReader::new(reader).lines();
        let mut monitor = Self { lines, writer, events: VecDeque::new() };
        let greeting = monitor.message().await?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU's monitor greeted with {greeting}");
        }
        monitor.execute("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    async fn message(&mut self) -> Result<Value> {
        let line = self.lines.next_line().await.context("read from QEMU's monitor")?;
        let line = line.context("QEMU closed its monitor")?;
        serde_json::from_str(&line).context("read QEMU's monitor")
    }

    /// Runs a command and returns its answer.
    pub(crate) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.writer.write_all(line.as_bytes()).await.context("write to QEMU's monitor")?;
        loop {
            let mut message = self.message().await?;
            if let Some(refusal) = message.get("error") {
                bail!("QEMU refused {command}: {}", refusal["desc"].as_str().unwrap_or_default());
            }
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            self.keep(message);
        }
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() == MOST_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Waits for an event for which `wanted` gives a value; forgets all others before it.
    pub(crate) async fn event<T>(
        &mut self,
        mut wanted: impl FnMut(&str, &Value) -> Option<T>,
    ) -> Result<T> {
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.message().await?,
            };
            let name = event["event"].as_str().unwrap_or_default();
            if let Some(value) = wanted(name, &event["data"]) {
                return Ok(value);
            }
        }
    }

    /// Waits until the migration that was begun is over.
    pub(crate) async fn migrated(&mut self) -> Result<()> {
        let status = self
            .event(|name, data| {
                let status = data["status"].as_str()?;
                let over = matches!(status, "completed" | "failed" | "cancelled");
                (name == "MIGRATION" && over).then(|| status.to_owned())
            })
            .await?;
        if status != "completed" {
            // Some versions end without another word.
            let info = self.execute("query-migrate", json!({})).await.unwrap_or_default();
            let why = info["error-desc"].as_str().unwrap_or("QEMU's monitor gives no reason");
            bail!("the transfer of the machine's state {status}: {why}");
        }
        Ok(())
    }

    /// Asks for an event at every step of a migration.
    pub(crate) async fn announce_migration(&mut self) -> Result<()> {
        let capability = json!({ "capability": "events", "state": true });
        let arguments = json!({ "capabilities": [capability] });
        self.execute("migrate-set-capabilities", arguments).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays QEMU: says `script` whatever it is told.
    async fn meet(script: &str) -> Result<Monitor> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let script = script.to_owned();
        tokio::spawn(async move {
            let _ = theirs.write_all(script.as_bytes()).await;
            let _ = theirs.shutdown().await;
            let mut sink = Vec::new();
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut theirs, &mut sink).await;
        });
        Monitor::negotiate(ours).await
    }

    const HELLO: &str = "{\"QMP\":{}}\n{\"return\":{}}\n";

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_no_monitor_is_refused() {
        for script in ["", "\n", "{}\n", "SSH-2.0\r\n", "{\"QMP\":{}}\n", "{\"QMP\":{}}\n{\"ret"] {
            assert!(meet(script).await.is_err(), "{script:?}");
        }
        let error = meet("{\"QMP\":{}}\n{\"error\":{\"desc\":\"no\"}}\n").await.unwrap_err();
        assert!(error.to_string().contains("no"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_transfer_ends_well_or_says_why() {
        let event = |status: &str| {
            format!("{{\"event\":\"MIGRATION\",\"data\":{{\"status\":\"{status}\"}}}}\n")
        };
        let good = format!("{HELLO}{}{}", event("active"), event("completed"));
        meet(&good).await.unwrap().migrated().await.unwrap();
        let why = "{\"return\":{\"error-desc\":\"full\"}}\n";
        let bad = format!("{HELLO}{}{why}", event("failed"));
        let error = meet(&bad).await.unwrap().migrated().await.unwrap_err();
        assert!(error.to_string().contains("full"), "{error}");
        for answer in ["", "{\"return\":{}}\n"] {
            let silent = format!("{HELLO}{}{answer}", event("failed"));
            let error = meet(&silent).await.unwrap().migrated().await.unwrap_err().to_string();
            assert!(error.contains("no reason") && !error.contains("null"), "{error}");
        }
        assert!(meet(HELLO).await.unwrap().migrated().await.is_err());
    }
}
