//! The little of the qcow2 format that an overlay needs (QEMU `docs/interop/qcow2.txt`), written
//! and read here so that no other program is needed.
//!
//! A new overlay, in clusters of 64 KiB, all but the first bytes of 0, 1 and 2 being holes:
//!
//! ```text
//! 0     header, its extensions, the base's path
//! 1     refcount table: its first entry points to cluster 2
//! 2     refcount block: clusters 0 to 6 have one user each
//! 3..7  L1 table: every entry 0, so every read goes to the base
//! ```
//!
//! The L1 table has room for [`DiskSize::MOST`] from the beginning. A table longer than the disk is
//! allowed (QEMU itself keeps machine states there), and growing the disk is then one write of eight
//! bytes, which cannot be torn.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use banger_types::DiskSize;

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
const VERSION: u32 = 3;
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of disk behind one L1 entry: one L2 table, a cluster of 8-byte entries, a cluster each.
const L1_ENTRY_COVERS: u64 = CLUSTER / 8 * CLUSTER;
const L1_ENTRIES: u32 = 1 << 15;
const L1_CLUSTERS: u64 = L1_ENTRIES as u64 * 8 / CLUSTER;
const REFCOUNT_TABLE: u64 = CLUSTER;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER;
const L1_TABLE: u64 = 3 * CLUSTER;
const CLUSTERS: u64 = 3 + L1_CLUSTERS;
const HEADER_LENGTH: u32 = 104;
const SIZE_OFFSET: u64 = 24;
/// Header extension: the base's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The longest path of a base that the format allows.
pub(super) const BACKING_LIMIT: usize = 1023;

const _: () = assert!(L1_ENTRIES as u64 * L1_ENTRY_COVERS >= DiskSize::MOST.bytes());

/// Returns the most bytes that the file of a disk of `size` bytes takes: every cluster written, the tables
/// that lead to them, and two bytes of reference count for each.
pub(super) const fn most(size: u64) -> u64 {
    let data = size.div_ceil(CLUSTER);
    let tables = size.div_ceil(L1_ENTRY_COVERS);
    let counts = (data + tables).div_ceil(CLUSTER / 2) + 1;
    (CLUSTERS + data + tables + counts) * CLUSTER
}

/// Writes a new overlay of `size` bytes over the raw image named `base` into an empty file.
pub(super) fn write_new(file: &File, size: DiskSize, base: &[u8]) -> io::Result<()> {
    file.set_len(CLUSTERS * CLUSTER)?;
    file.write_all_at(&header(size.bytes(), base), 0)?;
    file.write_all_at(&REFCOUNT_BLOCK.to_be_bytes(), REFCOUNT_TABLE)?;
    let refcounts: Vec<u8> = (0..CLUSTERS).flat_map(|_| 1_u16.to_be_bytes()).collect();
    file.write_all_at(&refcounts, REFCOUNT_BLOCK)
}

fn header(size: u64, base: &[u8]) -> Vec<u8> {
    let format = b"raw";
    // Header, one extension (padded to eight bytes), the closing extension, then the path.
    let base_offset = u64::from(HEADER_LENGTH) + 8 + 8 + 8;
    let base_length = u32::try_from(base.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(512);
    let put32 = |bytes: &mut Vec<u8>, value: u32| bytes.extend_from_slice(&value.to_be_bytes());
    let put64 = |bytes: &mut Vec<u8>, value: u64| bytes.extend_from_slice(&value.to_be_bytes());
    put32(&mut bytes, MAGIC);
    put32(&mut bytes, VERSION);
    put64(&mut bytes, base_offset);
    put32(&mut bytes, base_length);
    put32(&mut bytes, CLUSTER_BITS);
    put64(&mut bytes, size);
    put32(&mut bytes, 0); // encryption: none
    put32(&mut bytes, L1_ENTRIES);
    put64(&mut bytes, L1_TABLE);
    put64(&mut bytes, REFCOUNT_TABLE);
    put32(&mut bytes, 1); // clusters of the refcount table
    put32(&mut bytes, 0); // snapshots
    put64(&mut bytes, 0); // snapshot table
    put64(&mut bytes, 0); // incompatible features
    put64(&mut bytes, 0); // compatible features
    put64(&mut bytes, 0); // features cleared by software that does not know them
    put32(&mut bytes, 4); // refcounts have 2^4 bits
    put32(&mut bytes, HEADER_LENGTH);
    put32(&mut bytes, BACKING_FORMAT);
    put32(&mut bytes, 3);
    bytes.extend_from_slice(format);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    put64(&mut bytes, 0); // end of the extensions
    bytes.extend_from_slice(base);
    bytes
}

/// What a header says of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// The disk's size in bytes as the guest sees it.
    pub(super) size: u64,
    /// The size in bytes up to which it can grow by its header alone.
    pub(super) room: u64,
}

/// Reads the header. `Err(Ok(problem))` where it is none of ours.
pub(super) fn read_geometry(file: &File) -> Result<Geometry, Result<&'static str, io::Error>> {
    let mut header = [0; HEADER_LENGTH as usize];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(Ok("is not a qcow2 image"));
        }
        Err(error) => return Err(Err(error)),
    }
    let u32_at = |at: usize| u32::from_be_bytes(array(&header[at..]));
    let u64_at = |at: usize| u64::from_be_bytes(array(&header[at..]));
    if u32_at(0) != MAGIC {
        return Err(Ok("is not a qcow2 image"));
    }
    if u32_at(4) != VERSION || u32_at(20) != CLUSTER_BITS || u32_at(60) != 0 {
        return Err(Ok(
            "is not a qcow2 image of banger's (version 3, 64 KiB clusters, no snapshots)",
        ));
    }
    Ok(Geometry { size: u64_at(24), room: u64::from(u32_at(36)) * L1_ENTRY_COVERS })
}

/// Writes a new size into the header.
pub(super) fn write_size(file: &File, size: u64) -> io::Result<()> {
    file.write_all_at(&size.to_be_bytes(), SIZE_OFFSET)?;
    file.sync_data()
}

/// Returns the first bytes of a slice that is known to be long enough.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}
