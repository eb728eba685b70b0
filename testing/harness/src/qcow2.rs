//! Reads a qcow2 overlay, so that a file system in it can be checked.
//!
//! Only what the tests meet: no compression, no encryption, no snapshots, one
//! raw backing file. The format is QEMU's docs/interop/qcow2.txt.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZERO: u64 = 1;

struct Header {
    backing: Option<PathBuf>,
    cluster_bits: u32,
    size: u64,
    l1_size: u32,
    l1_offset: u64,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Header {
    fn read(file: &File) -> Self {
        let mut bytes = [0; 104];
        file.read_exact_at(&mut bytes[..72], 0).expect("a qcow2 file has a header");
        assert_eq!(&bytes[..4], b"QFI\xfb", "not a qcow2 file");
        let (name_offset, name_length) = (be64(&bytes, 8), be32(&bytes, 16));
        let backing = (name_offset != 0).then(|| {
            let mut name = vec![0; usize::try_from(name_length).expect("a short name")];
            file.read_exact_at(&mut name, name_offset).expect("the backing file's name");
            PathBuf::from(String::from_utf8(name).expect("a name that is text"))
        });
        assert_eq!(be32(&bytes, 32), 0, "the file is encrypted");
        Self {
            backing,
            cluster_bits: be32(&bytes, 20),
            size: be64(&bytes, 24),
            l1_size: be32(&bytes, 36),
            l1_offset: be64(&bytes, 40),
        }
    }
}

fn table(file: &File, offset: u64, entries: usize) -> Vec<u64> {
    let mut bytes = vec![0; entries * 8];
    // A table at the end of the file may be cut short by its unused entries.
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64).expect("read a table") {
            0 => break,
            count => filled += count,
        }
    }
    bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect()
}

/// Writes what a guest sees on the overlay `from` as a raw, sparse file `to`.
pub fn flatten_qcow2(from: &Path, to: &Path) {
    let overlay = File::open(from).expect("open the overlay");
    let header = Header::read(&overlay);
    let target = match &header.backing {
        Some(backing) => {
            let backing = from.parent().expect("a file lies in a folder").join(backing);
            let copied = std::process::Command::new("/bin/cp")
                .args(["--sparse=always", "--"])
                .arg(&backing)
                .arg(to)
                .status();
            assert!(copied.is_ok_and(|status| status.success()), "copy {}", backing.display());
            std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .expect("open the copy");
            File::options().write(true).open(to).expect("open the copy")
        }
        None => File::create(to).expect("make the copy"),
    };
    target.set_len(header.size).expect("size the copy");
    let cluster = 1_usize << header.cluster_bits;
    let per_table = cluster / 8;
    let l1 =
        table(&overlay, header.l1_offset, usize::try_from(header.l1_size).expect("a small table"));
    let mut buffer = vec![0; cluster];
    for (first, entry) in l1.iter().enumerate() {
        let l2_offset = entry & OFFSET_MASK;
        if l2_offset == 0 {
            continue;
        }
        for (second, entry) in table(&overlay, l2_offset, per_table).iter().enumerate() {
            assert_eq!(entry & COMPRESSED, 0, "the file has compressed clusters");
            let position = ((first * per_table + second) * cluster) as u64;
            if position >= header.size {
                break;
            }
            let offset = entry & OFFSET_MASK;
            buffer.fill(0);
            if entry & READS_AS_ZERO == 0 {
                if offset == 0 {
                    continue;
                }
                overlay.read_at(&mut buffer, offset).expect("read a cluster");
            }
            let length = usize::try_from((header.size - position).min(cluster as u64))
                .expect("a cluster fits");
            target.write_all_at(&buffer[..length], position).expect("write a cluster");
        }
    }
}
