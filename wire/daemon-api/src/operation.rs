//! Long work: creating, starting, stopping and deleting VMs, importing images and kernels.

use banger_types::{ImageName, KernelName, OciReference, OperationId, VmId, VmName};
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// What an operation does, and on what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OperationKind {
    /// Creates and starts a VM.
    VmCreate {
        /// The new VM's id.
        #[schema(value_type = String)]
        vm: VmId,
        /// The new VM's name.
        #[schema(value_type = String)]
        name: VmName,
    },
    /// Starts a stopped VM.
    VmStart {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmId,
    },
    /// Stops a VM cleanly, or by force after its deadline.
    VmStop {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmId,
    },
    /// Stops and starts a VM.
    VmRestart {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmId,
    },
    /// Changes the size and shape of a stopped VM.
    VmSet {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmId,
    },
    /// Deletes a VM and its disks.
    VmDelete {
        /// The VM.
        #[schema(value_type = String)]
        vm: VmId,
    },
    /// Builds an image from an uploaded tar stream.
    ImageImport {
        /// The image's name.
        #[schema(value_type = String)]
        image: ImageName,
        /// Where the tar stream comes from.
        source: String,
    },
    /// Makes an image of one in a registry.
    ImagePull {
        /// The image's name.
        #[schema(value_type = String)]
        image: ImageName,
        /// What is pulled.
        #[schema(value_type = String)]
        reference: OciReference,
    },
    /// Unpacks an uploaded kernel package.
    KernelImport {
        /// The kernel's name.
        #[schema(value_type = String)]
        kernel: KernelName,
        /// Where the package comes from.
        source: String,
    },
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Waits for its upload (`PUT /v1/operations/{id}/upload`), or for its turn.
    Pending,
    /// Under way.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended with an error; everything it made is undone.
    Failed,
    /// Cancelled; everything it made is undone.
    Cancelled,
}

impl OperationState {
    /// Returns whether the operation has ended.
    #[must_use]
    pub const fn is_done(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// One of several things that an operation receives at once: a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OperationPart {
    /// Bytes that are here.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// A snapshot of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Operation {
    /// The operation's id, the `op_id` of its log lines.
    #[schema(value_type = String)]
    pub id: OperationId,
    /// What it does.
    #[serde(flatten)]
    pub kind: OperationKind,
    /// How far it is.
    pub state: OperationState,
    /// Counts changes of this operation, so that a reader can wait for the next.
    pub generation: u64,
    /// The stage under way, in words (`waiting for the guest`).
    pub stage: String,
    /// Bytes done in this stage, where it counts bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<u64>,
    /// Bytes in all in this stage, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// The parts of this stage, where it has some: a pull's layers, the lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<OperationPart>,
    /// Milliseconds since it began, until it ended.
    pub elapsed_ms: u64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

/// Answer of a request that began an operation, or joined one already under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OperationStarted {
    /// The operation.
    pub operation: Operation,
    /// True where another client began it: do not upload, only watch.
    #[serde(default)]
    pub joined: bool,
}
