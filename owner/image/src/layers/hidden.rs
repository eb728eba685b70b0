//! Which paths of older layers the newer ones seem to hide.
//!
//! Layers come newest first, so a file that a newer layer replaces or removes need not be written
//! at all. Paths are compared as they are spelled: what links make of them is only known in the
//! end, when the few that were guessed wrong are read again. Hashes stand for paths, under a key
//! that nobody else has; two paths with one hash cost such a second reading and nothing else.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// What a layer has at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Hides {
    /// A directory: it hides what is no directory.
    Itself,
    /// Anything else, or a whiteout: it hides all of that path.
    AndBelow,
    /// An opaque whiteout: it hides what is below the path.
    Below,
}

/// The paths that newer layers hide.
#[derive(Debug, Default)]
pub(crate) struct Hidden {
    paths: HashSet<u64>,
    /// Those of the layer that is being read: they hide nothing of their own layer.
    pending: Vec<u64>,
    state: RandomState,
}

impl Hidden {
    /// Notes what the current layer has at `path`.
    pub(crate) fn add(&mut self, path: &[u8], hides: Hides) {
        self.pending.push(self.state.hash_one((path, hides)));
    }

    /// Begins an older layer.
    pub(crate) fn next_layer(&mut self) {
        self.paths.extend(self.pending.drain(..));
    }

    /// Returns whether a newer layer seems to hide the file `path`.
    pub(crate) fn contains(&self, path: &[u8]) -> bool {
        if self.paths.is_empty() {
            return false;
        }
        let has = |path: &[u8], hides| self.paths.contains(&self.state.hash_one((path, hides)));
        if has(path, Hides::Itself) || has(path, Hides::AndBelow) || has(b"", Hides::Below) {
            return true;
        }
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        slashes
            .map(|(at, _)| &path[..at])
            .any(|above| has(above, Hides::AndBelow) || has(above, Hides::Below))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_hides_older_ones_and_not_itself() {
        let mut hidden = Hidden::default();
        hidden.add(b"a/file", Hides::AndBelow);
        hidden.add(b"a", Hides::Itself);
        hidden.add(b"o", Hides::Below);
        assert!(!hidden.contains(b"a/file"));
        hidden.next_layer();
        for path in [&b"a/file"[..], b"a/file/below/it", b"a", b"o/x", b"o/x/y"] {
            assert!(hidden.contains(path), "{}", path.escape_ascii());
        }
        for path in [&b"a/other"[..], b"o", b"b", b"a/filex"] {
            assert!(!hidden.contains(path), "{}", path.escape_ascii());
        }
        hidden.add(b"", Hides::Below);
        hidden.next_layer();
        assert!(hidden.contains(b"b"));
    }
}
