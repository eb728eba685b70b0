//! firewalld keeps its rules to itself (its table has an owner, and a reload writes it anew), so it
//! is asked for a place for the bridge: its zone `trusted`, which lets all pass to banger's tables.

use std::path::Path;
use std::time::Duration;

use crate::tool::Tool;
use crate::{HostError, Result};

const PATHS: &[&str] = &["/usr/bin/firewall-cmd"];
/// firewalld's own, while it runs.
const RUNNING: &str = "/run/firewalld.pid";
const LIMIT: Duration = Duration::from_secs(30);

fn ask(argument: &str) -> Result<(bool, String)> {
    let outcome = Tool::of(PATHS, &["--zone=trusted", argument], LIMIT).run()?;
    Ok((outcome.status.success(), outcome.error))
}

/// Puts a bridge into the zone until firewalld is reloaded, or takes it out; returns whether it was
/// otherwise. Nothing is done where firewalld does not run.
pub(super) fn trust(bridge: &str, is_trusted: bool) -> Result<bool> {
    if !Tool::is_there(PATHS) || !Path::new(RUNNING).exists() {
        return Ok(false);
    }
    if ask(&format!("--query-interface={bridge}"))?.0 == is_trusted {
        return Ok(false);
    }
    let verb = if is_trusted { "change" } else { "remove" };
    match ask(&format!("--{verb}-interface={bridge}"))? {
        (true, _) => Ok(true),
        (false, error) => Err(HostError::of("ask firewalld to trust or to forget", bridge)(error)),
    }
}
