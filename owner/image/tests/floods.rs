//! Archives that are small and ask for much: memory stays bounded, however long they go on.

mod support;

use std::io::Read;

use support::{Header, Store, archive, chain, file, padded, pax};

/// Gives the same bytes for ever.
struct Again(Vec<u8>, usize);

impl Read for Again {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let rest = &self.0[self.1..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.1 = (self.1 + count) % self.0.len();
        Ok(count)
    }
}

#[test]
fn headers_without_an_entry_end_somewhere() {
    let comment = vec![b'c'; 1 << 19];
    let mut global = pax(&[("comment", &comment)]);
    let mut header = Header { bytes: *global.first_chunk().unwrap() };
    global[..512].copy_from_slice(&header.put(156, b"g").finish());
    for headers in [
        pax(&[("comment", &comment)]),
        global,
        Header::new(b"volume", b'V', 0).finish(),
        [Header::new(b"long", b'L', 4).finish(), padded(b"name".to_vec())].concat(),
    ] {
        let store = Store::new();
        let error = store.import(Again(headers, 0)).map(|image| image.manifest).unwrap_err();
        let text = chain(&error);
        assert!(text.contains("the run of headers"), "{text}");
        assert_eq!(store.left(), Vec::<String>::new());
    }
}

#[test]
fn a_sparse_map_of_nothing_is_read_without_recursion() {
    // Three quarters of a million empty pieces.
    let count = 750_000;
    let map = format!("{count}\n{}", "0\n".repeat(2 * count));
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"a"),
        ("GNU.sparse.realsize", b"4096"),
    ];
    let bytes = archive(&[pax(&records), file("x", &padded(map.into_bytes()))]);
    Store::new().import(&bytes[..]).unwrap();
}
