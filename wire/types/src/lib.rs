//! Newtypes that both sides of every banger socket share.
//!
//! Each type's only constructor is its check (`FromStr` / `TryFrom`), and its
//! `Deserialize` goes through that constructor, so a value of the type is proof
//! that the rule in its documentation holds. No I/O happens here.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod digest;
mod image_config;
mod name;
mod network;
mod oci_reference;
mod port;
mod rate;
mod reference;
mod registry;
mod size;
mod string_type;

pub use digest::{Digest, DigestError};
pub use image_config::{ImageConfig, ImageConfigError, ImageConfigFields};
pub use name::{ImageName, KernelName, NameError, VmName};
pub use network::{GroupError, GroupName, Subnet, SubnetError};
pub use oci_reference::{DEFAULT_REGISTRY, OciReference, OciReferenceError};
pub use port::{PortProtocol, Publication, PublicationError, PublishedPort};
pub use rate::{BytesPerSecond, OpsPerSecond};
pub use reference::{LeaseId, OperationId, VmId, VmReference};
pub use registry::{RegistryAddress, RegistryError, RegistryHost, RegistryMirror};
pub use size::{ByteSize, DiskSize, MemoryMib, SizeError, VcpuCount};
