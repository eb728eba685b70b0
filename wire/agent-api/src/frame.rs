//! Typed frames: what follows a call's answer on its stream.
//!
//! A frame is `kind: u8, length: u32 big endian, payload`. The same codec serves host and agent,
//! and the host passes frames between its own client and the agent without looking inside.
//!
//! | kind | direction | payload |
//! |---|---|---|
//! | 1 stdin | to guest | bytes |
//! | 2 stdin end | to guest | empty; the stream's own end without it means the client is gone |
//! | 3 resize | to guest | columns u16, rows u16 |
//! | 4 signal | to guest | number u8 |
//! | 5 stdout, 6 stderr | to host | bytes |
//! | 7 exit | to host | 0 = exited, 1 = killed by a signal; then an i32 |
//! | 8 error | to host | JSON `AgentError`; the call is over |
//! | 9 data, 10 data end | both | bytes; empty |
//! | 11 stdin credit | to host | u32: so many more bytes of stdin may be sent |
//!
//! A client may have at most [`STDIN_WINDOW`] bytes of stdin on the way that no credit has come
//! back for. The guest therefore always reads on, and a signal or a resize is never stuck behind
//! input that the process does not take.
//!
//! An unknown kind is skipped, so that newer peers can add some.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::message::AgentError;

/// Bytes before a frame's payload.
pub const FRAME_HEADER: usize = 5;

/// Most payload bytes of a frame. With its header it fits one multiplexer frame.
pub const MAX_FRAME_PAYLOAD: usize = 32 * 1024 - FRAME_HEADER;

/// Bytes of stdin that a client may send before the first credit.
pub const STDIN_WINDOW: u32 = 128 * 1024;

/// What a frame is; the first byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Bytes for the process's standard input.
    Stdin = 1,
    /// The standard input is complete.
    StdinEnd = 2,
    /// The terminal's size changed.
    Resize = 3,
    /// Send a signal.
    Signal = 4,
    /// Bytes of the standard output, or of a terminal.
    Stdout = 5,
    /// Bytes of the standard error.
    Stderr = 6,
    /// The process ended; last frame of an exec.
    Exit = 7,
    /// The call failed; last frame.
    Error = 8,
    /// Bytes of a tree or an echo.
    Data = 9,
    /// The data is complete.
    DataEnd = 10,
    /// More stdin may be sent.
    StdinCredit = 11,
    /// One datagram, which may be empty.
    Datagram = 12,
}

/// A terminal's size in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WindowSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// A Linux signal number, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct SignalNumber(u8);

impl SignalNumber {
    /// Checks `number`.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        (1..=64).contains(&number).then_some(Self(number))
    }

    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for SignalNumber {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        Self::new(number).ok_or("a signal's number is 1 to 64")
    }
}

impl From<SignalNumber> for u8 {
    fn from(signal: SignalNumber) -> Self {
        signal.get()
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Code(u8),
    /// It was killed by this signal.
    Signal(u8),
}

impl ExitStatus {
    /// Returns what a shell would report: the code, or 128 plus the signal's number.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(number) => 128u8.saturating_add(number),
        }
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// See [`FrameKind::Stdin`].
    Stdin(Bytes),
    /// See [`FrameKind::StdinEnd`].
    StdinEnd,
    /// See [`FrameKind::Resize`].
    Resize(WindowSize),
    /// See [`FrameKind::Signal`].
    Signal(SignalNumber),
    /// See [`FrameKind::Stdout`].
    Stdout(Bytes),
    /// See [`FrameKind::Stderr`].
    Stderr(Bytes),
    /// See [`FrameKind::Exit`].
    Exit(ExitStatus),
    /// See [`FrameKind::Error`].
    Error(AgentError),
    /// See [`FrameKind::Data`].
    Data(Bytes),
    /// See [`FrameKind::DataEnd`].
    DataEnd,
    /// See [`FrameKind::StdinCredit`].
    StdinCredit(u32),
    /// See [`FrameKind::Datagram`]; at most [`MAX_FRAME_PAYLOAD`] bytes.
    Datagram(Bytes),
    /// A kind that this build does not know; ignore it.
    Unknown(u8),
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is over [`MAX_FRAME_PAYLOAD`].
    #[error("frame of {length} bytes is over the limit of {MAX_FRAME_PAYLOAD}")]
    TooLong {
        /// The announced length.
        length: usize,
    },
    /// A payload does not fit its kind.
    #[error("malformed payload in a frame of kind {kind}")]
    Payload {
        /// The frame's kind.
        kind: u8,
    },
}

/// Appends one frame. `payload` is cut at [`MAX_FRAME_PAYLOAD`]; use [`encode_chunks`] for more.
pub fn encode_frame(kind: FrameKind, payload: &[u8], out: &mut BytesMut) {
    let payload = &payload[..payload.len().min(MAX_FRAME_PAYLOAD)];
    out.reserve(FRAME_HEADER + payload.len());
    out.put_u8(kind as u8);
    out.put_u32(u32::try_from(payload.len()).unwrap_or(0));
    out.put_slice(payload);
}

/// Appends as many frames of one kind as `payload` needs; none where it is empty.
pub fn encode_chunks(kind: FrameKind, payload: &[u8], out: &mut BytesMut) {
    for chunk in payload.chunks(MAX_FRAME_PAYLOAD) {
        encode_frame(kind, chunk, out);
    }
}

impl Frame {
    /// Appends this frame; data longer than a frame becomes several. An [`Frame::Unknown`] adds nothing.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Stdin(bytes) => encode_chunks(FrameKind::Stdin, bytes, out),
            Self::StdinEnd => encode_frame(FrameKind::StdinEnd, &[], out),
            Self::Resize(size) => {
                let mut payload = [0; 4];
                payload[..2].copy_from_slice(&size.columns.to_be_bytes());
                payload[2..].copy_from_slice(&size.rows.to_be_bytes());
                encode_frame(FrameKind::Resize, &payload, out);
            }
            Self::Signal(number) => encode_frame(FrameKind::Signal, &[number.get()], out),
            Self::Stdout(bytes) => encode_chunks(FrameKind::Stdout, bytes, out),
            Self::Stderr(bytes) => encode_chunks(FrameKind::Stderr, bytes, out),
            Self::Exit(status) => {
                let (kind, value) = match *status {
                    ExitStatus::Code(code) => (0, code),
                    ExitStatus::Signal(number) => (1, number),
                };
                let mut payload = [kind, 0, 0, 0, 0];
                payload[1..].copy_from_slice(&i32::from(value).to_be_bytes());
                encode_frame(FrameKind::Exit, &payload, out);
            }
            Self::Error(error) => {
                let json = serde_json::to_vec(error).unwrap_or_default();
                encode_frame(FrameKind::Error, &json, out);
            }
            Self::Data(bytes) => encode_chunks(FrameKind::Data, bytes, out),
            Self::DataEnd => encode_frame(FrameKind::DataEnd, &[], out),
            Self::StdinCredit(count) => {
                encode_frame(FrameKind::StdinCredit, &count.to_be_bytes(), out);
            }
            Self::Datagram(bytes) => encode_frame(FrameKind::Datagram, bytes, out),
            Self::Unknown(_) => {}
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, FrameError> {
        let malformed = || FrameError::Payload { kind };
        let empty = |frame| if payload.is_empty() { Ok(frame) } else { Err(malformed()) };
        Ok(match kind {
            1 => Self::Stdin(payload),
            2 => empty(Self::StdinEnd)?,
            3 => {
                let bytes: [u8; 4] = payload.as_ref().try_into().map_err(|_| malformed())?;
                Self::Resize(WindowSize {
                    columns: u16::from_be_bytes([bytes[0], bytes[1]]),
                    rows: u16::from_be_bytes([bytes[2], bytes[3]]),
                })
            }
            4 => match payload.as_ref() {
                [number] => Self::Signal(SignalNumber::new(*number).ok_or_else(malformed)?),
                _ => return Err(malformed()),
            },
            5 => Self::Stdout(payload),
            6 => Self::Stderr(payload),
            7 => {
                let [how, value @ ..]: [u8; 5] =
                    payload.as_ref().try_into().map_err(|_| malformed())?;
                let value = u8::try_from(i32::from_be_bytes(value)).map_err(|_| malformed())?;
                Self::Exit(match how {
                    0 => ExitStatus::Code(value),
                    1 => ExitStatus::Signal(value),
                    _ => return Err(malformed()),
                })
            }
            8 => Self::Error(serde_json::from_slice(&payload).map_err(|_| malformed())?),
            9 => Self::Data(payload),
            10 => empty(Self::DataEnd)?,
            11 => {
                let bytes: [u8; 4] = payload.as_ref().try_into().map_err(|_| malformed())?;
                Self::StdinCredit(u32::from_be_bytes(bytes))
            }
            12 => Self::Datagram(payload),
            other => Self::Unknown(other),
        })
    }
}

/// Cuts frames out of a growing buffer; holds no bytes itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameDecoder;

impl FrameDecoder {
    /// Takes the next frame out of `buffer`, or `None` until it is complete.
    pub fn decode(self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(header) = buffer.first_chunk::<FRAME_HEADER>() else {
            return Ok(None);
        };
        let [kind, length @ ..] = *header;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME_PAYLOAD {
            return Err(FrameError::TooLong { length });
        }
        if buffer.len() < FRAME_HEADER + length {
            return Ok(None);
        }
        buffer.advance(FRAME_HEADER);
        Frame::decode(kind, buffer.split_to(length).freeze()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ErrorCode;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let data = proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            data.clone().prop_map(Frame::Datagram),
            data.clone()
                .prop_filter("empty data makes no frame", |d| !d.is_empty())
                .prop_map(Frame::Stdin),
            data.clone()
                .prop_filter("empty data makes no frame", |d| !d.is_empty())
                .prop_map(Frame::Stdout),
            data.prop_filter("empty data makes no frame", |d| !d.is_empty()).prop_map(Frame::Data),
            Just(Frame::StdinEnd),
            Just(Frame::DataEnd),
            any::<u32>().prop_map(Frame::StdinCredit),
            any::<(u16, u16)>()
                .prop_map(|(columns, rows)| Frame::Resize(WindowSize { columns, rows })),
            (1u8..=64).prop_map(|n| Frame::Signal(SignalNumber::new(n).unwrap())),
            any::<u8>().prop_map(|code| Frame::Exit(ExitStatus::Code(code))),
            any::<u8>().prop_map(|code| Frame::Exit(ExitStatus::Signal(code))),
            ".*".prop_map(|m| Frame::Error(AgentError::new(ErrorCode::Failed, m))),
        ]
    }

    fn decode_all(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut buffer = BytesMut::from(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = FrameDecoder.decode(&mut buffer)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[test]
    fn malformed_payloads_are_refused() {
        for bytes in [
            &[2, 0, 0, 0, 1, 0][..],
            &[3, 0, 0, 0, 3, 0, 0, 0],
            &[4, 0, 0, 0, 1, 0],
            &[4, 0, 0, 0, 1, 65],
            &[4, 0, 0, 0, 0],
            &[7, 0, 0, 0, 5, 2, 0, 0, 0, 0],
            &[7, 0, 0, 0, 5, 0, 0, 0, 1, 0],
            &[8, 0, 0, 0, 1, b'{'],
        ] {
            assert!(matches!(decode_all(bytes), Err(FrameError::Payload { .. })), "{bytes:?}");
        }
        assert!(matches!(decode_all(&[1, 0, 1, 0, 0]), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn unknown_kinds_are_skipped_not_refused() {
        assert_eq!(
            decode_all(&[200, 0, 0, 0, 2, 1, 2, 10, 0, 0, 0, 0]).unwrap(),
            [Frame::Unknown(200), Frame::DataEnd]
        );
    }

    #[test]
    fn long_data_is_cut_into_frames_that_fit() {
        let data = Bytes::from(vec![7; MAX_FRAME_PAYLOAD * 2 + 1]);
        let mut out = BytesMut::new();
        Frame::Data(data.clone()).encode(&mut out);
        let frames = decode_all(&out).unwrap();
        assert_eq!(frames.len(), 3);
        let total: usize = frames
            .iter()
            .map(|f| match f {
                Frame::Data(d) => d.len(),
                _ => 0,
            })
            .sum();
        assert_eq!(total, data.len());
    }

    proptest! {
        #[test]
        fn frames_round_trip_however_they_are_cut(frames in proptest::collection::vec(any_frame(), 0..20), step in 1usize..50) {
            let mut bytes = BytesMut::new();
            frames.iter().for_each(|frame| frame.encode(&mut bytes));
            let (mut buffer, mut decoded) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = FrameDecoder.decode(&mut buffer).unwrap() {
                    decoded.push(frame);
                }
            }
            prop_assert_eq!(decoded, frames);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_all(&bytes);
        }
    }
}
