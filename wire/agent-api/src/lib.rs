//! The protocol between `bangerd` and the guest agent: calls, frames, boot configuration, and the
//! multiplexer that carries many streams over one byte pipe.
//!
//! ```text
//!  one stream per call:
//!    host  -> guest   length-delimited JSON Request {version, call}       (one round trip: hello and
//!    guest -> host    length-delimited JSON Response {version, outcome}    request travel together)
//!    both             typed binary frames (frame module) until the call is over
//!
//!  streams come from one of
//!    a connection     vsock: a connection is a stream
//!    a byte pipe      a virtio-serial port: the mux module makes streams of it
//! ```
//!
//! An agent is frozen in a running VM while the host moves on, so the host adapts: unknown fields
//! in answers are ignored, unknown frames are skipped, an unknown call is answered with an error
//! code. Everything has a cap, because each side treats the other as hostile. Nothing here opens a
//! file or a socket; the asynchronous parts are generic over the stream they are given.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod boot;
mod bytes_text;
mod connection;
mod console;
mod detached;
mod frame;
mod listing;
mod main_process;
mod message;
pub mod mux;
mod ssh;
mod wire;

pub use banger_types::PortProtocol;
pub use boot::{BootConfig, BootConfigError, InitChoice, MachineEnd, SessionToken, StaticNetwork};
pub use bytes_text::{
    Argument, EnvironmentEntry, GuestPath, Hex, TextError, UserSpec, printable_excerpt,
};
pub use connection::carry_connection;
pub use console::{ConsoleCall, ConsoleReply};
pub use detached::{DetachReply, DetachedCommand, DetachedOutputCall, DetachedReply};
pub use frame::{
    ExitStatus, FRAME_HEADER, Frame, FrameDecoder, FrameError, FrameKind, MAX_FRAME_PAYLOAD,
    STDIN_WINDOW, SignalNumber, WindowSize, encode_chunks, encode_frame,
};
pub use listing::{
    LISTED_NAME_LIMIT, Listed, ListedKind, ListingDecoder, ListingError, TAR_REMOVAL,
};
pub use main_process::{AttachMainCall, ConfigureCall, MainProcess};
pub use message::{
    AgentError, Call, ConnectCall, Empty, ErrorCode, ExecCall, ExecStarted, FileKind,
    GetEntriesCall, GetTreeCall, HealthReply, InitKind, ListEntriesCall, ListTreeCall,
    ListTreeReply, ListeningPort, NetworkState, Outcome, PortsReply, PowerOffCall, PtyCall,
    PutTreeCall, PutTreeReply, Request, Response, SetIdentityCall, SpawnBenchCall, SpawnBenchReply,
    StatCall, StatReply, StatsReply,
};
pub use ssh::{PublicKey, PublicKeyError, SshCall, SshReply};
pub use wire::{
    FrameReader, FrameWriter, MAX_REQUEST, MAX_RESPONSE, WireError, encode_message, read_message,
    write_message,
};

/// The version of the call protocol this build speaks; it grows when an old peer could misread a
/// message, not when a field is added.
pub const PROTOCOL_VERSION: u16 = 1;

/// The virtio-serial port's name, as QEMU's `virtserialport,name=` and the guest's sysfs have it.
pub const SERIAL_PORT_NAME: &str = "org.banger.agent.0";

/// The vsock port the agent listens on where the machine has a vsock device.
pub const VSOCK_PORT: u32 = 1024;
