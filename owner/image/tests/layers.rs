//! Layers over each other: what the newest says is what is there.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use banger_image::{Layer, LayerMediaType, LayerSource};
use support::layered::{Bytes, coded, plain};
use support::{Store, archive, chain, content, debugfs, directory, file, link};

fn names(image: &Path, path: &str) -> Vec<String> {
    let listing = debugfs(image, &format!("ls -p {path}"));
    let names = listing.lines().filter_map(|line| line.split('/').nth(5));
    names.filter(|name| !matches!(*name, "" | "." | ".." | "lost+found")).map(Into::into).collect()
}

fn build(layers: &[&[Vec<u8>]]) -> (Store, std::path::PathBuf) {
    let store = Store::new();
    let layers = layers.iter().map(|parts| plain(&archive(parts))).collect();
    let image = store.build(layers).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let root = image.root();
    (store, root)
}

#[test]
fn whiteouts_remove_what_older_layers_brought_and_nothing_of_their_own() {
    let (_store, image) = build(&[
        &[
            directory("a"),
            file("a/gone", b"1"),
            file("a/again", b"old"),
            directory("a/tree"),
            file("a/tree/x", b"x"),
            directory("b"),
            file("b/old", b"1"),
            directory("b/sub"),
            file("b/sub/old", b"1"),
            file("kept", b"kept"),
        ],
        &[
            file("a/.wh.gone", b""),
            file("a/again", b"new"),
            file("a/.wh.again", b""),
            file("a/.wh.tree", b""),
            file("a/.wh.never", b""),
            file("nowhere/.wh.x", b""),
            directory("b"),
            directory("b/sub"),
            file("b/sub/new", b"2"),
            file("b/.wh..wh..opq", b""),
            file("b/new", b"2"),
        ],
    ]);
    assert_eq!(names(&image, "/"), ["a", "b", "kept"]);
    assert_eq!(names(&image, "/a"), ["again"]);
    assert_eq!(content(&image, "/a/again"), b"new");
    assert_eq!(names(&image, "/b"), ["new", "sub"]);
    assert_eq!(names(&image, "/b/sub"), ["new"]);
}

#[test]
fn links_of_older_layers_lead_and_types_make_room_for_each_other() {
    let (_store, image) = build(&[
        &[
            directory("usr"),
            directory("usr/lib"),
            link("lib", b'2', "usr/lib"),
            file("original", b"shared"),
            directory("tree"),
            file("tree/x", b"x"),
            file("plain", b"x"),
        ],
        &[
            file("lib/new", b"below usr/lib"),
            link("second", b'1', "original"),
            file("tree", b"now a file"),
            directory("plain"),
            file("plain/y", b"y"),
        ],
        &[file("original", b"replaced"), file("lib/.wh.never", b"")],
    ]);
    assert_eq!(content(&image, "/usr/lib/new"), b"below usr/lib");
    assert_eq!(content(&image, "/second"), b"shared");
    assert_eq!(content(&image, "/original"), b"replaced");
    assert_eq!(content(&image, "/tree"), b"now a file");
    assert_eq!(content(&image, "/plain/y"), b"y");
}

#[test]
fn compressed_layers_are_what_their_digests_say_or_are_refused() {
    use std::io::Write;
    let bytes = archive(&[file("a", &[7; 5000])]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&bytes[..1000]).expect("memory");
    let mut gzip = encoder.finish().expect("memory");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&bytes[1000..]).expect("memory");
    gzip.extend(encoder.finish().expect("memory"));
    let zstd = zstd::encode_all(&bytes[..], 1).expect("memory");
    for (coded_bytes, media_type) in [
        (&gzip, LayerMediaType::Gzip),
        (&zstd, LayerMediaType::Zstd),
        (&bytes, LayerMediaType::Tar),
    ] {
        let store = Store::new();
        let image = store.build(vec![coded(coded_bytes, &bytes, media_type)]).expect("a layer");
        assert_eq!(content(&image.root(), "/a"), [7; 5000]);
        assert_eq!(image.manifest.layers[0].size, coded_bytes.len() as u64);

        let store = Store::new();
        let wrong = coded(coded_bytes, b"another", media_type);
        let error = store.build(vec![plain(&bytes), wrong]).map(|_| ()).unwrap_err();
        let text = chain(&error);
        assert!(text.contains("layer 2 (sha256:") && text.contains("uncompressed layer"), "{text}");
        assert_eq!(store.left(), Vec::<String>::new());
    }
}

/// A layer that counts how often it is opened.
struct Counted(Bytes, Arc<AtomicUsize>);

impl LayerSource for Counted {
    fn open(&self) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.open()
    }
}

fn counted(parts: &[Vec<u8>]) -> (Layer, Arc<AtomicUsize>) {
    let bytes = archive(parts);
    let count = Arc::new(AtomicUsize::new(0));
    let mut layer = plain(&bytes);
    layer.source = Box::new(Counted(Bytes(bytes.into()), Arc::clone(&count)));
    (layer, count)
}

#[test]
fn what_newer_layers_hide_is_not_written_and_what_only_seemed_hidden_is_read_again() {
    let large = vec![7; 8 << 20];
    let (base, opened) = counted(&[file("large", &large), file("gone/large", &large)]);
    let top = plain(&archive(&[file("large", b"small"), file(".wh.gone", b"")]));
    let store = Store::new();
    let image = store.build(vec![base, top]).unwrap();
    assert_eq!(content(&image.root(), "/large"), b"small");
    assert!(image.manifest.allocated < 4 << 20, "{}", image.manifest.allocated);
    assert_eq!(opened.load(Ordering::Relaxed), 1);

    // The second name keeps what the first one had; the link leads elsewhere by then.
    let (base, opened) = counted(&[
        file("first", b"shared by two names"),
        link("second", b'1', "first"),
        directory("old"),
        link("way", b'2', "old"),
        file("way/file", b"where the link led"),
    ]);
    let parts = [
        file("first", b"new"),
        directory("new"),
        link("way", b'2', "new"),
        file("way/file", b"where it leads now"),
    ];
    let store = Store::new();
    let image = store.build(vec![base, plain(&archive(&parts))]).unwrap().root();
    assert_eq!(content(&image, "/first"), b"new");
    assert_eq!(content(&image, "/second"), b"shared by two names");
    assert_eq!(content(&image, "/old/file"), b"where the link led");
    assert_eq!(content(&image, "/new/file"), b"where it leads now");
    assert_eq!(opened.load(Ordering::Relaxed), 2);

    // Written before it was known to be hidden: the host gets the space back.
    let base =
        plain(&archive(&[directory("real"), link("way", b'2', "real"), file("real/x", &large)]));
    let top = plain(&archive(&[file("way/x", b"through the link")]));
    let store = Store::new();
    let image = store.build(vec![base, top]).unwrap();
    assert_eq!(content(&image.root(), "/real/x"), b"through the link");
    assert!(image.manifest.allocated < 4 << 20, "{}", image.manifest.allocated);
}
