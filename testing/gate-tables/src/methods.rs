//! The parameters of every method, and a request of each that passes.

use banger_helper_api::{ErrorCode, Method};
use serde_json::{Value, json};

use crate::{Kind, Places};

/// A parameter of a method.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Where it stands in the parameters (RFC 6901).
    pub pointer: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The code of a refusal.
    pub code: ErrorCode,
}

fn table(list: &[(&'static str, Kind)]) -> Vec<Parameter> {
    let code = |kind| match kind {
        Kind::Pid | Kind::AskedPid => ErrorCode::InvalidPid,
        Kind::Signal => ErrorCode::InvalidSignal,
        Kind::ChrootRoot => ErrorCode::InvalidPath,
        _ => ErrorCode::BadParams,
    };
    list.iter()
        .map(|(pointer, kind)| Parameter { pointer, kind: *kind, code: code(*kind) })
        .collect()
}

/// Every parameter of a method.
#[must_use]
pub fn parameters(method: Method) -> Vec<Parameter> {
    match method {
        Method::EnsureBridge => table(&[
            ("/bridge_name", Kind::BridgeName),
            ("/bridge_ip", Kind::BridgeIp),
            ("/cidr", Kind::Cidr),
            ("/dns_port", Kind::DnsPort),
        ]),
        Method::CreateTap => table(&[
            ("/bridge_name", Kind::BridgeName),
            ("/bridge_ip", Kind::BridgeIp),
            ("/cidr", Kind::Cidr),
            ("/tap_name", Kind::TapName),
            ("/guest_mac", Kind::Mac),
            ("/guest_ip", Kind::GuestIp),
            ("/group", Kind::Group),
            ("/isolated", Kind::Flag),
            ("/return_fd", Kind::Flag),
        ]),
        Method::DeleteTap => table(&[("/tap_name", Kind::TapName)]),
        Method::SyncResolverRouting => {
            table(&[("/bridge_name", Kind::BridgeName), ("/server_addr", Kind::Resolver)])
        }
        Method::ClearResolverRouting => table(&[("/bridge_name", Kind::OptionalBridgeName)]),
        Method::EnsureNat => table(&[
            ("/guest_ip", Kind::NatIp),
            ("/tap", Kind::UsedTap),
            ("/enable", Kind::Flag),
            ("/allow_lan", Kind::Flag),
        ]),
        Method::CreateDmSnapshot => table(&[
            ("/rootfs_path", Kind::StatePath),
            ("/cow_path", Kind::WrittenPath),
            ("/dm_name", Kind::DmName),
        ]),
        Method::CleanupDmSnapshot => table(&[
            ("/base_loop", Kind::OptionalLoop),
            ("/cow_loop", Kind::OptionalLoop),
            ("/dm_name", Kind::OptionalDmName),
            ("/dm_dev", Kind::OptionalDmDevice),
        ]),
        Method::RemoveDmSnapshot => table(&[("/target", Kind::RemoveTarget)]),
        Method::FsckSnapshot => table(&[("/dm_dev", Kind::DmDevice)]),
        Method::ReadExt4File => {
            table(&[("/image_path", Kind::ImagePath), ("/guest_path", Kind::GuestPath)])
        }
        Method::WriteExt4Files => table(&[
            ("/image_path", Kind::WrittenImagePath),
            ("/files/0/guest_path", Kind::GuestPath),
            ("/files/0/data", Kind::Bytes),
            ("/files/0/mode", Kind::Mode),
        ]),
        Method::ResolveFirecrackerBinary => table(&[("/requested", Kind::OptionalFirecracker)]),
        Method::LaunchFirecracker => launch(),
        Method::EnsureSocketAccess => {
            let mut list = table(&[("/socket_path", Kind::SocketPath), ("/label", Kind::Label)]);
            list[0].code = ErrorCode::InvalidPath;
            list
        }
        Method::FindFirecrackerPid => table(&[("/api_sock", Kind::AskedSocket)]),
        Method::KillProcess => table(&[("/pid", Kind::Pid)]),
        Method::SignalProcess => table(&[("/pid", Kind::Pid), ("/signal", Kind::Signal)]),
        Method::ProcessRunning => {
            table(&[("/pid", Kind::AskedPid), ("/api_sock", Kind::AskedSocket)])
        }
        Method::CleanupJailerChroot => table(&[("/chroot_root", Kind::ChrootRoot)]),
    }
}

fn launch() -> Vec<Parameter> {
    table(&[
        ("/binary_path", Kind::Firecracker),
        ("/vm_id", Kind::VmId),
        ("/socket_path", Kind::LinkPlace),
        ("/log_path", Kind::LogPath),
        ("/metrics_path", Kind::OptionalLogPath),
        ("/kernel_image_path", Kind::StatePath),
        ("/initrd_path", Kind::OptionalStatePath),
        ("/kernel_args", Kind::KernelArguments),
        ("/drives/0/id", Kind::DriveId),
        ("/drives/0/path", Kind::DrivePath),
        ("/drives/0/read_only", Kind::Flag),
        ("/drives/0/is_root", Kind::Flag),
        ("/drives/0/rate_limiter/bandwidth/size", Kind::Number),
        ("/drives/0/rate_limiter/bandwidth/refill_time", Kind::Number),
        ("/drives/0/rate_limiter/bandwidth/one_time_burst", Kind::Number),
        ("/drives/0/rate_limiter/ops/size", Kind::Number),
        ("/drives/0/rate_limiter/ops/refill_time", Kind::Number),
        ("/drives/0/rate_limiter/ops/one_time_burst", Kind::Number),
        ("/tap_device", Kind::OptionalTapName),
        ("/guest_mac", Kind::Mac),
        ("/vsock_path", Kind::OptionalLinkPlace),
        ("/vsock_cid", Kind::ContextId),
        ("/vcpu_count", Kind::Vcpus),
        ("/memory_mib", Kind::Memory),
        ("/network/bridge_name", Kind::BridgeName),
        ("/network/bridge_ip", Kind::BridgeIp),
        ("/network/cidr", Kind::Cidr),
        ("/jailer/binary", Kind::Jailer),
        ("/jailer/chroot_base_dir", Kind::JailBase),
        ("/jailer/uid", Kind::Uid),
        ("/jailer/gid", Kind::Gid),
        ("/balloon/amount_mib", Kind::BalloonMib),
        ("/balloon/deflate_on_oom", Kind::Flag),
        ("/balloon/stats_polling_interval_s", Kind::SmallNumber),
        ("/entropy", Kind::Flag),
        ("/limits/memory_max_mib", Kind::MemoryLimit),
        ("/limits/cpu_percent", Kind::CpuPercent),
        ("/limits/pids_max", Kind::PidsMax),
        ("/limits/file_size", Kind::FileSize),
        ("/limits/open_files", Kind::OpenFiles),
    ])
}

/// Parameters that pass, every one of them given.
#[must_use]
pub fn base(method: Method, places: &Places) -> Value {
    let Places { state, runtime, jails, vmm, living, .. } = places;
    let network = json!({"bridge_name": "br-fc", "bridge_ip": "172.16.0.1", "cidr": "24"});
    let bucket = json!({"size": 1, "refill_time": 1, "one_time_burst": 1});
    match method {
        Method::EnsureBridge => json!({
            "bridge_name": "br-fc", "bridge_ip": "172.16.0.1", "cidr": "24", "dns_port": 42069,
        }),
        Method::CreateTap => json!({
            "bridge_name": "br-fc", "bridge_ip": "172.16.0.1", "cidr": "24",
            "tap_name": "tap-fc-a", "guest_mac": "06:00:ac:10:00:02", "guest_ip": "172.16.0.2",
            "group": "a", "isolated": false, "return_fd": false,
        }),
        Method::DeleteTap => json!({"tap_name": "tap-fc-a"}),
        Method::SyncResolverRouting => {
            json!({"bridge_name": "br-fc", "server_addr": "127.0.0.1:42069"})
        }
        Method::ClearResolverRouting => json!({"bridge_name": "br-fc"}),
        Method::EnsureNat => {
            json!({"guest_ip": "172.16.0.2", "tap": "tap-fc-a", "enable": true, "allow_lan": true})
        }
        Method::CreateDmSnapshot => json!({
            "rootfs_path": format!("{state}/image"), "cow_path": format!("{state}/cow"),
            "dm_name": "fc-rootfs-a",
        }),
        Method::CleanupDmSnapshot => json!({
            "base_loop": "/dev/loop1048570", "cow_loop": "/dev/loop1048571",
            "dm_name": "fc-rootfs-a", "dm_dev": "/dev/mapper/fc-rootfs-a",
        }),
        Method::RemoveDmSnapshot => json!({"target": "fc-rootfs-a"}),
        Method::FsckSnapshot => json!({"dm_dev": "/dev/mapper/fc-rootfs-a"}),
        Method::ReadExt4File => {
            json!({"image_path": format!("{state}/image"), "guest_path": "/etc/hostname"})
        }
        Method::WriteExt4Files => json!({
            "image_path": format!("{state}/image"),
            "files": [{"guest_path": "/a", "data": "aGVsbG8=", "mode": 0o600}],
        }),
        Method::ResolveFirecrackerBinary => json!({"requested": format!("{vmm}/firecracker")}),
        Method::LaunchFirecracker => json!({
            "binary_path": format!("{vmm}/firecracker"),
            "vm_id": "vm-1",
            "socket_path": format!("{runtime}/vm-1.sock"),
            "log_path": format!("{state}/log"),
            "metrics_path": format!("{state}/metrics"),
            "kernel_image_path": format!("{state}/kernel"),
            "initrd_path": format!("{state}/initrd"),
            "kernel_args": "console=ttyS0",
            "drives": [{
                "id": "rootfs", "path": format!("{state}/image"), "read_only": false,
                "is_root": true, "rate_limiter": {"bandwidth": bucket, "ops": bucket},
            }],
            "tap_device": "tap-fc-a",
            "guest_mac": "06:00:ac:10:00:02",
            "vsock_path": format!("{runtime}/vsock.sock"),
            "vsock_cid": 3,
            "vcpu_count": 1,
            "memory_mib": 128,
            "network": network,
            "jailer": {
                "binary": format!("{vmm}/jailer"), "chroot_base_dir": jails,
                "uid": places.owner.0, "gid": places.owner.1,
            },
            "balloon": {
                "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 0,
            },
            "entropy": true,
            "limits": {
                "memory_max_mib": 256, "cpu_percent": 100, "pids_max": 64, "file_size": 1 << 30,
                "open_files": 2048,
            },
        }),
        Method::EnsureSocketAccess => {
            json!({"socket_path": format!("{runtime}/api.sock"), "label": "api"})
        }
        Method::FindFirecrackerPid => json!({"api_sock": format!("{runtime}/machine.sock")}),
        Method::KillProcess => json!({"pid": living.machine}),
        Method::SignalProcess => json!({"pid": living.machine, "signal": "TERM"}),
        Method::ProcessRunning => {
            json!({"pid": living.machine, "api_sock": format!("{runtime}/machine.sock")})
        }
        Method::CleanupJailerChroot => {
            json!({"chroot_root": format!("{jails}/firecracker/vm-1/root")})
        }
    }
}

/// Makes the rest of a request fit a value that means another thing for it.
pub fn fit(method: Method, pointer: &str, params: &mut Value, value: &Value) {
    let Some((parent, name)) = pointer.rsplit_once('/') else { return };
    let fields = params.pointer_mut(parent).and_then(Value::as_object_mut);
    let Some(fields) = fields else { return };
    match (method, name) {
        (Method::CreateTap, "bridge_name" | "bridge_ip") => {
            // Addresses of guests depend on these.
            fields.remove("guest_ip");
            fields.remove("guest_mac");
        }
        (_, "cidr") => {
            fields.remove("guest_ip");
            fields.remove("guest_mac");
            fields["bridge_ip"] = "10.0.0.1".into();
        }
        (Method::CreateTap, "isolated") if *value == Value::Bool(true) => {
            fields.remove("group");
        }
        (Method::EnsureNat, "enable") => fields["allow_lan"] = false.into(),
        (Method::CleanupDmSnapshot, "dm_name") => fields["dm_dev"] = "".into(),
        (Method::CleanupDmSnapshot, "dm_dev") => fields["dm_name"] = "".into(),
        (Method::LaunchFirecracker, "tap_device") if *value == "" => {
            fields.remove("guest_mac");
        }
        (Method::LaunchFirecracker, "memory_mib") => {
            if let Some(limits) = fields["limits"].as_object_mut() {
                limits.remove("memory_max_mib");
            }
        }
        _ => {}
    }
}
