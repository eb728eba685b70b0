//! `/v1/images` and `/v1/registered-images`, one file a method.

pub mod change;
pub mod delete;
pub mod export;
pub mod get;
pub mod import;
pub mod list;
pub mod promote;
pub mod register;
