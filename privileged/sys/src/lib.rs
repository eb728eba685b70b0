//! The host's only unsafe code: ioctls of root that no safe crate wraps, and descriptors that were
//! there before the process began.
//!
//! Each file owns one thing: [`device_mapper`] makes block devices of others, [`loop_device`] makes
//! them of files, [`tun`] makes taps, [`listen_fds`] takes the sockets that systemd passed,
//! [`as_file_user`] lends a thread a user's eyes, [`unshare_mounts`] gives it mounts of its own,
//! [`keep_little_memory`] and [`give_memory_back`] keep the process small. All of them take checked
//! values and say in their errors what was done to what.

pub mod device_mapper;
mod file_user;
mod ioctl;
pub mod listen_fds;
pub mod loop_device;
mod memory;
mod namespace;
pub mod tun;

pub use file_user::as_file_user;
pub use memory::{give_memory_back, keep_little_memory};
pub use namespace::unshare_mounts;
