//! A read buffer whose bytes can be lent out and consumed in one step.

use std::io::{self, Read};

/// The unread part of a fixed buffer in front of a source.
#[derive(Debug)]
pub(crate) struct Window<R> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<R: Read> Window<R> {
    pub(crate) fn new(source: R, size: usize) -> Self {
        Self { source, buffer: vec![0; size].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Makes bytes available and returns how many; 0 only at the end of the source.
    pub(crate) fn fill(&mut self) -> io::Result<usize> {
        while self.start == self.end {
            match self.source.read(&mut self.buffer) {
                Ok(0) => return Ok(0),
                Ok(read) => (self.start, self.end) = (0, read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.end - self.start)
    }

    /// Takes up to `most` of the available bytes.
    pub(crate) fn take(&mut self, most: usize) -> &[u8] {
        let take = most.min(self.end - self.start);
        self.start += take;
        &self.buffer[self.start - take..self.start]
    }

    pub(crate) fn source(&self) -> &R {
        &self.source
    }

    pub(crate) fn into_inner(self) -> R {
        self.source
    }
}
