//! Tests against a real `bangerd` process.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, and their SKIP lines"
)]

mod http;
mod imports;
mod process;
mod support;
