//! Firecracker: what is executed, the jail it runs in, its start, its process, its sockets.

mod cgroup;
mod config;
mod executable;
mod jail;
mod launch;
mod mounts;
mod process;
mod record;
mod sockets;
mod staging;

pub(crate) use process::Process;
pub(crate) use record::Use;

/// The API socket as Firecracker sees it.
const API_SOCKET: &str = "/run/firecracker.socket";
/// The vsock's socket as Firecracker sees it.
const VSOCK_SOCKET: &str = "/run/vsock.socket";
/// The pipe in a jail's root by which its owner types at the guest's serial console.
const CONSOLE: &str = "console";
