//! This tier's tests.
use std::process::ExitCode;

use anyhow::Result;

use crate::cache::Cache;

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Runs the tests.
#[expect(clippy::unused_async, reason = "to come")]
pub async fn run(_cache: &Cache, options: &Options) -> Result<ExitCode> {
    let _ = &options.filter;
    Ok(ExitCode::SUCCESS)
}
