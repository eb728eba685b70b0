//! The guest agent: init of the initrd, then a server beside (or as) the image's own init.
//!
//! ```text
//!  kernel ─▶ /init (boot)   mounts, modules, disks, hand-over
//!              ├─ @banger-late        loads the remaining modules, configures the network, ends
//!              ├─ @banger-supervisor  restarts the server; as PID 1 it also reaps and powers off
//!              │    └─ @banger-agent  serves the host (serve)
//!              └─ exec the image's init, or become the supervisor
//! ```
//!
//! A name that begins with `@` survives systemd's killing at `isolate` and at shutdown
//! (<https://systemd.io/ROOT_STORAGE_DAEMONS>), so the host has an answer until the machine is off.
#![forbid(unsafe_code)]

mod boot;
mod console;
mod power;
mod role;
pub mod serve;
mod supervise;

pub use role::{Role, run};
