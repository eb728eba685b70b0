//! What a test may leave behind in the machine, looked at before and after it.
//!
//! The kernel takes some things down after the call that asked for it has returned (a loop device
//! whose last user closed it, a process that was killed), so what is left is looked at again for a
//! while before it is called a leftover.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use banger_guest_client::AgentClient;

use crate::session::{Command, MARK};

/// The script that lists it all; its lines are compared as they are.
const SCRIPT: &str = include_str!("../host/inventory");
/// How long one look may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often, and after which pause, what is left is looked at again.
const LOOKS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(700);

/// What there is, with how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory(BTreeMap<String, usize>);

impl Inventory {
    /// Looks.
    pub async fn take(client: &AgentClient) -> Result<Self> {
        let command = Command::new(["/bin/sh", "-c", SCRIPT])?;
        let (output, status) = command.collect(client, PATIENCE).await?;
        let status = status.context("looking at what a test left took too long")?;
        let text = String::from_utf8_lossy(&output);
        ensure!(status.shell_code() == 0, "look at what a test left: {}", text.trim());
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut inventory = Self::default();
        for line in text.lines() {
            *inventory.0.entry(line.to_owned()).or_default() += 1;
        }
        inventory
    }

    /// What is here that was not there before.
    fn beyond(&self, before: &Self) -> Vec<String> {
        let more = |(line, count): &(&String, &usize)| {
            **count > before.0.get(*line).copied().unwrap_or_default()
        };
        self.0.iter().filter(more).map(|(line, _)| line.clone()).collect()
    }

    /// Looks once at what has come since, but for others' commands.
    pub async fn new_ones(&self, client: &AgentClient) -> Result<Vec<String>> {
        without_commands(client, Self::take(client).await?.beyond(self)).await
    }

    /// Looks until nothing is left of what has come since, or long enough; returns what is left.
    pub async fn leftovers(&self, client: &AgentClient) -> Result<Vec<String>> {
        let mut look = 1;
        loop {
            let left = self.new_ones(client).await?;
            if left.is_empty() || look == LOOKS {
                return Ok(left);
            }
            look += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Leaves out the processes of another's `run` or `shell`, which goes on beside the tests.
async fn without_commands(client: &AgentClient, left: Vec<String>) -> Result<Vec<String>> {
    let pid = |line: &str| Some(line.strip_prefix("process ")?.split_once(' ')?.0.to_owned());
    let files: Vec<String> =
        left.iter().filter_map(|line| Some(format!("/proc/{}/environ", pid(line)?))).collect();
    if files.is_empty() {
        return Ok(left);
    }
    let mark = format!("^{MARK}=");
    let words = ["/bin/grep", "-lzs", &mark].into_iter().chain(files.iter().map(String::as_str));
    // Its exit code tells whether there is one; a process may have ended meanwhile.
    let (output, _) = Command::new(words)?.collect(client, PATIENCE).await?;
    let text = String::from_utf8_lossy(&output).into_owned();
    let is_marked = |line: &String| {
        pid(line).is_some_and(|pid| text.lines().any(|it| it == format!("/proc/{pid}/environ")))
    };
    Ok(left.into_iter().filter(|line| !is_marked(line)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_more_than_before_is_left_over() {
        let before = Inventory::parse("mount at /\nmount at /x\nnft table ip a: counter\n");
        let after = Inventory::parse("mount at /\nmount at /\nprocess 7 sh\n");
        assert_eq!(after.beyond(&before), ["mount at /", "process 7 sh"]);
        assert_eq!(before.beyond(&before), Vec::<String>::new());
    }
}
