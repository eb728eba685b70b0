//! The host's only unsafe code: ioctls of root that no safe crate wraps.
//!
//! Each file owns one device: [`device_mapper`] makes block devices of others, [`loop_device`] makes
//! them of files. All of them take checked values and say in their errors what was done to what.

pub mod device_mapper;
mod ioctl;
pub mod loop_device;
