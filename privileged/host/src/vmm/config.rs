//! `vm.json`, what Firecracker makes a machine of (`--config-file`; its docs/getting-started.md and
//! src/firecracker/swagger/firecracker.yaml). Paths are those of the jail.

use banger_gates::request::{Disk, Launch};
use serde_json::json;

use super::VSOCK_SOCKET;

/// The kernel in the jail's root.
pub(super) const KERNEL: &str = "vmlinux";
/// The initrd in the jail's root.
pub(super) const INITRD: &str = "initrd";
/// This file in the jail's root.
pub(super) const CONFIG: &str = "vm.json";

/// A disk's name in the jail's root: no name that the jailer or Firecracker make.
pub(super) fn disk_name(disk: &Disk) -> String {
    format!("disk-{}", disk.id.as_str())
}

/// The file of a machine.
pub(super) fn of(launch: &Launch) -> Vec<u8> {
    let disk = |disk: &Disk| {
        json!({
            "drive_id": disk.id.as_str(),
            "path_on_host": format!("/{}", disk_name(disk)),
            "is_root_device": disk.is_root,
            // Else the guest is told of no cache, and what it flushes stays in the host's memory.
            "cache_type": "Writeback",
            "is_read_only": disk.is_read_only,
            "rate_limiter": disk.rate_limiter,
        })
    };
    let interfaces = launch.tap.iter().map(|(tap, mac)| {
        json!({
            "iface_id": "eth0",
            "host_dev_name": tap.as_str(),
            "guest_mac": mac.as_ref().map(ToString::to_string),
        })
    });
    let vsock = launch.vsock.as_ref();
    // What a machine does not have is null.
    let machine = json!({
        "boot-source": {
            "kernel_image_path": format!("/{KERNEL}"),
            "initrd_path": launch.initrd.as_ref().map(|_| format!("/{INITRD}")),
            "boot_args": launch.arguments.as_str(),
        },
        "drives": launch.disks.iter().map(disk).collect::<Vec<_>>(),
        "machine-config": { "vcpu_count": launch.vcpus.get(), "mem_size_mib": launch.memory.get() },
        "network-interfaces": interfaces.collect::<Vec<_>>(),
        "vsock": vsock.map(|(cid, _)| json!({ "guest_cid": cid.get(), "uds_path": VSOCK_SOCKET })),
        "balloon": launch.balloon,
        "entropy": launch.has_entropy.then(|| json!({})),
    });
    machine.to_string().into_bytes()
}
