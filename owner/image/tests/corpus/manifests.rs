//! Layouts, saved images and bundles.

use super::Outcome::{Holds, Refused};
use super::support::layered::digest;
use super::support::{archive, file, link};
use super::{Case, Input, header};

/// A layout as a tar; `change` gets its files before they are packed.
fn layout(change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let layer = archive(&[file("a", b"x")]);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"diff_ids":["{}"]}}}}"#,
        digest(&layer)
    );
    let described = |bytes: &[u8], kind: &str| {
        format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{}}}"#, digest(bytes), bytes.len())
    };
    let manifest = format!(
        r#"{{"config":{},"layers":[{}]}}"#,
        described(config.as_bytes(), "application/vnd.oci.image.config.v1+json"),
        described(&layer, "application/vnd.oci.image.layer.v1.tar")
    );
    let index = format!(
        r#"{{"manifests":[{}]}}"#,
        described(manifest.as_bytes(), "application/vnd.oci.image.manifest.v1+json")
    );
    let blob = |bytes: &[u8]| (format!("blobs/sha256/{}", digest(bytes).hex()), bytes.to_vec());
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index.into_bytes()),
        blob(manifest.as_bytes()),
        blob(config.as_bytes()),
        blob(&layer),
    ];
    change(&mut files);
    let parts: Vec<_> = files.iter().map(|(name, bytes)| file(name, bytes)).collect();
    archive(&parts)
}

/// A layout whose manifest's or configuration's text is changed, with digests that fit.
fn relisted(from: &str, to: &str) -> Vec<u8> {
    layout(|files| {
        let named = |bytes: &[u8]| format!("\"{}\",\"size\":{}", digest(bytes), bytes.len());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // The configuration, the manifest that names it, the index that names that.
        for (at, above) in [(3, 2), (2, 1)] {
            let old = named(&files[at].1);
            let changed = text(&files[at].1).replace(from, to).into_bytes();
            if at == 3 {
                let manifest = text(&files[above].1).replace(&old, &named(&changed));
                let old = named(&files[above].1);
                let index = text(&files[1].1).replace(&old, &named(manifest.as_bytes()));
                files[1].1 = index.into_bytes();
                files[above].1 = manifest.into_bytes();
            } else {
                files[above].1 = text(&files[above].1).replace(&old, &named(&changed)).into_bytes();
            }
            files[at].1 = changed;
        }
        for at in [2, 3] {
            files[at].0 = format!("blobs/sha256/{}", digest(&files[at].1).hex());
        }
    })
}

pub fn manifests() -> Vec<Case> {
    let given = |name, bytes: Vec<u8>, outcome| Case(name, Input::Archive(bytes), outcome);
    let index_type = "application/vnd.oci.image.index.v1+json";
    // An index cannot hold its own digest, so one that seems to is caught by that; a deep one by
    // its depth.
    let cyclic = layout(|files| {
        let own = digest(b"cycle");
        let text = format!(
            r#"{{"manifests":[{{"mediaType":"{index_type}","digest":"{own}","size":5}}]}}"#
        );
        files[1].1 = text.clone().into_bytes();
        files.push((format!("blobs/sha256/{}", own.hex()), text.into_bytes()));
    });
    let deep = layout(|files| {
        let mut below = files[1].1.clone();
        for _ in 0..8 {
            let name = format!("blobs/sha256/{}", digest(&below).hex());
            let text = format!(
                r#"{{"manifests":[{{"mediaType":"{index_type}","digest":"{}","size":{}}}]}}"#,
                digest(&below),
                below.len()
            );
            files.push((name, below));
            below = text.into_bytes();
        }
        files[1].1 = below;
    });
    let saved = |manifest: &str| archive(&[file("manifest.json", manifest.as_bytes())]);
    let bundle = |parts: &[Vec<u8>]| archive(parts);
    let manifest = || file("manifest.json", b"{}");
    vec![
        given("a layout as it should be", layout(|_| ()), Holds("/a", b"x")),
        given("an index that holds itself", cyclic, Refused("bytes, not 5")),
        given("indexes without end", deep, Refused("more than 4 levels deep")),
        given(
            "a manifest that is another",
            layout(|files| {
                files[2].1[1] = b' ';
            }),
            Refused("has the digest"),
        ),
        given(
            "a manifest that is longer",
            layout(|files| files[2].1.push(b' ')),
            Refused("bytes, not"),
        ),
        given(
            "a manifest that is missing",
            layout(|files| {
                files.remove(2);
            }),
            Refused("the archive has no \"blobs"),
        ),
        given(
            "a layer that is missing",
            layout(|files| {
                files.remove(4);
            }),
            Refused("the archive has no"),
        ),
        given(
            "a layer that is another",
            layout(|files| {
                files[4].1[1000] = b'y';
            }),
            Refused("has the digest"),
        ),
        given(
            "a layer of an unknown type",
            relisted("layer.v1.tar", "layer.v1.tar+encrypted"),
            Refused("media type"),
        ),
        given(
            "more layers than diff ids",
            relisted(r#""diff_ids":["#, r#""diff_ids":[],"x":["#),
            Refused("has 1 layers, and its configuration names 0"),
        ),
        given(
            "a diff id with another algorithm",
            relisted(r#""diff_ids":["sha256:"#, r#""diff_ids":["sha512:"#),
            Refused("cannot be read"),
        ),
        given(
            "a digest that climbs",
            relisted(
                r#""layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:"#,
                r#""layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:../../"#,
            ),
            Refused("cannot be read"),
        ),
        given(
            "a variable with NUL",
            relisted(r#""config":{}"#, r#""config":{"Env":["A=\u0000"]}"#),
            Refused("Env has a NUL byte"),
        ),
        given(
            "a configuration for another platform",
            relisted("amd64", "s390x"),
            Refused("is for linux/s390x"),
        ),
        given(
            "an index that is no JSON",
            layout(|files| files[1].1 = b"{".to_vec()),
            Refused("cannot be read"),
        ),
        given(
            "JSON within JSON without end",
            layout(|files| files[1].1 = b"[".repeat(100_000)),
            Refused("cannot be read"),
        ),
        given(
            "an index of 5 MiB",
            layout(|files| files[1].1.resize(5 << 20, b' ')),
            Refused("bytes in a document"),
        ),
        given(
            "a layout of the future",
            layout(|files| files[0].1 = br#"{"imageLayoutVersion":"9"}"#.to_vec()),
            Refused("version \"9\""),
        ),
        given(
            "a file that climbs",
            layout(|files| files.push(("../x".into(), Vec::new()))),
            Refused("climbs out"),
        ),
        given(
            "a file that is there twice",
            layout(|files| files.push(files[4].clone())),
            Refused("there twice"),
        ),
        given("no image at all", saved("[]"), Refused("no image at all")),
        given(
            "a saved layer on the host",
            saved(r#"[{"Config":"/etc/passwd","Layers":["../../etc/passwd"]}]"#),
            Refused("the archive has no"),
        ),
        given(
            "a saved layer that is a link out",
            archive(&[
                file("manifest.json", br#"[{"Config":"c","Layers":["l"]}]"#),
                link("l", b'2', "../../etc/passwd"),
            ]),
            Refused("a link out of it"),
        ),
        given(
            "a saved configuration that is a circle",
            archive(&[
                file("manifest.json", br#"[{"Config":"c","Layers":[]}]"#),
                link("c", b'2', "c"),
            ]),
            Refused("the archive has no"),
        ),
        given(
            "a device among the blobs",
            archive(&[file("oci-layout", b"{}"), header("blobs/x", b'3', |_| ())]),
            Refused("neither a file nor a directory"),
        ),
        given(
            "a bundle with something else",
            bundle(&[manifest(), file("rootfs.ext4", b"x"), file("x", b"x")]),
            Refused("neither rootfs.ext4 nor manifest.json"),
        ),
        given(
            "a bundle whose file system is a link",
            bundle(&[manifest(), link("rootfs.ext4", b'2', "/dev/sda")]),
            Refused("not a regular file"),
        ),
        given("a bundle without a file system", bundle(&[manifest()]), Refused("no rootfs.ext4")),
        given(
            "a bundle without a manifest",
            bundle(&[file("rootfs.ext4", b"x")]),
            Refused("no manifest.json"),
        ),
        given(
            "a bundle with two file systems",
            bundle(&[file("rootfs.ext4", b"x"), file("rootfs.ext4", b"x")]),
            Refused("there twice"),
        ),
        given(
            "a bundle of no file system",
            bundle(&[manifest(), file("rootfs.ext4", &[7; 9000])]),
            Refused("holds no ext4 file system"),
        ),
        given(
            "a bundle of an impossible size",
            bundle(&[
                manifest(),
                header("rootfs.ext4", b'0', |h| {
                    h.put(124, &[0x80, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
                }),
            ]),
            Refused("more than"),
        ),
    ]
}
