//! What the helper is asked to launch, made of a plan. Pure.

use std::path::Path;

use banger_engine::seams::{DiskFormat, DiskLimits, LaunchPlan, Nic, VmmError};
use banger_helper_api::{
    Balloon, Drive, Jailer, LaunchFirecrackerParams, Limits, RateLimiter, TokenBucket,
};

use super::files::RuntimeFiles;

/// The guest's context id: each Firecracker's vsock is a world of its own, so all have the same.
const CONTEXT_ID: u32 = 3;
/// Memory that the VMM may take on top of its guest's, in MiB: for itself, and for the page cache of
/// its disks, which counts in its cgroup and of which the kernel takes back what it needs.
const OVERHEAD_MIB: u64 = 128;
/// Processes and threads: the VMM's, one a virtual CPU, and one or two at its start.
const THREADS: u32 = 16;
/// What the guest's kernel is told of the machine. `reboot=k` restarts by the keyboard controller,
/// which ends Firecracker; `i8042.no*` and `8250.nr_uarts=1` spare it looking for what is not there.
const ARGUMENTS: &str = "console=ttyS0 quiet reboot=k panic=-1 pci=off 8250.nr_uarts=1 \
    i8042.noaux i8042.nomux i8042.dumbkbd";

/// The programs and the jail.
#[derive(Debug)]
pub(super) struct Jail<'a> {
    pub(super) firecracker: &'a str,
    pub(super) jailer: String,
    pub(super) jails: &'a Path,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Makes the parameters of `priv.launch_firecracker`.
pub(super) fn parameters(
    plan: &LaunchPlan,
    initrd: &Path,
    files: &RuntimeFiles,
    jail: &Jail<'_>,
) -> Result<LaunchFirecrackerParams, VmmError> {
    let memory = u64::from(plan.memory.mib());
    let mut drives = Vec::with_capacity(plan.disks.len());
    for disk in &plan.disks {
        if disk.image.format != DiskFormat::Raw {
            return Err(invalid(&disk.image.path, "Firecracker reads raw disks only"));
        }
        drives.push(Drive {
            id: disk.role.chars().filter(char::is_ascii_alphanumeric).collect(),
            path: text(&disk.image.path)?,
            read_only: disk.read_only,
            is_root: disk.role == "root",
            rate_limiter: rate_limiter(&disk.limits),
        });
    }
    let (tap, mac) = match &plan.nic {
        Some(Nic::Tap { name, mac, .. }) => (name.clone(), Some(mac_text(*mac))),
        // There is none of QEMU's here.
        Some(Nic::User { .. }) | None => (String::new(), None),
    };
    Ok(LaunchFirecrackerParams {
        binary_path: jail.firecracker.to_owned(),
        vm_id: plan.id.as_str().to_owned(),
        socket_path: text(&files.api)?,
        log_path: text(&plan.console_log)?,
        metrics_path: String::new(),
        kernel_image_path: text(&plan.vmlinux)?,
        initrd_path: text(initrd)?,
        kernel_args: format!("{ARGUMENTS} {}", plan.kernel_args),
        drives,
        tap_device: tap,
        guest_mac: mac,
        vsock_path: text(&files.vsock)?,
        vsock_cid: CONTEXT_ID,
        vcpu_count: u32::from(plan.vcpus.get()),
        memory_mib: memory,
        network: None,
        jailer: Some(Jailer {
            binary: jail.jailer.clone(),
            chroot_base_dir: text(jail.jails)?,
            uid: jail.uid,
            gid: jail.gid,
        }),
        // Gives the host nothing by itself; it lets memory be taken back later.
        balloon: Some(Balloon { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: 0 }),
        entropy: true,
        limits: Some(Limits {
            memory_max_mib: Some(memory.saturating_add(OVERHEAD_MIB.max(memory / 16))),
            cpu_percent: None,
            pids_max: Some(THREADS.saturating_add(u32::from(plan.vcpus.get()))),
            file_size: None,
            open_files: None,
        }),
    })
}

/// A bucket for each limit, filled each second: a guest may do a second's worth at once, no more.
fn rate_limiter(limits: &DiskLimits) -> Option<RateLimiter> {
    let bucket = |size| TokenBucket { size, refill_time: 1000, one_time_burst: None };
    (!limits.is_unlimited()).then(|| RateLimiter {
        bandwidth: limits.bandwidth.map(|rate| bucket(rate.get())),
        ops: limits.ops.map(|rate| bucket(u64::from(rate.get()))),
    })
}

fn mac_text([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

fn text(path: &Path) -> Result<String, VmmError> {
    path.to_str().map(str::to_owned).ok_or_else(|| invalid(path, "the path is not UTF-8"))
}

fn invalid(path: &Path, problem: &'static str) -> VmmError {
    VmmError::Io {
        act: format!("describing {} to Firecracker", path.display()),
        source: std::io::Error::new(std::io::ErrorKind::InvalidInput, problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_bucket_a_second() {
        assert_eq!(rate_limiter(&DiskLimits::default()), None);
        let bandwidth = Some((1 << 20).try_into().unwrap());
        let limiter = rate_limiter(&DiskLimits { bandwidth, ops: None }).unwrap();
        let bucket = TokenBucket { size: 1 << 20, refill_time: 1000, one_time_burst: None };
        assert_eq!(limiter, RateLimiter { bandwidth: Some(bucket), ops: None });
        let ops = Some(500.try_into().unwrap());
        let limiter = rate_limiter(&DiskLimits { bandwidth, ops }).unwrap();
        assert_eq!(limiter.ops.map(|bucket| bucket.size), Some(500));
    }
}
