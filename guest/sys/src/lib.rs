//! The guest's only unsafe code: system calls that rustix does not wrap safely.
//!
//! Each file owns one family: `spawn` starts a process between fork and exec, `signals` waits for
//! signals as PID 1 does, `vsock` makes the listening socket, `entropy` credits random bytes,
//! `watch` registers a descriptor with tokio, `memory` gives mapped pages back, `resize` grows a file
//! system.

mod entropy;
mod memory;
mod resize;
mod signals;
mod spawn;
mod vsock;
mod watch;

pub use entropy::credit_entropy;
pub use memory::release_program_pages;
pub use resize::grow_ext4;
pub use signals::{SignalSet, WaitedSignal, first_realtime_signal, send_signal};
pub use spawn::{Child, ChildPlan, Identity, spawn};
pub use vsock::{VMADDR_CID_HOST, accept_vsock, listen_vsock};
pub use watch::watch;
