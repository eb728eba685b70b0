//! The bytes of the multiplexer: greetings, frames, and the deframer that finds them again after
//! a session died anywhere.
//!
//! Frame: `type u8, stream u32, length u32 (big endian), payload, nonce u64`.
//! Greeting: `magic 16 bytes, nonce u64, window u32, version u16, zero u16, checksum u64`.

use bytes::{Buf, BufMut, BytesMut};

/// Most payload bytes of a frame.
pub const MAX_PAYLOAD: usize = 32 * 1024;

const HEADER: usize = 9;
const TRAILER: usize = 8;

/// Most bytes of a frame; so many zero bytes complete any frame that was cut.
pub const MAX_FRAME: usize = HEADER + MAX_PAYLOAD + TRAILER;

/// First byte of every magic; neither zero (padding) nor a frame type.
const MAGIC_START: u8 = 0xb5;
const MAGIC: [u8; 15] = *b"\xb5banger-mux\r\n\x1a\n";
const GREETING: usize = 40;

/// The version of the multiplexer's format.
const MUX_VERSION: u16 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum GreetingKind {
    /// From the host: a new session.
    Hello = 1,
    /// From the guest: the session is up.
    Ack = 2,
    /// From the guest: the agent has just started and knows no session.
    Boot = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub kind: GreetingKind,
    pub nonce: u64,
    /// Bytes that the sender accepts per stream before it gives credit.
    pub window: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FrameType {
    Open = 1,
    Data = 2,
    End = 3,
    Reset = 4,
    Credit = 5,
}

impl FrameType {
    fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Open,
            2 => Self::Data,
            3 => Self::End,
            4 => Self::Reset,
            5 => Self::Credit,
            _ => return None,
        })
    }
}

/// FNV-1a; guards against coincidence, not against an enemy.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

pub(super) fn put_padding(out: &mut BytesMut) {
    out.put_bytes(0, MAX_FRAME);
}

pub(super) fn put_greeting(greeting: Greeting, out: &mut BytesMut) {
    let start = out.len();
    out.put_slice(&MAGIC);
    out.put_u8(greeting.kind as u8);
    out.put_u64(greeting.nonce);
    out.put_u32(greeting.window);
    out.put_u16(MUX_VERSION);
    out.put_u16(0);
    let sum = checksum(&out[start..]);
    out.put_u64(sum);
}

/// Appends a frame; the caller keeps `payload` within [`MAX_PAYLOAD`].
pub(super) fn put_frame(kind: FrameType, id: u32, payload: &[u8], nonce: u64, out: &mut BytesMut) {
    debug_assert!(payload.len() <= MAX_PAYLOAD, "frames are cut by the session");
    out.reserve(HEADER + payload.len() + TRAILER);
    out.put_u8(kind as u8);
    out.put_u32(id);
    out.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.put_slice(payload);
    out.put_u64(nonce);
}

fn parse_greeting(bytes: &[u8; GREETING]) -> Option<Greeting> {
    let mut rest = &bytes[MAGIC.len()..];
    let kind = match rest.get_u8() {
        1 => GreetingKind::Hello,
        2 => GreetingKind::Ack,
        3 => GreetingKind::Boot,
        _ => return None,
    };
    let (nonce, window, version, zero) =
        (rest.get_u64(), rest.get_u32(), rest.get_u16(), rest.get_u16());
    let valid = bytes.starts_with(&MAGIC)
        && rest.get_u64() == checksum(&bytes[..GREETING - 8])
        && version == MUX_VERSION
        && zero == 0;
    valid.then_some(Greeting { kind, nonce, window })
}

/// What the deframer found at the front of its buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    Greeting(Greeting),
    Frame {
        kind: FrameType,
        id: u32,
        payload: &'a [u8],
    },
    /// The bytes are not of this session. The deframer scans for a greeting from here on.
    Desynchronised,
}

/// Finds greetings and frames in bytes that arrive cut anywhere. Holds less than one frame plus
/// what one `push` adds.
#[derive(Debug, Default)]
pub(super) struct Deframer {
    buffer: BytesMut,
    /// The session whose frames are accepted; `None` scans for a greeting.
    nonce: Option<u64>,
    /// Bytes at the front of the buffer that were handed out as the last payload.
    consumed: usize,
}

impl Deframer {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.advance(std::mem::take(&mut self.consumed));
        self.buffer.extend_from_slice(bytes);
    }

    /// Accepts frames that end in `nonce`.
    pub fn accept(&mut self, nonce: u64) {
        self.nonce = Some(nonce);
    }

    /// Scans for a greeting.
    pub fn scan(&mut self) {
        self.nonce = None;
    }

    /// Takes the next thing out of the buffer, `None` until more bytes come.
    pub fn next(&mut self) -> Option<Found<'_>> {
        self.buffer.advance(std::mem::take(&mut self.consumed));
        let Some(nonce) = self.nonce else {
            return self.next_greeting().map(Found::Greeting);
        };
        let padding = self.buffer.iter().position(|&byte| byte != 0).unwrap_or(self.buffer.len());
        self.buffer.advance(padding);
        let first = *self.buffer.first()?;
        if first == MAGIC_START {
            let bytes = self.buffer.first_chunk::<GREETING>()?;
            let greeting = parse_greeting(bytes);
            if greeting.is_some() {
                self.consumed = GREETING;
            } else {
                self.nonce = None;
            }
            return Some(greeting.map_or(Found::Desynchronised, Found::Greeting));
        }
        let Some(kind) = FrameType::parse(first) else {
            self.nonce = None;
            return Some(Found::Desynchronised);
        };
        let mut header: &[u8] = &self.buffer.first_chunk::<HEADER>()?[1..];
        let id = header.get_u32();
        let length = usize::try_from(header.get_u32()).unwrap_or(usize::MAX);
        if length > MAX_PAYLOAD {
            self.nonce = None;
            return Some(Found::Desynchronised);
        }
        let total = HEADER + length + TRAILER;
        if self.buffer.len() < total {
            return None;
        }
        let mut trailer = &self.buffer[HEADER + length..total];
        if trailer.get_u64() != nonce {
            // The greeting that explains this may begin anywhere after the first byte.
            self.buffer.advance(1);
            self.nonce = None;
            return Some(Found::Desynchronised);
        }
        self.consumed = total;
        Some(Found::Frame { kind, id, payload: &self.buffer[HEADER..HEADER + length] })
    }

    /// Drops everything up to a valid greeting, keeping what could be the start of one.
    fn next_greeting(&mut self) -> Option<Greeting> {
        loop {
            let start = self.buffer.iter().position(|&byte| byte == MAGIC_START);
            self.buffer.advance(start.unwrap_or(self.buffer.len()));
            let known = self.buffer.len().min(MAGIC.len());
            if self.buffer[..known] != MAGIC[..known] {
                self.buffer.advance(1);
                continue;
            }
            let greeting = parse_greeting(self.buffer.first_chunk::<GREETING>()?);
            self.buffer.advance(if greeting.is_some() { GREETING } else { 1 });
            if greeting.is_some() {
                return greeting;
            }
        }
    }
}
