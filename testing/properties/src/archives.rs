//! What must hold of any bytes that are taken for an archive: a layer's, an import's.

use banger_image::tarball::{Archive, EntryKind, Piece, Source};

/// The name of the fuzz target.
pub const TARGET: &str = "archive";

/// Uncompressed bytes that are looked at: a few bytes can become as many as one likes.
const MOST: u64 = 4 << 20;

/// Walks an archive to its end, or to where it is refused.
///
/// # Panics
/// A path leads out of the archive or is longer than one may be, or content is more or less than
/// its entry said.
pub fn check(data: &[u8]) {
    let Ok(source) = Source::new(data) else { return };
    let mut archive = Archive::new(source);
    while archive.position() < MOST {
        let Ok(Some(entry)) = archive.next_entry() else { return };
        check_path(&entry.path);
        if let EntryKind::HardLink(target) = &entry.kind {
            check_path(target);
        }
        assert!(entry.metadata.permissions <= 0o7777);
        let mut given = 0_u64;
        loop {
            match archive.next_piece() {
                Ok(Some(Piece::Data(bytes))) => {
                    assert!(!bytes.is_empty());
                    given += bytes.len() as u64;
                }
                Ok(Some(Piece::Hole(length))) => {
                    assert!(length > 0);
                    given = given.checked_add(length).unwrap();
                }
                Ok(None) => break,
                Err(_) => return,
            }
            if archive.position() >= MOST {
                return;
            }
        }
        assert_eq!(given, entry.size);
    }
}

fn check_path(path: &[u8]) {
    assert!(path.len() <= 4096);
    if !path.is_empty() {
        let mut names = path.split(|&byte| byte == b'/');
        assert!(names.all(|name| !matches!(name, b"" | b"." | b"..")));
    }
}

/// What the fuzzing begins with.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    builder.append_data(&mut header, "a/file", &b"bytes"[..]).unwrap();
    builder.append_data(&mut header, "long/".repeat(40), &b"bytes"[..]).unwrap();
    builder
        .append_pax_extensions([("SCHILY.xattr.user.a", &b"b"[..]), ("mtime", b"-1.5")])
        .unwrap();
    builder.append_data(&mut header, "a/attributes", &b"bytes"[..]).unwrap();
    builder
        .append_pax_extensions([("GNU.sparse.map", &b"4096,5"[..]), ("GNU.sparse.size", b"9000")])
        .unwrap();
    builder.append_data(&mut header, "a/sparse", &b"bytes"[..]).unwrap();
    let mut link = tar::Header::new_ustar();
    link.set_size(0);
    link.set_entry_type(tar::EntryType::Symlink);
    builder.append_link(&mut link, "a/link", "../file").unwrap();
    link.set_entry_type(tar::EntryType::Link);
    builder.append_link(&mut link, "a/.wh.gone", "a/file").unwrap();
    let whole = builder.into_inner().unwrap();
    vec![whole[..1024].to_vec(), whole[..1024 + 700].to_vec(), whole, vec![0; 1024]]
}
