//! Images, kernels, initrds and work disks: everything banger makes before a VM can start.
//!
//! It runs inside the daemon, unprivileged and blocking (call it from a thread that may block). It
//! owns the image store, the kernel store and the initrd cache on disk, and writes ext4 file systems
//! itself, straight from archives: nothing is ever unpacked onto the host or mounted.
#![forbid(unsafe_code)]

mod archives;
mod builder;
mod contents;
pub mod ext4;
mod images;
mod initrd;
mod kernel;
mod layers;
mod limits;
mod progress;
mod registered;
mod shelf;
pub mod tarball;
mod tools;
mod work_disk;

pub use archives::{BundleManifest, ContainerError, Export, ExportFormat, Selection};
pub use builder::{
    BuildError, BuildOptions, BuildPaths, BuiltImage, OsRelease, build_image, check,
};
pub use contents::ContentsError;
pub use images::{Image, ImageManifest, ImageStore, ImageStoreError, NewImage};
pub use initrd::{AgentBinary, InitrdError, build_initrd};
pub use kernel::{
    BzImageError, DebError, Kernel, KernelError, KernelManifest, KernelModule, KernelStore,
    ModuleRole, ModulesImage, NewKernel,
};
pub use layers::{
    Layer, LayerMediaType, LayerRecord, LayerSource, LayeredImage, UnknownMediaType, build_layers,
};
pub use limits::Limits;
pub use progress::{CancelFlag, Cancelled, NoProgress, Progress};
pub use shelf::ShelfError;
pub use tools::{ToolError, ToolOutput};
pub use work_disk::{WorkDisk, make_work_disk};
