//! Reads a Debian package (deb(5)) as a stream: an `ar` archive with a control and a data archive.

use std::io::{self, Read};

use crate::tarball::{Archive, Piece, Source, TarError};

/// Why a file is not a Debian package that can be used.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// Reading failed.
    #[error("read the package")]
    Read(#[source] io::Error),
    /// It is not a Debian package of format 2.0.
    #[error("it is not a Debian package: {0}")]
    Format(&'static str),
    /// One of its archives is damaged.
    #[error("its {member} is damaged")]
    Archive {
        /// The member of the package.
        member: String,
        /// The cause.
        #[source]
        source: TarError,
    },
}

/// The fields of a package's control file that matter here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Control {
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) architecture: String,
}

/// What an ar archive begins with.
pub(crate) const MAGIC: &[u8; 8] = b"!<arch>\n";

const LARGEST_CONTROL: u64 = 1 << 20;
/// Most entries of a control archive that are looked at; packages have about ten.
const MOST_CONTROL_ENTRIES: usize = 1000;

/// The archives of a package, in their order.
pub(crate) struct Package<R> {
    reader: R,
    /// Bytes left of the current member and its padding.
    rest: u64,
}

impl<R: Read> Package<R> {
    /// Reads the beginning of a package.
    pub(crate) fn open(mut reader: R) -> Result<Self, DebError> {
        let mut magic = [0_u8; 8];
        reader.read_exact(&mut magic).map_err(|_| DebError::Format("it is too short"))?;
        if magic != *MAGIC {
            return Err(DebError::Format("its first bytes are not those of an ar archive"));
        }
        let mut package = Self { reader, rest: 0 };
        let Some((name, size)) = package.next_member()? else {
            return Err(DebError::Format("it is empty"));
        };
        let mut version = Vec::new();
        package.read_member(size).take(16).read_to_end(&mut version).map_err(DebError::Read)?;
        if name != "debian-binary" || !version.starts_with(b"2.") {
            return Err(DebError::Format("it does not begin with debian-binary 2.x"));
        }
        Ok(package)
    }

    /// Goes to the next member and returns its name and size; `None` at the end.
    fn next_member(&mut self) -> Result<Option<(String, u64)>, DebError> {
        let rest = std::mem::take(&mut self.rest);
        let skipped = io::copy(&mut self.reader.by_ref().take(rest), &mut io::sink())
            .map_err(DebError::Read)?;
        if skipped < rest {
            return Err(DebError::Format("it ends in the middle of a member"));
        }
        let mut header = Vec::new();
        self.reader.by_ref().take(60).read_to_end(&mut header).map_err(DebError::Read)?;
        if header.is_empty() {
            return Ok(None);
        }
        let malformed = DebError::Format("a member's header is malformed");
        if header.len() < 60 || &header[58..] != b"`\n" {
            return Err(malformed);
        }
        let text = |range: std::ops::Range<usize>| {
            std::str::from_utf8(&header[range]).map(str::trim_end).unwrap_or_default()
        };
        let size: u64 = text(48..58).parse().map_err(|_| malformed)?;
        self.rest = size + size % 2;
        Ok(Some((text(0..16).trim_end_matches('/').to_owned(), size)))
    }

    /// Lends the current member's content.
    fn read_member(&mut self, size: u64) -> Member<'_, R> {
        Member { package: self, left: size }
    }

    /// Reads the control archive's `control` file.
    pub(crate) fn control(&mut self) -> Result<Control, DebError> {
        let Some((name, size)) = self.next_member()? else {
            return Err(DebError::Format("it has no control archive"));
        };
        if !name.starts_with("control.tar") {
            return Err(DebError::Format("its second member is not the control archive"));
        }
        let damaged = |source| DebError::Archive { member: name.clone(), source };
        let source = Source::new(self.read_member(size)).map_err(DebError::Read)?;
        let mut archive = Archive::new(source);
        for _ in 0..MOST_CONTROL_ENTRIES {
            let Some(entry) = archive.next_entry().map_err(damaged)? else { break };
            if entry.path != b"control" || entry.size > LARGEST_CONTROL {
                continue;
            }
            let mut text = Vec::new();
            while let Some(piece) = archive.next_piece().map_err(damaged)? {
                if let Piece::Data(data) = piece {
                    text.extend_from_slice(data);
                }
            }
            let text = String::from_utf8_lossy(&text);
            let field = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                    .map(|value| value.trim().to_owned())
                    .unwrap_or_default()
            };
            return Ok(Control {
                package: field("Package"),
                version: field("Version"),
                architecture: field("Architecture"),
            });
        }
        Err(DebError::Format("its control archive has no control file"))
    }

    /// Goes to the data archive, which must be next.
    pub(crate) fn data(&mut self) -> Result<Archive<Source<Member<'_, R>>>, DebError> {
        loop {
            let Some((name, size)) = self.next_member()? else {
                return Err(DebError::Format("it has no data archive"));
            };
            // Members whose name begins with an underscore are for others (deb(5)).
            if name.starts_with('_') {
                continue;
            }
            if !name.starts_with("data.tar") {
                return Err(DebError::Format("its third member is not the data archive"));
            }
            let source = Source::new(self.read_member(size)).map_err(DebError::Read)?;
            return Ok(Archive::new(source));
        }
    }

    /// Reads what is left, so that a digest of the whole package is complete.
    pub(crate) fn drain(&mut self) -> Result<(), DebError> {
        while self.next_member()?.is_some() {}
        Ok(())
    }
}

/// The content of one member.
pub(crate) struct Member<'a, R> {
    package: &'a mut Package<R>,
    left: u64,
}

impl<R: Read> Read for Member<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.package.reader.read(&mut buffer[..most])?;
        self.left -= read as u64;
        self.package.rest -= read as u64;
        Ok(read)
    }
}
