//! What a test may leave behind in the machine, looked at before and after it.
//!
//! The kernel takes some things down after the call that asked for it has returned (a loop device
//! whose last user closed it, a process that was killed), so what is left is looked at again when
//! the kernel says that something went, for a while, before it is called a leftover.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use banger_guest_client::AgentClient;

use crate::session::{Command, MARK};

/// The script that lists it all; its lines are compared as they are.
const SCRIPT: &str = include_str!("../host/inventory");
/// How long one look may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Waits for the kernel's word that something listed may be gone; a Perl script, because a shell
/// cannot wait for such events, and `perl-base` is in every Debian.
const WATCH: &str = include_str!("../host/watch");
/// How long what is left may take to go.
const ENOUGH: Duration = Duration::from_secs(8);

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
        let end = Instant::now() + ENOUGH;
        loop {
            let now = Self::take(client).await?;
            let left = without_commands(client, now.beyond(self)).await?;
            let rest = end.saturating_duration_since(Instant::now());
            if left.is_empty() || rest.is_zero() {
                return Ok(left);
            }
            let command = Command::new(now.watch(&left, rest))?;
            let (output, status) = command.collect(client, PATIENCE).await?;
            let status = status.context("waiting for what a test left took too long")?;
            let text = String::from_utf8_lossy(&output);
            ensure!(status.shell_code() == 0, "wait for what a test left: {}", text.trim());
        }
    }

    /// The command that waits until one of these is here less often, or so long.
    fn watch(&self, left: &[String], patience: Duration) -> Vec<String> {
        let seconds = patience.as_secs().max(1).to_string();
        let words = ["/usr/bin/perl", "-e", WATCH, &seconds, SCRIPT].map(str::to_owned);
        let count = |line| self.0.get(line).copied().unwrap_or_default();
        let left = left.iter().map(|line| format!("{} {line}", count(line)));
        words.into_iter().chain(left).collect()
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

    /// Runs the watch on this machine with another look, and returns what it says.
    fn watch(look: &str, before: &str, left: &[String], seconds: u64) -> std::process::Child {
        let words = Inventory::parse(before).watch(left, Duration::from_secs(seconds));
        let words = words.iter().map(|word| if word == SCRIPT { look } else { word });
        let words: Vec<&str> = words.collect();
        std::process::Command::new(words[0])
            .args(&words[1..])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn says(watch: std::process::Child) -> String {
        let output = watch.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_end_of_a_process_is_an_event_and_what_stays_is_waited_for_only_so_long() {
        if banger_harness::find_program("perl").is_none() {
            banger_harness::skip("perl", "the watch is a Perl script");
            return;
        }
        let mut sleep = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let line = format!("process {} sleep", sleep.id());
        let look = format!("[ -e /proc/{}/exe ] && echo '{line}'; echo mount at /", sleep.id());
        let before = format!("{line}\nmount at /\n");
        let left = [line, "mount at /".to_owned()];
        assert_eq!(says(watch(&look, &before, &left, 1)), "still there\n");
        // Nothing but the end of the process wakes this one within the limit of any test.
        let waiting = watch(&look, &before, &left, 3600);
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        assert_eq!(says(waiting), "gone\n");
        // What went before it began to wait is no event any more.
        assert_eq!(says(watch(&look, &before, &left, 3600)), "gone\n");
        let twice = "mount at /\nmount at /\n";
        assert_eq!(says(watch(&look, twice, &left[1..], 3600)), "gone\n");
    }
}
