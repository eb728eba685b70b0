//! Tests against a real `bangerd` process.
#![forbid(unsafe_code)]

mod http;
mod imports;
mod process;
mod support;
