//! The kept end of a detached command's output.
//!
//! It lies in pieces of one size, each of which holds records: the stream, the length, the bytes. So what
//! it takes is known whatever is written, also a byte at a time to one stream and the other in turn.

use std::collections::VecDeque;

use banger_agent_api::{Frame, FrameKind};
use bytes::Bytes;

/// Bytes of a piece, which is taken and dropped as a whole.
const PIECE: usize = 4 * 1024;
/// Bytes before those of a record: one for its stream, two for its length, little-endian.
const HEADER: usize = 3;

const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// Output in order, of which the beginning is dropped when it is too much.
#[derive(Debug, Default)]
pub(super) struct Output {
    pieces: VecDeque<Piece>,
    /// Bytes that were written, those dropped included.
    pub(super) written: u64,
    /// Bytes of output that are there.
    pub(super) kept: usize,
}

#[derive(Debug)]
struct Piece {
    /// How many bytes were written before it.
    start: u64,
    /// How many of them it has.
    count: usize,
    records: Vec<u8>,
    /// Where the last record begins.
    last: usize,
}

impl Piece {
    fn new(start: u64) -> Self {
        Self { start, count: 0, records: Vec::with_capacity(PIECE), last: 0 }
    }

    fn end(&self) -> u64 {
        self.start + self.count as u64
    }

    /// Takes what there is room for; returns the rest.
    fn take<'b>(&mut self, stream: u8, bytes: &'b [u8]) -> &'b [u8] {
        let is_another = self.records.get(self.last) != Some(&stream);
        let room = PIECE - self.records.len();
        let count = room.saturating_sub(if is_another { HEADER } else { 0 }).min(bytes.len());
        if count == 0 {
            return bytes;
        }
        if is_another {
            self.last = self.records.len();
            self.records.extend_from_slice(&[stream, 0, 0]);
        }
        self.records.extend_from_slice(&bytes[..count]);
        // A piece is shorter than what two bytes count.
        let length = self.records.len() - self.last - HEADER;
        let [low, high, ..] = length.to_le_bytes();
        self.records[self.last + 1] = low;
        self.records[self.last + 2] = high;
        self.count += count;
        &bytes[count..]
    }

    /// Its records: stream, bytes, and how many bytes were written before these.
    fn records(&self) -> impl Iterator<Item = (u8, &[u8], u64)> {
        let (mut rest, mut start) = (&self.records[..], self.start);
        std::iter::from_fn(move || {
            let (&[stream, low, high], after) = rest.split_first_chunk::<HEADER>()?;
            let length = usize::from(u16::from_le_bytes([low, high]));
            let (bytes, after) = after.split_at_checked(length)?;
            let at = start;
            (rest, start) = (after, start + length as u64);
            Some((stream, bytes, at))
        })
    }
}

/// What comes next for a reader.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) frame: Frame,
    /// Where the reader is then.
    pub(super) position: u64,
    /// Bytes before it that are not kept any more.
    pub(super) lost: u64,
}

impl Output {
    pub(super) fn push(&mut self, kind: FrameKind, mut bytes: &[u8]) {
        let stream = if kind == FrameKind::Stderr { STDERR } else { STDOUT };
        while !bytes.is_empty() {
            let before = bytes.len();
            if let Some(last) = self.pieces.back_mut() {
                bytes = last.take(stream, bytes);
            }
            let taken = before - bytes.len();
            self.kept += taken;
            self.written += taken as u64;
            if !bytes.is_empty() {
                self.pieces.push_back(Piece::new(self.written));
            }
        }
    }

    /// Returns how many bytes of memory it takes.
    pub(super) fn memory(&self) -> usize {
        self.pieces.len() * (PIECE + size_of::<Piece>())
    }

    /// Drops the oldest piece.
    pub(super) fn drop_oldest(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.kept -= piece.count;
        }
    }

    /// Returns what comes after `position`; nothing at the end.
    pub(super) fn after(&self, position: u64) -> Option<Next> {
        let piece = self.pieces.iter().find(|piece| piece.end() > position)?;
        let from = position.max(piece.start);
        let is_next = |(_, bytes, start): &(u8, &[u8], u64)| start + bytes.len() as u64 > from;
        let (stream, bytes, start) = piece.records().find(is_next)?;
        let skipped = usize::try_from(from - start).unwrap_or(bytes.len());
        let end = start + bytes.len() as u64;
        let bytes = Bytes::copy_from_slice(&bytes[skipped..]);
        let frame = if stream == STDERR { Frame::Stderr(bytes) } else { Frame::Stdout(bytes) };
        Some(Next { frame, position: end, lost: from - position })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &Output, mut position: u64) -> (String, u64) {
        let (mut text, mut lost) = (String::new(), 0);
        while let Some(next) = output.after(position) {
            let (Frame::Stdout(bytes) | Frame::Stderr(bytes)) = &next.frame else { panic!() };
            text.push_str(std::str::from_utf8(bytes).unwrap());
            lost += next.lost;
            position = next.position;
        }
        (text, lost)
    }

    #[test]
    fn output_is_read_from_anywhere_in_order_and_in_its_streams() {
        let mut output = Output::default();
        output.push(FrameKind::Stdout, b"one ");
        output.push(FrameKind::Stdout, b"two ");
        output.push(FrameKind::Stderr, b"oops ");
        output.push(FrameKind::Stdout, b"three");
        assert_eq!(read(&output, 0), ("one two oops three".to_owned(), 0));
        assert_eq!(read(&output, 5), ("wo oops three".to_owned(), 0));
        assert_eq!(read(&output, output.written), (String::new(), 0));
        let second = output.after(8).unwrap();
        assert_eq!(second.frame, Frame::Stderr(Bytes::from_static(b"oops ")));
    }

    #[test]
    fn what_was_dropped_is_told() {
        let mut output = Output::default();
        for number in 0..100 {
            // As much as fits a piece.
            output.push(FrameKind::Stdout, format!("{number:04092}\n").as_bytes());
        }
        for _ in 0..90 {
            output.drop_oldest();
        }
        assert_eq!((output.kept, output.written), (10 * 4093, 100 * 4093));
        let (text, lost) = read(&output, 10);
        assert_eq!(lost, 90 * 4093 - 10);
        assert!(text.ends_with("0099\n") && text.len() == 10 * 4093);
    }

    #[test]
    fn single_bytes_take_no_more_memory_than_is_counted() {
        const LIMIT: usize = 64 << 10;
        let streams = [FrameKind::Stdout, FrameKind::Stderr];
        // Both streams in turn, which is the worst, and one alone.
        for count in [2, 1] {
            let mut output = Output::default();
            let mut all = String::new();
            for number in 0..200_000_usize {
                let digit = char::from(b'0' + u8::try_from(number % 10).unwrap());
                output.push(streams[number % count], digit.to_string().as_bytes());
                all.push(digit);
                while output.memory() > LIMIT {
                    output.drop_oldest();
                }
            }
            let pieces = output.pieces.iter();
            let taken: usize = pieces.map(|piece| piece.records.capacity()).sum::<usize>()
                + output.pieces.len() * size_of::<Piece>();
            assert_eq!(taken, output.memory());
            // A quarter of it is output where each byte has a header.
            let least = if count == 2 { LIMIT / 5 } else { LIMIT * 3 / 4 };
            assert!(output.kept > least, "{} bytes are kept", output.kept);
            let (text, lost) = read(&output, 0);
            assert_eq!(usize::try_from(lost).unwrap() + output.kept, 200_000);
            assert_eq!(text, all[all.len() - output.kept..]);
        }
    }
}
