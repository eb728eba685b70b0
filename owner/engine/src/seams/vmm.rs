//! The virtual machine monitor that runs a VM.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use banger_daemon_api::orphan::Orphan;
use banger_daemon_api::vm::{DiskLimits, NetLimits};
use banger_guest_client::{BoxedStream, GuestChannel};
use banger_types::{MemoryMib, OperationId, VcpuCount, VmId, VmName};

use super::root_disk::DiskImage;

/// The VMMs banger drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmKind {
    /// Firecracker under its jailer.
    Firecracker,
    /// QEMU.
    Qemu,
}

/// How guest instructions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    /// By the processor, through `/dev/kvm`.
    Kvm,
    /// By QEMU's translator, in software.
    Tcg,
}

/// A disk as the VMM is to attach it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PlannedDisk {
    /// `root`, `work` or `modules`.
    pub role: String,
    /// The disk.
    pub image: DiskImage,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// How fast it may be.
    #[serde(default)]
    pub limits: DiskLimits,
}

/// The guest's network card.
#[derive(Debug)]
pub enum Nic {
    /// QEMU's user-mode network: no root, no address of its own on the host.
    User {
        /// Whether the guest may open connections to the outside; without it the card leads nowhere.
        outbound: bool,
    },
    /// A tap device.
    Tap {
        /// Its name.
        name: String,
        /// Its open `/dev/net/tun` descriptor, for a VMM that cannot open it itself.
        descriptor: Option<std::os::fd::OwnedFd>,
        /// The card's hardware address.
        mac: [u8; 6],
        /// How fast it may be; none for a VMM that does not [`Vmm::limits_network`].
        limits: NetLimits,
    },
}

/// All a VMM needs to start one VM. Every path is the daemon's own.
#[derive(Debug)]
pub struct LaunchPlan {
    /// The VM.
    pub id: VmId,
    /// The operation that this is part of, for logs.
    pub op_id: OperationId,
    /// Its name (for process titles; the guest learns it from the kernel command line).
    pub name: VmName,
    /// Virtual CPUs.
    pub vcpus: VcpuCount,
    /// Memory.
    pub memory: MemoryMib,
    /// The kernel as a bzImage.
    pub bzimage: PathBuf,
    /// The same kernel as an ELF file.
    pub vmlinux: PathBuf,
    /// The initial RAM disk with the agent.
    pub initrd: PathBuf,
    /// banger's own kernel arguments (`BootConfig::to_kernel_args`); the driver adds those that its
    /// machine needs (console, clock).
    pub kernel_args: String,
    /// The disks, in order of attachment.
    pub disks: Vec<PlannedDisk>,
    /// The network card, if any.
    pub nic: Option<Nic>,
    /// A private, existing directory (0700) for the VM's sockets, named after the beginning of its id
    /// (`VmId::short`), because a socket's path has at most 107 bytes (unix(7)).
    pub runtime_dir: PathBuf,
    /// Where the serial console goes; the driver keeps it below its size cap of 4 MiB by moving the
    /// older half to the same name with `.1` appended. A later start appends.
    pub console_log: PathBuf,
}

/// Names one VMM process beyond reuse of its pid: kept in the store and in `handles.json`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VmmIdentity {
    /// Which VMM.
    pub kind: VmmKind,
    /// How it runs guest instructions.
    pub acceleration: Acceleration,
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since the host's boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
    /// The host's `/proc/sys/kernel/random/boot_id`; after a reboot no pid of before means anything.
    pub host_boot_id: String,
}

/// Whether a VMM process is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmmState {
    /// It runs.
    Alive,
    /// It ended (an unreaped zombie counts), with what is known of why.
    Dead {
        /// One line for people, printable: what went wrong, its last words or the exit status.
        /// `None` where the guest switched itself off or the VMM was told to end: the good ends.
        reason: Option<String>,
    },
}

/// Why an act on a VMM failed.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The VMM or something it needs is missing here.
    #[error("{what} is not usable here: {why}")]
    Unavailable {
        /// What is missing: a program, a device.
        what: String,
        /// Why it cannot be used.
        why: String,
        /// What to do about it.
        hint: String,
    },
    /// A system call failed.
    #[error("{act}")]
    Io {
        /// The act and its object, as a participle: `connecting to the monitor of VM x`.
        act: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The VMM ended before it should.
    #[error("{vmm} ended while {act}: {reason}")]
    Ended {
        /// `QEMU` or `Firecracker`.
        vmm: &'static str,
        /// What it was asked to do.
        act: &'static str,
        /// Its last words, printable.
        reason: String,
    },
    /// The VMM refused a command.
    #[error("{vmm} refused {command}: {message}")]
    Refused {
        /// `QEMU` or `Firecracker`.
        vmm: &'static str,
        /// The command.
        command: String,
        /// The VMM's own words (`fault_message`, QMP `desc`).
        message: String,
    },
    /// It took longer than its deadline.
    #[error("{act} took longer than {seconds} s")]
    Timeout {
        /// The act.
        act: String,
        /// The deadline in seconds.
        seconds: u64,
    },
}

/// What is said where a network card is to be held to a rate and the VMM cannot.
pub(crate) fn no_network_limits(vmm: VmmKind) -> VmmError {
    let vmm = crate::record::vmm_name(vmm);
    VmmError::Unavailable {
        what: "a limit of the network card".to_owned(),
        why: format!("{vmm} has none"),
        hint: "firecracker has them: --vmm firecracker, or auto where it can run".to_owned(),
    }
}

/// A running VMM, held by pidfd.
///
/// Dropping it leaves the VMM running. All methods may be called from any task.
#[async_trait]
pub trait VmmProcess: Send + Sync {
    /// Returns the process's identity.
    fn identity(&self) -> &VmmIdentity;

    /// Lets the guest's CPUs run. Where `Vmm::holds`, `Vmm::launch` leaves them held, so that the
    /// identity is on disk before the first guest instruction; elsewhere they run already.
    async fn resume(&self) -> Result<(), VmmError>;

    /// Returns the channel to the guest's agent; the same one at each call.
    fn channel(&self) -> Arc<dyn GuestChannel>;

    /// Attaches to the guest's serial console: what it prints from now on can be read, what is written
    /// is typed. Any number may be attached; a slow one misses output and holds up nobody. The stream
    /// ends with the VMM.
    async fn console(&self) -> Result<BoxedStream, VmmError> {
        Err(VmmError::Unavailable {
            what: "the serial console".to_owned(),
            why: "this VMM has none".to_owned(),
            hint: "banger vm exec reaches the guest by its agent".to_owned(),
        })
    }

    /// Returns whether the process is still there, without waiting.
    fn state(&self) -> VmmState;

    /// Returns why the guest does not get on although its VMM is alive, if so, in one line; it will
    /// by itself once the cause is gone.
    fn stall(&self) -> Option<&'static str> {
        None
    }

    /// Has the network card be this fast at most from now on.
    async fn limit_network(&self, limits: &NetLimits) -> Result<(), VmmError> {
        if limits.is_unlimited() { Ok(()) } else { Err(no_network_limits(self.identity().kind)) }
    }

    /// Waits until the process has ended and returns its final state. Cancel safe.
    async fn wait(&self) -> VmmState;

    /// Sends a signal to the VMM through its pidfd; returns `false` where it had already ended.
    fn signal(&self, signal: rustix::process::Signal) -> Result<bool, VmmError>;

    /// Ends the VMM at once (the guest's disks may need a journal replay) and waits until it is
    /// gone. A VMM that is gone already is success.
    async fn kill(&self) -> Result<(), VmmError>;
}

/// Starts and finds VMMs of one kind.
///
/// Contract: `launch` leaves either a held, identified VMM or nothing (no process, no socket);
/// `adopt` finds exactly the process that the identity names, never another with the same pid;
/// `clean` after the end removes all that `launch` made, in the runtime directory and elsewhere, and
/// may be repeated.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Returns the kind.
    fn kind(&self) -> VmmKind;

    /// Checks that this VMM can run here and says how it would run guests.
    async fn probe(&self) -> Result<Acceleration, VmmError>;

    /// Returns the bytes of memory that the VMM may take for itself, beside its guest's.
    fn overhead(&self, acceleration: Acceleration) -> u64 {
        let _ = acceleration;
        64 << 20
    }

    /// Returns the kinds of root disk this VMM can boot from, best first.
    fn root_disks(&self) -> Vec<Arc<dyn super::RootDisk>>;

    /// Returns whether `launch` leaves the CPUs held. Where it does not, something that outlives the
    /// daemon has written down who the VMM is before it returns, and `find` finds it by that.
    fn holds(&self) -> bool {
        true
    }

    /// Returns whether a guest's power switch ends it; else only a restart does.
    fn has_power_switch(&self) -> bool {
        true
    }

    /// Returns whether it has a network of its own making, without root ([`Nic::User`]).
    fn has_user_network(&self) -> bool {
        true
    }

    /// Returns whether it is handed an open tap; else it opens one by its name.
    fn takes_open_tap(&self) -> bool {
        true
    }

    /// Returns whether it can hold a network card to a rate.
    fn limits_network(&self) -> bool {
        false
    }

    /// Starts a VMM for `plan`, its CPUs held if it [`Self::holds`] them.
    async fn launch(&self, plan: LaunchPlan) -> Result<Arc<dyn VmmProcess>, VmmError>;

    /// Finds the running VMM that `identity` names and takes hold of it again; `None` where it has
    /// ended. `runtime_dir` and `console_log` are those of its plan. It may wait for the VMM's answer
    /// for as long as that runs, so the caller sets the limit; an error means that it runs and cannot
    /// be talked to now: see `hold`.
    async fn adopt(
        &self,
        identity: &VmmIdentity,
        runtime_dir: &std::path::Path,
        console_log: &std::path::Path,
    ) -> Result<Option<Arc<dyn VmmProcess>>, VmmError>;

    /// Takes hold of the running VMM that `identity` names without a word from it: its end can be
    /// seen and it can be signalled and killed, and nothing else. `None` where it has ended; an error
    /// means that neither is known.
    fn hold(&self, identity: &VmmIdentity) -> Result<Option<Arc<dyn VmmProcess>>, VmmError>;

    /// Ends the VMM that `identity` names, without needing its sockets, and waits until it is gone;
    /// returns `false` where it had ended already.
    async fn end(&self, identity: &VmmIdentity) -> Result<bool, VmmError>;

    /// Removes what a VMM that has ended left in `runtime_dir`; returns whether there was anything.
    async fn clean(&self, runtime_dir: &std::path::Path) -> Result<bool, VmmError>;

    /// Finds the running VMMs of this kind and of the daemon's user whose runtime directory lies in
    /// `runtime_root`, each with its runtime directory. It is how a VMM is
    /// found whose daemon was killed before it could write down the identity.
    async fn find(
        &self,
        runtime_root: &std::path::Path,
    ) -> Result<Vec<(PathBuf, VmmIdentity)>, VmmError> {
        let _ = runtime_root;
        Ok(Vec::new())
    }

    /// Lists what VMs of this kind have on the host, known VMs' things too, but for what
    /// [`Self::find`] finds and what lies in the directories of a VM. `vms_dir` is where the VMs'
    /// own directories are. What cannot be told from another installation's is not listed.
    async fn traces(&self, vms_dir: &std::path::Path) -> Result<Vec<Orphan>, VmmError> {
        let _ = vms_dir;
        Ok(Vec::new())
    }

    /// Removes one thing that [`Self::traces`] lists and that belongs to no VM, or what this VMM has
    /// in a runtime directory; one that is gone already, or is another VMM's, is success.
    async fn erase(&self, orphan: &Orphan, vms_dir: &std::path::Path) -> Result<(), VmmError> {
        let _ = (orphan, vms_dir);
        Ok(())
    }
}
