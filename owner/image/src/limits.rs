//! What an archive may cost its reader.

use crate::builder::BuildError;
use crate::ext4::Writer;

/// What an archive may make large.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most entries.
    pub entries: u64,
    /// Most bytes of content, holes not counted.
    pub content: u64,
    /// Most bytes of padding behind the end-of-archive marker.
    pub padding: u64,
    /// Most uncompressed bytes for one compressed byte, beyond the first
    /// [`Limits::ratio_free`] ones. Real layers stay below 20.
    pub ratio: u64,
    /// Uncompressed bytes that any archive may have.
    pub ratio_free: u64,
}

impl Limits {
    /// Refuses directories that no entry names and that cost as much as those that have one.
    pub(crate) fn check_inodes(&self, writer: &Writer) -> Result<(), BuildError> {
        if writer.inodes() <= self.entries.saturating_add(64) {
            return Ok(());
        }
        Err(BuildError::Limit { what: "files and directories", limit: self.entries })
    }

    /// Refuses what was made to be small and become large.
    pub(crate) fn check_ratio(&self, compressed: u64, uncompressed: u64) -> Result<(), BuildError> {
        if self.ratio_fits(compressed, uncompressed) {
            return Ok(());
        }
        Err(BuildError::Ratio { compressed, uncompressed, limit: self.ratio })
    }

    pub(crate) fn ratio_fits(&self, compressed: u64, uncompressed: u64) -> bool {
        uncompressed <= self.ratio_free || uncompressed / self.ratio <= compressed
    }
}

impl Default for Limits {
    /// Twice the largest images in use: 1.2 million entries (200 MiB of memory), 256 GiB.
    fn default() -> Self {
        Self {
            entries: 1_200_000,
            content: 256 << 30,
            padding: 64 << 20,
            ratio: 100,
            ratio_free: 8 << 30,
        }
    }
}
