//! Numbers that lie, and bytes that are not what they seem.

use banger_image::{Layer, LayerMediaType};

use super::Outcome::{Holds, Refused};
use super::support::layered::{coded, digest, plain};
use super::support::{Header, archive, file, padded, pax};
use super::{Case, Input, gzip, header, layers, raw};

pub fn numbers() -> Vec<Case> {
    let sparse = |map: &'static [u8], real: &'static [u8]| {
        [pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", real)]), file("a", b"12345")].concat()
    };
    vec![
        layers(
            "a size that is longer than the archive",
            &[&[header("a", b'0', |h| {
                h.octal(124, 12, 1 << 20);
            })]],
            Refused("ends at byte"),
        ),
        layers(
            "a negative size",
            &[&[header("a", b'0', |h| {
                h.put(124, &[0xff; 12]);
            })]],
            Refused("field size"),
        ),
        layers(
            "a size beyond 63 bits",
            &[&[header("a", b'0', |h| {
                h.put(124, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
            })]],
            Refused("field size"),
        ),
        layers(
            "a size of 8 EiB",
            &[&[pax(&[("size", b"9223372036854775807")]), file("a", b"x")]],
            Refused("ends at byte"),
        ),
        layers(
            "a size that is no number",
            &[&[header("a", b'0', |h| {
                h.put(124, b"9x\0");
            })]],
            Refused("field size"),
        ),
        layers(
            "a negative extended size",
            &[&[pax(&[("size", b"-5")]), file("a", b"x")]],
            Refused("malformed: size"),
        ),
        layers(
            "an owner beyond 32 bits",
            &[&[pax(&[("uid", b"4294967296")]), file("a", b"x")]],
            Refused("malformed: uid"),
        ),
        layers(
            "a device number out of range",
            &[&[header("a", b'3', |h| {
                h.octal(329, 8, 5000).octal(337, 8, 1);
            })]],
            Refused("device number"),
        ),
        layers(
            "a time beyond all",
            &[&[pax(&[("mtime", b"99999999999999999999")]), file("a", b"x")]],
            Refused("malformed: mtime"),
        ),
        layers(
            "a time before 1901",
            &[&[pax(&[("mtime", b"-9223372036854775807")]), file("a", b"x")]],
            Holds("/a", b"x"),
        ),
        layers("a sparse map that overlaps", &[&[sparse(b"0,3,2,2", b"9")]], Refused("sparse map")),
        layers("a sparse map beyond the size", &[&[sparse(b"8,5", b"9")]], Refused("sparse map")),
        layers(
            "a sparse map of more than there is",
            &[&[sparse(b"0,500", b"500")]],
            Refused("sparse map"),
        ),
        layers(
            "a sparse map whose sum overflows",
            &[&[sparse(b"18446744073709551615,5", b"9")]],
            Refused("sparse map"),
        ),
        layers(
            "a hole of 15 EiB",
            &[&[sparse(b"0,5", b"17000000000000000000")]],
            Refused("larger than the 16 TiB"),
        ),
        layers("a type that is none", &[&[header("a", b'M', |_| ())]], Refused("type 'M'")),
        layers(
            "an attribute of 5000 bytes",
            &[&[pax(&[("SCHILY.xattr.user.a", &[b'v'; 5000])]), file("a", b"x")]],
            Refused("more than one 4096-byte block"),
        ),
        layers(
            "an attribute without a name",
            &[&[pax(&[("SCHILY.xattr.user.", b"v")]), file("a", b"x")]],
            Refused("name is empty"),
        ),
        layers(
            "an access list that is none",
            &[&[
                pax(&[("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0\x01")]),
                file("a", b"x"),
            ]],
            Refused("access control list"),
        ),
        layers(
            "an extended header of a GiB",
            &[&[Header::new(b"a", b'x', 1 << 30).finish()]],
            Refused("more than"),
        ),
        layers(
            "a record that is longer than its header",
            &[&[
                [Header::new(b"p", b'x', 7).finish(), padded(b"99 a=b\n".to_vec())].concat(),
                file("a", b"x"),
            ]],
            Refused("extended header"),
        ),
    ]
}

pub fn bytes() -> Vec<Case> {
    let whole = archive(&[file("a", &[7; 5000])]);
    let zeros = archive(&[file("a", &vec![0; 40 << 20])]);
    let zipped = gzip(&whole);
    let packed = zstd::encode_all(&whole[..], 1).expect("memory");
    let coded_as = |name, bytes: &[u8], outcome| {
        let layer = coded(bytes, &whole, LayerMediaType::Gzip);
        Case(name, Input::Layers(vec![layer]), outcome)
    };
    let damaged = |at: usize| {
        let mut bytes = zipped.clone();
        let at = bytes.len() - at;
        bytes[at] ^= 1;
        bytes
    };
    let lying = |name, change: &dyn Fn(&mut Layer), words| {
        let mut layer = coded(&zipped, &whole, LayerMediaType::Gzip);
        change(&mut layer);
        Case(name, Input::Layers(vec![plain(&whole), layer]), Refused(words))
    };
    let bomb = |name, bytes: &[u8]| {
        let layer = coded(bytes, &zeros, LayerMediaType::Gzip);
        Case(name, Input::Layers(vec![layer]), Refused("more than 100 times as many"))
    };
    let mut wrong_sum = file("a", b"x");
    wrong_sum[0] = b'b';
    vec![
        raw("text", &[b'x'; 4096], Refused("no tar header at byte 0")),
        raw("five bytes", b"hello", Refused("ends at byte 5")),
        raw("a wrong checksum", &archive(&[wrong_sum]), Refused("no tar header")),
        raw("no end marker", &file("a", b"x"), Refused("end marker is missing")),
        raw("an end in a name", &whole[..300], Refused("ends at byte")),
        raw("an end in a file", &whole[..3000], Refused("ends at byte")),
        raw(
            "a second archive behind the first",
            &[&whole[..whole.len() - 512], &file("b", b"y")].concat(),
            Refused("no tar header"),
        ),
        coded_as(
            "gzip that ends early",
            &zipped[..zipped.len() / 2],
            Refused("in the middle of the compressed stream"),
        ),
        coded_as("gzip with a wrong checksum", &damaged(6), Refused("read the archive")),
        coded_as("gzip with a wrong length", &damaged(2), Refused("read the archive")),
        coded_as(
            "gzip with something behind it",
            &[&zipped[..], &b"behind".repeat(20)[..]].concat(),
            Refused("read the archive"),
        ),
        coded_as("zstd that ends early", &packed[..packed.len() - 3], Refused("ends at byte")),
        coded_as(
            "zstd with something behind it",
            &[&packed[..], b"behind"].concat(),
            Refused("read the archive"),
        ),
        coded_as("another compression than said", &packed, Holds("/a", &[7; 5000])),
        bomb("a gzip bomb", &gzip(&zeros)),
        bomb("a zstd bomb", &zstd::encode_all(&zeros[..], 1).expect("memory")),
        bomb("a bomb of many members", &zeros.chunks(1 << 20).flat_map(gzip).collect::<Vec<_>>()),
        lying(
            "a wrong digest",
            &|layer| layer.digest = Some(digest(b"another")),
            "compressed layer has the digest",
        ),
        lying(
            "a wrong diff id",
            &|layer| layer.diff_id = digest(b"another"),
            "uncompressed layer has the digest",
        ),
        lying("a wrong size", &|layer| layer.size = Some(7), "bytes, not 7"),
    ]
}
