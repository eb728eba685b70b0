//! Why the engine refused or failed, with the stable code and the hint that go to the client.

use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_guest_client::{ChannelError, ClientError};
use banger_store::StoreError;
use banger_types::{ByteSize, DiskSize, LeaseId, Publication, PublishedPort, VmName, VmReference};

use crate::admission::{DenyReason, Largest};
use crate::main_process::MainError;
use crate::seams::{ArtifactError, DiskError, HostError, NetworkError, PortError, VmmError};

/// Why the engine refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No VM of this name, id or beginning of an id.
    #[error("no VM is called {reference}")]
    NoSuchVm {
        /// What was asked for.
        reference: VmReference,
    },
    /// More than one id begins so.
    #[error("{reference} could be any of {}", list(matches))]
    Ambiguous {
        /// What was asked for.
        reference: VmReference,
        /// The VMs.
        matches: Vec<VmName>,
    },
    /// The name is taken.
    #[error("a VM named {name} exists already")]
    NameTaken {
        /// The name.
        name: VmName,
    },
    /// The lease has ended, or never was.
    #[error("lease {lease} is not held by anyone")]
    NoSuchLease {
        /// The lease.
        lease: LeaseId,
    },
    /// The VM is in no state for this.
    #[error("VM {vm} {reason}")]
    Denied {
        /// The VM.
        vm: VmName,
        /// Why.
        reason: DenyReason,
    },
    /// Too little memory.
    #[error(
        "the host has {:#} of memory left for VMs and this one needs {}",
        ByteSize::from_bytes(*left), ByteSize::from_bytes(*needed)
    )]
    NotEnoughMemory {
        /// Bytes the VM may take.
        needed: u64,
        /// Bytes available, less what running VMs were promised and have not taken yet.
        left: u64,
        /// Bytes promised to running VMs that they have not taken yet.
        promised: u64,
    },
    /// Too little disk.
    #[error("{}", disk_numbers(*needed, *promised, *free, *floor, place))]
    NotEnoughDisk {
        /// Bytes that the VM takes at once.
        needed: u64,
        /// Bytes that VMs being made are about to take.
        promised: u64,
        /// Bytes free.
        free: u64,
        /// Bytes that must stay free.
        floor: u64,
        /// The directory.
        place: String,
    },
    /// Disks that the host could not hold once they are full.
    #[error(
        "the disks (root {root}, work {work}) may grow by {:#}, and the host has {:#} free below {place}, \
         of which {} stay free",
        ByteSize::from_bytes(*growth), ByteSize::from_bytes(*free), ByteSize::from_bytes(*floor)
    )]
    DisksTooLarge {
        /// The root disk's size.
        root: DiskSize,
        /// The work disk's size.
        work: DiskSize,
        /// Bytes that they may still take.
        growth: u64,
        /// Bytes free.
        free: u64,
        /// Bytes that must stay free.
        floor: u64,
        /// The directory.
        place: String,
        /// What would fit, where they can still be made smaller.
        largest: Option<Largest>,
    },
    /// More than the host could ever give.
    #[error(
        "the VM would need {} of {what} and this host has {:#}",
        ByteSize::from_bytes(*wanted), ByteSize::from_bytes(*has)
    )]
    BeyondHost {
        /// Of what: `memory`.
        what: &'static str,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes there are.
        has: u64,
    },
    /// A disk would become smaller.
    #[error("the {what} has {current} and can only grow, not become {wanted}")]
    WouldShrink {
        /// Which.
        what: &'static str,
        /// Its size.
        current: ByteSize,
        /// What was asked for.
        wanted: DiskSize,
    },
    /// A change that changes nothing.
    #[error("nothing to change was given")]
    NothingToChange,
    /// No VMM can run this VM here.
    #[error("no VMM can run this VM: {why}")]
    NoVmm {
        /// Why, of each.
        why: String,
        /// What to do about it.
        hint: String,
    },
    /// A VMM's act failed.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// A disk's act failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An image or kernel is not to be had.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A fact about the host is not known.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The network's act failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A port is not to be had.
    #[error(transparent)]
    Port(#[from] PortError),
    /// One port of the host is to be two of the guest's.
    #[error("port {} of {} is published twice", publication.host.port(), publication.host.ip())]
    PublishedTwice {
        /// The second.
        publication: Publication,
    },
    /// More than a VM may have.
    #[error("a VM has at most {most} published ports")]
    TooManyPorts {
        /// How many it may have.
        most: usize,
    },
    /// Nothing that could be taken back.
    #[error("VM {vm} does not publish {port}")]
    NotPublished {
        /// The VM.
        vm: VmName,
        /// What was asked for.
        port: PublishedPort,
    },
    /// A system call failed.
    #[error("{act} {object}")]
    Io {
        /// The act, as a participle.
        act: &'static str,
        /// What it was done to.
        object: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file of the VM is gone or not what it was.
    #[error("{what} of VM {vm} {problem}")]
    Damaged {
        /// Which file.
        what: &'static str,
        /// The VM.
        vm: VmName,
        /// What is wrong with it.
        problem: String,
    },
    /// What a VMM was given could not all be taken back after its end.
    #[error("VM {vm} does not run, but something of it is left on the host")]
    Leftovers {
        /// The VM.
        vm: VmName,
        /// What failed: the first, with all others among its causes.
        problem: Box<ApiError>,
    },
    /// Work disks are made with at most this size.
    #[error("a work disk of {wanted} is larger than the {most} with which one is made")]
    WorkDiskTooLarge {
        /// What was asked for.
        wanted: DiskSize,
        /// The most.
        most: ByteSize,
    },
    /// The guest ended before its agent had answered.
    #[error("the guest of VM {vm} ended before its agent answered")]
    GuestEnded {
        /// The VM.
        vm: VmName,
        /// The VMM's last words, printable.
        last_words: Option<String>,
        /// The end of the console log, printable lines.
        console: Vec<String>,
    },
    /// The guest's agent did not answer in time.
    #[error("the guest of VM {vm} did not answer within {seconds} s")]
    GuestSilent {
        /// The VM.
        vm: VmName,
        /// The deadline in seconds.
        seconds: u64,
        /// The end of the console log, printable lines.
        console: Vec<String>,
    },
    /// The channel to the agent failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A call to the agent failed.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// A client asked for the end, or something more important came.
    #[error("{what} was cancelled")]
    Cancelled {
        /// What was.
        what: String,
    },
    /// A later request made this one pointless.
    #[error("VM {vm} was deleted before its turn came")]
    Overtaken {
        /// The VM.
        vm: VmName,
    },
    /// The name is no group's.
    #[error("a VM cannot be in this group")]
    Group {
        /// Why not.
        #[source]
        source: banger_types::GroupError,
    },
    /// The signal's name is not known.
    #[error("signal {name:?} is not one that can be sent")]
    UnknownSignal {
        /// What was given.
        name: String,
    },
    /// The daemon is ending.
    #[error("the daemon is ending")]
    ShuttingDown,
    /// The VM cannot run what it is to.
    #[error(transparent)]
    Main(#[from] MainError),
    /// The guest refused to run what it is to.
    #[error("VM {vm} cannot run its main process")]
    MainRefused {
        /// The VM.
        vm: VmName,
        /// The guest's words.
        #[source]
        source: ClientError,
    },
    /// A defect of banger.
    #[error("defect: {0}")]
    Defect(&'static str),
}

fn disk_numbers(needed: u64, promised: u64, free: u64, floor: u64, place: &str) -> String {
    let (free, floor) = (ByteSize::from_bytes(free), ByteSize::from_bytes(floor));
    let mut text = format!("the host has {free:#} free below {place}");
    if needed == 0 && promised == 0 {
        return format!("{text}, less than the {floor} that banger keeps free");
    }
    text += &format!(", and this VM's disk takes {:#} at once", ByteSize::from_bytes(needed));
    if promised > 0 {
        let promised = ByteSize::from_bytes(promised);
        text += &format!("; VMs being made take {promised:#}");
    }
    format!("{text}; {floor} stay free")
}

fn disks_hint(root: DiskSize, work: DiskSize, largest: Option<Largest>) -> String {
    let fits = match largest {
        None => String::new(),
        Some(Largest::Work(size)) => {
            format!("--disk-size {size} is the largest beside a root disk of {root}; or ")
        }
        Some(Largest::Root(size)) => {
            format!("--root-size {size} is the largest beside a work disk of {work}; or ")
        }
        Some(Largest::Both(size)) => {
            format!("--root-size and --disk-size may have {size} together; or ")
        }
    };
    format!(
        "{fits}free some disk space, or allow more than there is: \
         banger config set storage.overcommit true"
    )
}

fn list(names: &[VmName]) -> String {
    let mut text = names.iter().take(10).map(VmName::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 10 {
        text.push_str(", ...");
    }
    text
}

impl EngineError {
    /// Returns the stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoSuchVm { .. } | Self::NoSuchLease { .. } => ErrorCode::NotFound,
            Self::Ambiguous { .. } => ErrorCode::Ambiguous,
            Self::NameTaken { .. } | Self::Store(StoreError::NameTaken { .. }) => {
                ErrorCode::AlreadyExists
            }
            Self::Denied { reason, .. } => reason.code(),
            Self::NotEnoughMemory { .. } | Self::BeyondHost { .. } | Self::DisksTooLarge { .. } => {
                ErrorCode::InsufficientResources
            }
            Self::WouldShrink { .. } | Self::NothingToChange | Self::WorkDiskTooLarge { .. } => {
                ErrorCode::BadParams
            }
            Self::NotEnoughDisk { .. } => ErrorCode::NoSpace,
            Self::NoVmm { .. } => ErrorCode::Unavailable,
            Self::Vmm(error) => match error {
                VmmError::Unavailable { .. } => ErrorCode::Unavailable,
                VmmError::Timeout { .. } => ErrorCode::Timeout,
                VmmError::Io { source, .. } if no_space(source) => ErrorCode::NoSpace,
                _ => ErrorCode::OperationFailed,
            },
            Self::Disk(error) => match error {
                DiskError::NoSpace { .. } => ErrorCode::NoSpace,
                DiskError::Io { source, .. } if no_space(source) => ErrorCode::NoSpace,
                DiskError::Invalid { .. } => ErrorCode::Corrupt,
                DiskError::Shrink { .. } => ErrorCode::BadParams,
                DiskError::Io { .. } => ErrorCode::OperationFailed,
            },
            Self::Network(error) => match error {
                NetworkError::Unavailable { .. } => ErrorCode::Unavailable,
                NetworkError::Subnet { .. } => ErrorCode::InUse,
                NetworkError::Full { .. } => ErrorCode::InsufficientResources,
                NetworkError::InUse { .. } => ErrorCode::InUse,
                NetworkError::Failed { .. } => ErrorCode::OperationFailed,
            },
            Self::Port(error) => match error.source.kind() {
                std::io::ErrorKind::AddrInUse => ErrorCode::InUse,
                std::io::ErrorKind::AddrNotAvailable => ErrorCode::BadParams,
                std::io::ErrorKind::PermissionDenied => ErrorCode::Unavailable,
                _ => ErrorCode::OperationFailed,
            },
            Self::PublishedTwice { .. } | Self::TooManyPorts { .. } => ErrorCode::BadParams,
            Self::NotPublished { .. } => ErrorCode::NotFound,
            Self::Artifact(error) => match error {
                ArtifactError::NotFound { .. } => ErrorCode::NotFound,
                ArtifactError::Corrupt { .. } => ErrorCode::Corrupt,
                ArtifactError::Unavailable { .. } => ErrorCode::Unavailable,
                ArtifactError::NoSpace { .. } => ErrorCode::NoSpace,
                ArtifactError::Failed { .. } => ErrorCode::OperationFailed,
            },
            Self::Store(error) if error.is_no_space() => ErrorCode::NoSpace,
            Self::Store(StoreError::Newer { .. }) => ErrorCode::Corrupt,
            Self::Io { source, .. } if no_space(source) => ErrorCode::NoSpace,
            Self::Damaged { .. } => ErrorCode::Corrupt,
            Self::Leftovers { .. } => ErrorCode::OperationFailed,
            Self::GuestEnded { .. } => ErrorCode::GuestFailed,
            Self::GuestSilent { .. } => ErrorCode::Timeout,
            Self::Channel(_) | Self::Agent(_) => ErrorCode::AgentUnreachable,
            Self::Cancelled { .. } | Self::Overtaken { .. } => ErrorCode::Cancelled,
            Self::UnknownSignal { .. } | Self::Group { .. } => ErrorCode::BadParams,
            Self::Main(_) => ErrorCode::BadParams,
            Self::MainRefused { source, .. } if source.agent_error().is_some() => {
                ErrorCode::BadParams
            }
            Self::MainRefused { .. } => ErrorCode::AgentUnreachable,
            Self::ShuttingDown => ErrorCode::Unavailable,
            Self::Store(_) | Self::Host(_) | Self::Io { .. } => ErrorCode::OperationFailed,
            Self::Defect(_) => ErrorCode::Internal,
        }
    }

    /// Returns what to do next, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        if self.code() == ErrorCode::NoSpace {
            return Some("free some disk space, then try again".to_owned());
        }
        match self {
            Self::NoSuchVm { .. } => Some("`banger vm list` shows the VMs".to_owned()),
            Self::Ambiguous { .. } => Some("give the name, or more of the id".to_owned()),
            Self::NameTaken { name } => {
                Some(format!("choose another name, or `banger vm delete {name}`"))
            }
            Self::Denied { vm, reason } => reason.hint(vm),
            Self::NotEnoughMemory { promised: 0, .. } => {
                Some("give the VM less with --memory".to_owned())
            }
            Self::NotEnoughMemory { promised, .. } => Some(format!(
                "give the VM less with --memory, or stop a VM: running ones may still take {}",
                ByteSize::from_bytes(*promised)
            )),
            Self::BeyondHost { .. } => Some("ask for less memory".to_owned()),
            Self::DisksTooLarge { root, work, largest, .. } => {
                Some(disks_hint(*root, *work, *largest))
            }
            Self::WorkDiskTooLarge { .. } => {
                Some("give less with --disk-size; `vm set` makes it larger later".to_owned())
            }
            Self::WouldShrink { .. } => {
                Some("make a new VM with a smaller disk, or give the disk its size".to_owned())
            }
            Self::NothingToChange => Some(
                "give at least one of vcpus, memory_mib, root_size, work_size, disk_limits"
                    .to_owned(),
            ),
            Self::NoVmm { hint, .. } | Self::Vmm(VmmError::Unavailable { hint, .. }) => {
                Some(hint.clone())
            }
            Self::Network(
                NetworkError::Unavailable { hint, .. } | NetworkError::Subnet { hint, .. },
            ) => Some(hint.clone()),
            Self::Network(NetworkError::Failed { hint, .. }) => hint.clone(),
            Self::Network(NetworkError::Full { .. }) => Some(
                "delete some VMs, or set a larger one: banger config set network.subnet".to_owned(),
            ),
            Self::Network(NetworkError::InUse { vms }) => {
                Some(format!("banger vm stop {}", vms.join(" ")))
            }
            Self::Port(error) => port_hint(error),
            Self::NotPublished { vm, .. } => {
                Some(format!("`banger vm ports {vm}` shows what it publishes"))
            }
            Self::Artifact(ArtifactError::NotFound { kind, .. }) => Some(format!(
                "`banger {kind} list` shows what is here, `banger {kind} pull` fetches"
            )),
            Self::Artifact(ArtifactError::Unavailable { hint, .. }) => Some(hint.clone()),
            Self::Store(StoreError::Newer { .. }) => Some(
                "use the newer banger that wrote it, or another state directory (BANGER_STATE_DIR)"
                    .to_owned(),
            ),
            Self::Leftovers { vm, .. } => Some(format!(
                "`banger vm stop {vm}` tries again, as does every later command; `banger doctor` shows what is left"
            )),
            Self::Damaged { vm, .. } => Some(format!("`banger vm delete {vm}` removes the VM")),
            Self::Main(MainError::Nothing) => Some(
                "leave the command out and use `banger vm exec`, or give --entrypoint".to_owned(),
            ),
            Self::UnknownSignal { .. } => {
                Some("use TERM, KILL, INT, HUP, QUIT, USR1, USR2 or ABRT".to_owned())
            }
            _ => None,
        }
    }

    /// Turns it into the body that a client gets.
    #[must_use]
    pub fn to_api(&self) -> ApiError {
        let mut api = ApiError::new(self.code(), self.to_string()).caused_by(self);
        api.hint = self.hint();
        if let Self::GuestEnded { last_words: Some(words), .. } = self {
            api.causes.push(format!("the VMM's last words: {words}"));
        }
        if let Self::Leftovers { problem, .. } = self {
            api.causes.push(problem.message.clone());
            api.causes.extend(problem.causes.iter().cloned());
        }
        if let Self::GuestEnded { console, .. } | Self::GuestSilent { console, .. } = self {
            api.causes.extend(console.iter().map(|line| format!("console: {line}")));
        }
        api
    }
}

/// Returns what to do about a port that is not to be had.
fn port_hint(error: &PortError) -> Option<String> {
    let (host, protocol) = (error.publication.host, error.publication.protocol);
    let port = host.port();
    Some(match (error.source.kind(), &error.holder) {
        (std::io::ErrorKind::AddrInUse, Some(vm)) => {
            format!("VM {vm} has it: `banger vm ports unpublish {vm} {port}/{protocol}`")
        }
        (std::io::ErrorKind::AddrInUse, None) => {
            let letter = if protocol == banger_types::PortProtocol::Udp { 'u' } else { 't' };
            format!(
                "`ss -{letter}lnp 'sport = :{port}'` shows whose it is; 0 takes any that is free"
            )
        }
        (std::io::ErrorKind::PermissionDenied, _) => {
            let file = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
            let first = std::fs::read_to_string(file).unwrap_or_else(|_| "1024".to_owned());
            format!("bangerd is not root: use port {} or above", first.trim())
        }
        (std::io::ErrorKind::AddrNotAvailable, _) => {
            "`ip address` shows the addresses that this host has".to_owned()
        }
        _ => return None,
    })
}

fn no_space(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// A failure and what could not be undone after it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) cause: EngineError,
    pub(crate) not_undone: Vec<EngineError>,
}

impl From<EngineError> for Failure {
    fn from(cause: EngineError) -> Self {
        Self { cause, not_undone: Vec::new() }
    }
}

impl Failure {
    pub(crate) fn to_api(&self) -> ApiError {
        let mut api = self.cause.to_api();
        for error in &self.not_undone {
            let undone = error.to_api();
            let line = format!("not undone: {}", undone.message);
            // An undo and the deletion after it may fail at the same thing.
            if api.causes.contains(&line) {
                continue;
            }
            api.causes.push(line);
            api.causes.extend(undone.causes);
        }
        api
    }
}
