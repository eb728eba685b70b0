//! Parameters of the methods on Firecracker and its jail.

use serde::{Deserialize, Serialize};

use crate::Network;

parameters! {
    /// Parameters of `priv.resolve_firecracker_binary`.
    pub struct ResolveFirecrackerBinaryParams {
        /// An absolute path, or blank for the first of the fixed list.
        #[serde(default)]
        pub requested: String,
    }
}

/// Result of `priv.resolve_firecracker_binary`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveFirecrackerBinaryResult {
    /// An absolute path that `priv.launch_firecracker` takes.
    pub path: String,
}

parameters! {
    /// Parameters of `priv.launch_firecracker`.
    pub struct LaunchFirecrackerParams {
        /// The firecracker to run.
        pub binary_path: String,
        /// The VM, and its jail's name.
        pub vm_id: String,
        /// Where the API socket is to be found, below the runtime directory.
        pub socket_path: String,
        /// The file for the serial console and Firecracker's own words, below the state directory.
        pub log_path: String,
        /// A file below the state directory, kept for the original's clients; Firecracker's metrics
        /// are asked for over the API.
        #[serde(default)]
        pub metrics_path: String,
        /// The kernel, below the state directory.
        pub kernel_image_path: String,
        /// The initrd, below the state directory; blank for none.
        #[serde(default)]
        pub initrd_path: String,
        /// The kernel's command line.
        pub kernel_args: String,
        /// The disks.
        pub drives: Vec<Drive>,
        /// The tap; blank for a machine without a network.
        #[serde(default)]
        pub tap_device: String,
        /// The MAC of the machine's side of the tap; Firecracker picks one without.
        pub guest_mac: Option<String>,
        /// Where the vsock's socket is to be found, below the runtime directory; blank for none.
        #[serde(default)]
        pub vsock_path: String,
        /// The machine's context id, 3 or more.
        #[serde(default)]
        pub vsock_cid: u32,
        /// Virtual CPUs.
        pub vcpu_count: u32,
        /// Memory in MiB.
        pub memory_mib: u64,
        /// The bridge that the tap is a port of.
        pub network: Option<Network>,
        /// The jail; a launch without one is refused.
        pub jailer: Option<Jailer>,
        /// A balloon device; none without.
        pub balloon: Option<Balloon>,
        /// Whether the machine has an entropy device.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub entropy: bool,
        /// What its cgroup allows, where there are cgroup v2 controllers.
        pub limits: Option<Limits>,
    }

    /// A disk of the machine.
    pub struct Drive {
        /// Its id, and its name in the jail.
        pub id: String,
        /// A file below the state directory; `/dev/mapper/NAME` of a snapshot for the root disk
        /// only.
        pub path: String,
        /// Whether the machine may only read it.
        #[serde(default)]
        pub read_only: bool,
        /// Whether it holds the root file system.
        #[serde(default)]
        pub is_root: bool,
        /// How fast it may be; as fast as it can without.
        pub rate_limiter: Option<RateLimiter>,
    }

    /// Firecracker's rate limiter.
    #[derive(Copy, Default)]
    pub struct RateLimiter {
        /// Bytes.
        pub bandwidth: Option<TokenBucket>,
        /// Operations.
        pub ops: Option<TokenBucket>,
    }

    /// A bucket that fills with `size` tokens every `refill_time` milliseconds.
    #[derive(Copy)]
    pub struct TokenBucket {
        /// Tokens.
        pub size: u64,
        /// Milliseconds.
        pub refill_time: u64,
        /// Tokens to begin with.
        pub one_time_burst: Option<u64>,
    }

    /// Firecracker's balloon.
    #[derive(Copy)]
    pub struct Balloon {
        /// What it takes from the machine, in MiB.
        pub amount_mib: u64,
        /// Whether it gives way before the machine runs out of memory.
        pub deflate_on_oom: bool,
        /// Seconds between two measurements; 0 for none.
        #[serde(default)]
        pub stats_polling_interval_s: u16,
    }

    /// Limits of a cgroup v2.
    #[derive(Copy, Default)]
    pub struct Limits {
        /// `memory.max` in MiB: the machine's memory and what the VMM itself needs.
        pub memory_max_mib: Option<u64>,
        /// `cpu.max` in hundredths of a CPU.
        pub cpu_percent: Option<u32>,
        /// `pids.max`.
        pub pids_max: Option<u32>,
        /// The largest file that Firecracker may write, in bytes (RLIMIT_FSIZE).
        pub file_size: Option<u64>,
        /// The most files that it may have open (RLIMIT_NOFILE); the jailer's default without.
        pub open_files: Option<u64>,
    }

    /// How Firecracker is jailed.
    pub struct Jailer {
        /// The jailer to run.
        pub binary: String,
        /// The helper's jail directory, no other.
        pub chroot_base_dir: String,
        /// The owner's uid, no other.
        pub uid: u32,
        /// The owner's gid, no other.
        pub gid: u32,
    }
}

/// Result of `priv.launch_firecracker` and `priv.find_firecracker_pid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchResult {
    /// Firecracker's process id on the host.
    pub pid: u32,
}

parameters! {
    /// Parameters of `priv.cleanup_jailer_chroot`.
    pub struct CleanupJailerChrootParams {
        /// `JAILS/firecracker/VM-ID/root`.
        pub chroot_root: String,
    }
}
