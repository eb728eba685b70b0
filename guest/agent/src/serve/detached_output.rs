//! The kept end of a detached command's output.

use std::collections::VecDeque;

use banger_agent_api::{Frame, FrameKind};
use bytes::Bytes;

/// Pieces grow to this size before another is begun.
const PIECE: usize = 4 * 1024;

/// Output in order, of which the beginning is dropped when it is too much.
#[derive(Debug, Default)]
pub(super) struct Output {
    pieces: VecDeque<Piece>,
    /// Bytes that were written, those dropped included.
    pub(super) written: u64,
    pub(super) kept: usize,
}

#[derive(Debug)]
struct Piece {
    kind: FrameKind,
    /// How many bytes were written before it.
    start: u64,
    bytes: Vec<u8>,
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
    pub(super) fn push(&mut self, kind: FrameKind, bytes: &[u8]) {
        self.kept += bytes.len();
        match self.pieces.back_mut() {
            Some(last) if last.kind == kind && last.bytes.len() + bytes.len() <= PIECE => {
                last.bytes.extend_from_slice(bytes);
            }
            _ => {
                let start = self.written;
                self.pieces.push_back(Piece { kind, start, bytes: bytes.to_vec() });
            }
        }
        self.written += bytes.len() as u64;
    }

    /// Drops the oldest piece.
    pub(super) fn drop_oldest(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.kept -= piece.bytes.len();
        }
    }

    /// Returns what comes after `position`; nothing at the end.
    pub(super) fn after(&self, position: u64) -> Option<Next> {
        let end = |piece: &Piece| piece.start + piece.bytes.len() as u64;
        let piece = self.pieces.iter().find(|piece| end(piece) > position)?;
        let from = position.max(piece.start);
        let skipped = usize::try_from(from - piece.start).unwrap_or(piece.bytes.len());
        let bytes = Bytes::copy_from_slice(&piece.bytes[skipped..]);
        let frame = match piece.kind {
            FrameKind::Stderr => Frame::Stderr(bytes),
            _ => Frame::Stdout(bytes),
        };
        Some(Next { frame, position: end(piece), lost: from - position })
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
            output.push(FrameKind::Stdout, format!("{number:04095}\n").as_bytes());
        }
        for _ in 0..90 {
            output.drop_oldest();
        }
        assert_eq!((output.kept, output.written), (10 * 4096, 100 * 4096));
        let (text, lost) = read(&output, 10);
        assert_eq!(lost, 90 * 4096 - 10);
        assert!(text.ends_with("0099\n") && text.len() == 10 * 4096);
    }
}
