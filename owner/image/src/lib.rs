//! Images, kernels, initrds and work disks: everything banger makes before a VM can start.
//!
//! It runs inside the daemon, unprivileged and blocking (call it from a thread that may block). It
//! owns the image store, the kernel store and the initrd cache on disk, and writes ext4 file systems
//! itself, straight from archives: nothing is ever unpacked onto the host or mounted.
#![forbid(unsafe_code)]

mod builder;
pub mod ext4;
mod progress;
pub mod tarball;
mod tools;

pub use builder::{
    BuildError, BuildOptions, BuildPaths, BuiltImage, Limits, OsRelease, build_image, check,
};
pub use progress::{CancelFlag, Cancelled, NoProgress, Progress};
pub use tools::ToolError;
