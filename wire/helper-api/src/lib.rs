//! What `bangerd` and the root helper `bangerd-root` say to each other.
//!
//! A unix stream socket carries one JSON object per line, a request and then its response:
//!
//! ```text
//! {"version":1,"method":"priv.delete_tap","params":{"tap_name":"tap-fc-0123"},"op_id":"op-00ff"}
//! {"ok":true,"result":{"changed":true}}
//! {"ok":false,"error":{"code":"bad_params","message":"...","op_id":"op-00ff"}}
//! ```
//!
//! The parameters here are what a frame can say, unproven: texts and numbers. What they must be is
//! decided by the helper's gates alone. Nothing here does I/O.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

/// What goes over the wire as an object, whose fields are all known: another one is refused.
macro_rules! parameters {
    ($($(#[$meta:meta])* pub struct $name:ident $fields:tt)*) => {$(
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        $(#[$meta])*
        pub struct $name $fields
    )*};
}

mod bytes;
mod disk;
mod envelope;
mod launch;
mod method;
mod network;
mod process;

pub use bytes::*;
pub use disk::*;
pub use envelope::*;
pub use launch::*;
pub use method::*;
pub use network::*;
pub use process::*;
