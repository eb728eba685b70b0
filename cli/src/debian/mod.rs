//! Fetches a Debian root file system and Debian kernels through the host's own package tools.
//!
//! It runs as the invoking user, because the tools need root or the user's subordinate ids and the
//! host's apt configuration, none of which the daemon has. It hands out streams and files for the
//! daemon and touches neither images nor kernels itself; everything it makes is temporary.
//!
//! ```text
//! host's sources + apt options -> mmdebstrap -> tar on a pipe -> TarStream -> daemon
//! host's apt lists             -> apt-get download -> .deb    -> DownloadedDeb -> daemon
//! ```

mod apt;
mod child;
mod error;
mod image;
mod kernel;
mod sources;
mod supervisor;
mod workplace;

pub use error::DebianError;
pub use image::{ImageRequest, TarStream, image_stream};
pub use kernel::{DownloadedDeb, KNOWN_KERNELS, KernelPackage, KernelRequest, kernel_package};
pub use supervisor::supervise;

/// Receives what the tools say they are doing, a few words at a time.
pub type StageReport = Box<dyn FnMut(&str) + Send>;
