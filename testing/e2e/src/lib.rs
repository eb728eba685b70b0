//! Tests of the whole of banger through its command line; see `tests/e2e`.
#![forbid(unsafe_code)]
