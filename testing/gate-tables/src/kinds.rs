//! Kinds of parameters, and which classes of input each must have.

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the parameters'")]
pub enum Kind {
    BridgeName,
    OptionalBridgeName,
    Cidr,
    BridgeIp,
    /// An address that must lie in the subnet that the same request names.
    GuestIp,
    /// An address that must lie in the subnet of a bridge that only the host knows.
    NatIp,
    DnsPort,
    TapName,
    /// A tap that may be left out.
    OptionalTapName,
    /// A tap that must be there.
    UsedTap,
    Mac,
    Group,
    Flag,
    Resolver,
    DmName,
    OptionalDmName,
    OptionalDmDevice,
    DmDevice,
    RemoveTarget,
    OptionalLoop,
    /// A file below the state directory that is read.
    StatePath,
    OptionalStatePath,
    /// One that is written to.
    WrittenPath,
    /// One that is written to and need not be there.
    LogPath,
    OptionalLogPath,
    /// An image below the state directory, or a snapshot, that is read.
    ImagePath,
    /// One that is written to.
    WrittenImagePath,
    /// A disk that is written to: such an image.
    DrivePath,
    /// Where a link to a socket is to be made, below the runtime directory.
    LinkPlace,
    OptionalLinkPlace,
    /// A socket below the runtime directory that is given away.
    SocketPath,
    /// A socket below the runtime directory that is asked about.
    AskedSocket,
    GuestPath,
    Bytes,
    Mode,
    Firecracker,
    OptionalFirecracker,
    Jailer,
    JailBase,
    Uid,
    Gid,
    VmId,
    DriveId,
    KernelArguments,
    Vcpus,
    Memory,
    ContextId,
    ChrootRoot,
    /// A process that is signalled.
    Pid,
    /// A process that is asked about.
    AskedPid,
    Signal,
    Label,
    BalloonMib,
    MemoryLimit,
    CpuPercent,
    PidsMax,
    FileSize,
    OpenFiles,
    /// Any number of 64 bits that fits; Firecracker checks it itself.
    Number,
    /// The same of 16 bits.
    SmallNumber,
}

/// Of every path below one of the two roots, and of a jail's.
const PATH: [&str; 12] = [
    "plain",
    "relative",
    "look-alike",
    "climbing",
    "leaf link",
    "intermediate link",
    "link to itself",
    "hard link",
    "4 KiB",
    "NUL",
    "newline",
    "the root itself",
];

/// Of whoever has a pid that is no Firecracker of the owner's.
pub(crate) const STRANGERS: [&str; 4] =
    ["reused", "another user's firecracker", "path elsewhere", "look-alike path"];

/// The three forms in which a Firecracker may have been told its socket.
pub(crate) const FORMS: [&str; 3] = ["--api-sock PATH", "--api-sock=PATH", "-a PATH"];

impl Kind {
    /// Whether its values are numbers.
    #[must_use]
    pub fn is_number(self) -> bool {
        use Kind::{
            AskedPid, BalloonMib, ContextId, CpuPercent, DnsPort, FileSize, Gid, Memory,
            MemoryLimit, Mode, Number, OpenFiles, Pid, PidsMax, SmallNumber, Uid, Vcpus,
        };
        let numbers = [
            AskedPid,
            BalloonMib,
            ContextId,
            CpuPercent,
            DnsPort,
            FileSize,
            Gid,
            Memory,
            MemoryLimit,
            Mode,
            Number,
            OpenFiles,
            Pid,
            PidsMax,
            SmallNumber,
            Uid,
            Vcpus,
        ];
        numbers.contains(&self)
    }
}

/// The classes that a kind must have inputs of.
#[must_use]
pub fn classes(kind: Kind) -> Vec<&'static str> {
    let mut classes = own_classes(kind).to_vec();
    match kind {
        Kind::StatePath
        | Kind::OptionalStatePath
        | Kind::WrittenPath
        | Kind::LogPath
        | Kind::OptionalLogPath
        | Kind::ImagePath
        | Kind::WrittenImagePath
        | Kind::DrivePath
        | Kind::LinkPlace
        | Kind::OptionalLinkPlace
        | Kind::SocketPath
        | Kind::AskedSocket
        | Kind::ChrootRoot => classes.extend(PATH),
        Kind::Pid => classes.extend(STRANGERS.into_iter().chain(FORMS)),
        Kind::AskedPid => classes.extend(STRANGERS),
        _ => {}
    }
    if kind.is_number() {
        classes.extend(["wrong type", "sign", "fraction"]);
    }
    classes
}

fn own_classes(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::BridgeName | Kind::OptionalBridgeName => {
            &["default", "suffixed", "host interface", "wrong prefix", "oversize", "control"]
        }
        Kind::Cidr => &["7", "8", "32", "33", "64", "text", "sign"],
        Kind::BridgeIp => &["plain", "IPv6", "text", "mapped", "public", "no host", "edge"],
        Kind::NatIp | Kind::GuestIp => &["plain", "IPv6", "text", "mapped", "not a guest"],
        Kind::TapName | Kind::OptionalTapName => {
            &["VM", "pool", "host interface", "wrong prefix", "oversize", "control"]
        }
        Kind::UsedTap => &[
            "VM",
            "pool",
            "host interface",
            "wrong prefix",
            "oversize",
            "control",
            "nothing there",
        ],
        Kind::DmName | Kind::OptionalDmName => {
            &["plain", "wrong prefix", "path", "oversize", "control"]
        }
        Kind::DmDevice | Kind::OptionalDmDevice => {
            &["plain", "wrong prefix", "bare name", "other folder", "climbing", "oversize"]
        }
        Kind::RemoveTarget => {
            &["bare name", "path", "wrong prefix", "other folder", "blank", "climbing", "oversize"]
        }
        Kind::OptionalLoop => {
            &["plain", "no number", "other device", "climbing", "partition", "foreign backing file"]
        }
        Kind::StatePath
        | Kind::OptionalStatePath
        | Kind::WrittenPath
        | Kind::LogPath
        | Kind::OptionalLogPath => &["other type", "another's", "nothing there"],
        Kind::ImagePath | Kind::WrittenImagePath | Kind::DrivePath => {
            &["other type", "another's", "nothing there", "snapshot"]
        }
        Kind::LinkPlace | Kind::OptionalLinkPlace => &["other type", "another's", "in use"],
        Kind::SocketPath => &["other type", "another's"],
        Kind::AskedSocket => &["nothing there"],
        Kind::GuestPath => &["plain", "relative", "climbing", "control", "quote", "oversize"],
        Kind::Firecracker | Kind::OptionalFirecracker | Kind::Jailer => &[
            "plain",
            "other directory",
            "other name",
            "/bin/bash",
            "climbing",
            "relative",
            "control",
            "4 KiB",
            "symbolic link",
            "foreign owner",
            "group-writable",
            "writable parent",
            "not executable",
            "other type",
            "nothing there",
        ],
        Kind::Resolver => {
            &["IP", "IP:port", "IPv6", "IPv6 with port", "name", "port 0", "nobody", "words"]
        }
        Kind::VmId => &["plain", "blank", "oversize", "path", "option", "control", "taken"],
        Kind::DriveId => &["plain", "blank", "oversize", "path", "hyphen", "control"],
        Kind::KernelArguments => &["plain", "newline", "NUL", "not ASCII", "oversize"],
        Kind::ChrootRoot => &["other depth", "outside", "a machine that runs"],
        Kind::Pid | Kind::AskedPid => &["plain", "0", "1", "self", "negative", "too large"],
        Kind::Signal => {
            &["name", "lower case", "with SIG", "blank", "number", "STOP", "CONT", "RTMIN"]
        }
        Kind::Mac => &["plain", "multicast", "zero", "short", "text"],
        Kind::Group => &["plain", "blank", "control", "oversize"],
        Kind::JailBase => {
            &["plain", "relative", "look-alike", "other", "below", "climbing", "newline", "NUL"]
        }
        Kind::Uid | Kind::Gid => &["plain", "root", "other"],
        Kind::Vcpus => &["plain", "0", "33"],
        Kind::Memory => &["plain", "too little", "more than the host"],
        Kind::ContextId => &["plain", "reserved"],
        Kind::Mode => &["plain", "0", "type bits"],
        Kind::DnsPort => &["plain", "privileged", "another service's"],
        Kind::Label => &["plain", "blank", "control", "oversize"],
        Kind::Bytes => &["plain", "empty", "no base64"],
        Kind::BalloonMib
        | Kind::MemoryLimit
        | Kind::CpuPercent
        | Kind::PidsMax
        | Kind::FileSize
        | Kind::OpenFiles => &["plain", "out of bounds"],
        Kind::Number | Kind::SmallNumber => &["plain", "out of range"],
        Kind::Flag => &["plain", "wrong type"],
    }
}
