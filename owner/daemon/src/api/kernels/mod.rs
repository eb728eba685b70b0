//! `/v1/kernels`, one file a method.

pub mod delete;
pub mod get;
pub mod import;
pub mod list;
