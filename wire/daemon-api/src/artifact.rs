//! Images and kernels as the API shows them.

use banger_types::{Digest, ImageConfig, ImageName, KernelName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How the source of an image or kernel begins that is a client's own file.
pub const FILE_SOURCE: &str = "import:";

/// Body of `POST /v1/images`: begins an import, to be followed by the upload of a tar stream
/// (plain, gzip, zstd or xz) to the operation: a root file system, an OCI layout, what `docker save`
/// writes, or a bundle of `rootfs.ext4` and `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    /// The image's name.
    #[schema(value_type = String)]
    pub name: ImageName,
    /// Where it comes from, for people: `mmdebstrap:bookworm`, `import:rootfs.tar.zst`.
    pub source: String,
    /// The kernel that VMs of this image boot unless told otherwise.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub default_kernel: Option<KernelName>,
    /// Replace an image of this name; VMs made from the old one keep it.
    #[serde(default)]
    pub replace: bool,
    /// Which of several container images: its tag, name or digest.
    #[serde(default)]
    pub reference: Option<String>,
    /// Which platform's container image, instead of `linux/amd64`.
    #[serde(default)]
    pub platform: Option<String>,
    /// How the image wants to be run: the `config` of an OCI image configuration.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub config: Option<ImageConfig>,
}

/// Body of `PATCH /v1/images/{name}`: what is to be otherwise; what is not said stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeImage {
    /// The kernel that VMs of this image boot unless told otherwise; an empty text is none.
    #[serde(default)]
    pub default_kernel: Option<String>,
}

/// Body of `POST /v1/registered-images`: gives an ext4 file system of the user's own a name. The
/// file stays where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterImage {
    /// The image's name.
    #[schema(value_type = String)]
    pub name: ImageName,
    /// The file's absolute path.
    pub path: String,
    /// The kernel that VMs of this image boot unless told otherwise.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub default_kernel: Option<KernelName>,
    /// Replace an image of this name; VMs made from the old one keep it.
    #[serde(default)]
    pub replace: bool,
}

/// How an image is exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// A tar of an OCI layout.
    #[default]
    Layout,
    /// A compressed tar of `rootfs.ext4` and `manifest.json`.
    Bundle,
}

/// Body of `POST /v1/kernels`: begins an import, to be followed by the upload of a Debian kernel
/// package to the operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportKernel {
    /// The kernel's name.
    #[schema(value_type = String)]
    pub name: KernelName,
    /// Where it comes from, for people: `apt:linux-image-6.12.117+deb12-cloud-amd64=6.12.117-1`.
    pub source: String,
    /// Replace a kernel of this name.
    #[serde(default)]
    pub replace: bool,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Image {
    /// Name.
    #[schema(value_type = String)]
    pub name: ImageName,
    /// Identity of this build: the ext4 UUID of its file system.
    pub id: String,
    /// SHA-256 of the uncompressed tar it was built from, lower-case hexadecimal; of several layers
    /// their chain id; empty for a registered image.
    pub sha256: String,
    /// Where it comes from.
    pub source: String,
    /// Size of the file system in bytes.
    pub size: u64,
    /// Bytes that the image takes on the host.
    pub allocated: u64,
    /// Entries (files, directories, links, devices) in it.
    pub entries: u64,
    /// `ID` and `VERSION_ID` of its os-release, where it has one.
    #[serde(default)]
    pub os: Option<String>,
    /// Whether it has an init; without one the agent is PID 1.
    pub has_init: bool,
    /// The kernel that its VMs boot unless told otherwise.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub default_kernel: Option<KernelName>,
    /// How it wants to be run, as the `config` of an OCI image configuration; absent where it is
    /// the root file system of a machine.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub config: Option<ImageConfig>,
    /// The digests of the layers that it was made from, oldest first.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub layers: Vec<Digest>,
    /// The digest of the manifest that it was made from.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub manifest_digest: Option<Digest>,
    /// The user's own file that a registered image is.
    #[serde(default)]
    pub path: Option<String>,
    /// When it was built.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// Names of the VMs made from it.
    #[serde(default)]
    pub used_by: Vec<String>,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Kernel {
    /// Name.
    #[schema(value_type = String)]
    pub name: KernelName,
    /// Release, as `uname -r` prints it.
    pub version: String,
    /// SHA-256 of the package, lower-case hexadecimal.
    pub sha256: String,
    /// Where it comes from.
    pub source: String,
    /// Modules that the initrd loads, in order.
    pub modules: Vec<String>,
    /// Bytes that it takes on the host.
    pub allocated: u64,
    /// When it was imported.
    #[schema(value_type = String)]
    pub imported_at: Timestamp,
    /// Names of the VMs that boot it.
    #[serde(default)]
    pub used_by: Vec<String>,
}
