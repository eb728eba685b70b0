//! Names of entries that are no files: whiteouts (OCI image specification, layer.md).

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What AUFS kept beside the files of a layer; Docker's early layers still hold some of it.
const AUFS: &[u8] = b".wh..wh.";

/// What an entry's path means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// An entry like any other.
    Entry,
    /// Nothing: bookkeeping of AUFS.
    Nothing,
    /// `name` of older layers is no longer in `directory`.
    Whiteout { directory: &'a [u8], name: &'a [u8] },
    /// Nothing of older layers is left in `directory`.
    Opaque { directory: &'a [u8] },
    /// A whiteout of no name, of `.` or of `..`, or something below a whiteout.
    Bad,
}

/// Returns what `path`, which has no `..`, means in a layer.
pub(crate) fn meaning(path: &[u8]) -> Meaning<'_> {
    let (directory, name) = match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], path),
    };
    for part in directory.split(|&byte| byte == b'/') {
        if part.starts_with(AUFS) {
            return Meaning::Nothing;
        }
        if part.starts_with(PREFIX) {
            return Meaning::Bad;
        }
    }
    if name == OPAQUE {
        return Meaning::Opaque { directory };
    }
    if name.starts_with(AUFS) {
        return Meaning::Nothing;
    }
    match name.strip_prefix(PREFIX) {
        None => Meaning::Entry,
        Some(b"" | b"." | b"..") => Meaning::Bad,
        Some(name) => Meaning::Whiteout { directory, name },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whiteouts_by_their_prefix_alone() {
        let plain = |directory, name| Meaning::Whiteout { directory, name };
        for (path, expected) in [
            (&b"a/b"[..], Meaning::Entry),
            (b"", Meaning::Entry),
            (b"a.wh.b", Meaning::Entry),
            (b".wh", Meaning::Entry),
            (b".wh.a", plain(b"", b"a")),
            (b"a/b/.wh.c", plain(b"a/b", b"c")),
            (b"a/.wh..hidden", plain(b"a", b".hidden")),
            (b"a/.wh....", plain(b"a", b"...")),
            (b".wh..wh..opq", Meaning::Opaque { directory: b"" }),
            (b"a/.wh..wh..opq", Meaning::Opaque { directory: b"a" }),
            (b".wh..wh.aufs", Meaning::Nothing),
            (b".wh..wh.plnk/1.2", Meaning::Nothing),
            (b"a/.wh.", Meaning::Bad),
            (b"a/.wh..", Meaning::Bad),
            (b"a/.wh...", Meaning::Bad),
            (b".wh.a/b", Meaning::Bad),
        ] {
            assert_eq!(meaning(path), expected, "{}", path.escape_ascii());
        }
    }
}
