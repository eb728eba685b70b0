//! The paths of the API, in one place for the server, the client and the tests.
//!
//! | method and path | body → answer |
//! |---|---|
//! | `GET /v1/ping` | → [`crate::daemon::Ping`] |
//! | `POST /v1/shutdown` | → `{}`; VMs keep running |
//! | `GET /v1/doctor` | → [`crate::daemon::DoctorReport`] |
//! | `GET /v1/orphans?tap=NAME,NAME` | → `[Orphan]`; taps that the firewall names, which only root can see |
//! | `DELETE /v1/orphans?tap=NAME,NAME` | → [`crate::orphan::OrphansRemoved`] |
//! | `GET /v1/config` | → `[Setting]` |
//! | `PATCH /v1/config` | `Setting` → `[Setting]` |
//! | `GET /openapi.json` | → the OpenAPI document |
//! | `POST /v1/leases` | upgrade to [`LEASE_PROTOCOL`]; header [`crate::daemon::LEASE_HEADER`] |
//! | `GET /v1/operations` | → `[Operation]` |
//! | `GET /v1/operations/{id}?generation=G&wait_ms=N` | → `Operation`, at once or when its generation exceeds G |
//! | `GET /v1/operations/{id}/events` | → `Operation` a line until it is done |
//! | `PUT /v1/operations/{id}/upload` | bytes → `{}` |
//! | `DELETE /v1/operations/{id}` | → `Operation`; asks it to end |
//! | `GET /v1/vms` | → `[Vm]` |
//! | `POST /v1/vms` | `CreateVm` → 202 `OperationStarted` |
//! | `GET /v1/vms/{vm}` | → `Vm` |
//! | `PATCH /v1/vms/{vm}` | `ChangeVm` → `Vm` |
//! | `DELETE /v1/vms/{vm}?idle=true` | → 202 `OperationStarted`; idle: refused if it runs, or is about to |
//! | `POST /v1/vms/{vm}/rename` | `RenameVm` → `Vm` |
//! | `POST /v1/vms/{vm}/start` | → 202 `OperationStarted` |
//! | `POST /v1/vms/{vm}/stop` | `StopVm` → 202 `OperationStarted` |
//! | `POST /v1/vms/{vm}/restart` | `StopVm` → 202 `OperationStarted` |
//! | `POST /v1/vms/{vm}/set` | `SetVm` → 202 `OperationStarted` |
//! | `GET /v1/vms/{vm}/ports` | → `VmPorts` |
//! | `POST /v1/vms/{vm}/ports` | `ChangePorts` → `Vm` |
//! | `POST /v1/vms/{vm}/kill` | `KillVm` → `{}` |
//! | `GET /v1/vms/{vm}/stats` | → `VmStats` |
//! | `GET /v1/vms/{vm}/logs?follow=true` | → console bytes |
//! | `GET /v1/vms/{vm}/wait` | → `Vm`, once it does not run |
//! | `POST /v1/vms/{vm}/console` | upgrade to [`CONSOLE_PROTOCOL`]: the serial console's bytes |
//! | `POST /v1/vms/{vm}/agent` | upgrade to [`AGENT_PROTOCOL`]: bytes of the guest agent's protocol |
//! | `GET /v1/images`, `GET /v1/images/{name}` | → `[Image]`, `Image` |
//! | `POST /v1/images` | `ImportImage` → 202 `OperationStarted` |
//! | `DELETE /v1/images/{name}` | → `{}` |
//! | `PATCH /v1/images/{name}` | `ChangeImage` → `Image` |
//! | `POST /v1/pulls` | `PullImage` → 202 `OperationStarted` |
//! | `POST /v1/blobs/prune` | `PruneBlobs` → `BlobsPruned` |
//! | `GET /v1/usage` | → `DiskUsage` |
//! | `GET /v1/images/{name}/export?format=layout` | → bytes: a tar of an OCI layout, or a `bundle` |
//! | `POST /v1/images/{name}/promote` | → `Image`; copies a registered image into the store |
//! | `POST /v1/registered-images` | `RegisterImage` → `Image` |
//! | `GET /v1/kernels`, `GET /v1/kernels/{name}` | → `[Kernel]`, `Kernel` |
//! | `POST /v1/kernels` | `ImportKernel` → 202 `OperationStarted` |
//! | `DELETE /v1/kernels/{name}` | → `{}` |
//!
//! `{vm}` is a name, an id or the beginning of an id. Every request may carry the header
//! [`OP_ID_HEADER`]; the answer always does.

/// Name of the daemon's socket in its runtime directory.
pub const SOCKET_NAME: &str = "bangerd.sock";

/// Request and response header with the operation id.
pub const OP_ID_HEADER: &str = "banger-op-id";

/// Request header with the client's [`crate::API_VERSION`]; another number is `bad_version`.
pub const API_VERSION_HEADER: &str = "banger-api-version";

/// `Upgrade` token of the guest agent's byte stream.
pub const AGENT_PROTOCOL: &str = "banger-agent";

/// `Upgrade` token of a serial console's byte stream.
pub const CONSOLE_PROTOCOL: &str = "banger-console";

/// `Upgrade` token of a lease: no bytes flow; the lease ends when the connection closes.
pub const LEASE_PROTOCOL: &str = "banger-lease";

/// `GET`: is the daemon there.
pub const PING: &str = "/v1/ping";
/// `POST`: end the daemon; VMs keep running.
pub const SHUTDOWN: &str = "/v1/shutdown";
/// `GET`: the daemon's checks.
pub const DOCTOR: &str = "/v1/doctor";
/// `GET`, `DELETE`: what belongs to no VM.
pub const ORPHANS: &str = "/v1/orphans";
/// `GET`, `PATCH`: the daemon's settings.
pub const CONFIG: &str = "/v1/config";
/// `POST` with upgrade: hold a lease.
pub const LEASES: &str = "/v1/leases";
/// `GET`: all operations.
pub const OPERATIONS: &str = "/v1/operations";
/// `GET`, `POST`: VMs.
pub const VMS: &str = "/v1/vms";
/// `GET`, `POST`: images.
pub const IMAGES: &str = "/v1/images";
/// `POST`: make an image of one in a registry.
pub const PULLS: &str = "/v1/pulls";
/// `POST`: remove what was fetched and is not needed.
pub const PRUNE_BLOBS: &str = "/v1/blobs/prune";
/// `GET`: what takes the host's disk.
pub const USAGE: &str = "/v1/usage";
/// `POST`: a file of the user's own as an image.
pub const REGISTERED_IMAGES: &str = "/v1/registered-images";
/// `GET`, `POST`: kernels.
pub const KERNELS: &str = "/v1/kernels";

/// Returns the path of operation `id`; `part` is empty or begins with a slash (`/events`).
#[must_use]
pub fn operation(id: &banger_types::OperationId, part: &str) -> String {
    format!("{OPERATIONS}/{id}{part}")
}

/// Returns the path of VM `vm`; `part` is empty or begins with a slash (`/start`).
#[must_use]
pub fn vm(vm: &banger_types::VmReference, part: &str) -> String {
    format!("{VMS}/{vm}{part}")
}

/// Returns the path of image `name`.
#[must_use]
pub fn image(name: &banger_types::ImageName) -> String {
    format!("{IMAGES}/{name}")
}

/// Returns the path of an image's export.
#[must_use]
pub fn image_export(
    name: &banger_types::ImageName,
    format: crate::artifact::ExportFormat,
) -> String {
    let format = match format {
        crate::artifact::ExportFormat::Layout => "layout",
        crate::artifact::ExportFormat::Bundle => "bundle",
    };
    format!("{IMAGES}/{name}/export?format={format}")
}

/// Returns the path that takes a registered image into the store.
#[must_use]
pub fn image_promote(name: &banger_types::ImageName) -> String {
    format!("{IMAGES}/{name}/promote")
}

/// Returns the path of kernel `name`.
#[must_use]
pub fn kernel(name: &banger_types::KernelName) -> String {
    format!("{KERNELS}/{name}")
}
