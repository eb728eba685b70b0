//! The stores, work disks and initrds on disk.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use banger_image::{
    AgentBinary, CancelFlag, ImageStoreError, KernelError, KernelStore, NewImage, NewKernel,
    NoProgress, ShelfError, WorkDisk, build_initrd, check, make_work_disk,
};
use support::{Store, archive, chain, content, debugfs, directory, file, link};
use uuid::Uuid;

#[test]
fn a_taken_name_is_refused_and_a_replaced_base_lives_on() {
    let store = Store::new();
    let first = store.import(&archive(&[file("a", b"first")])[..]).unwrap();
    let mut new = NewImage {
        name: "test".parse().unwrap(),
        source: "test".into(),
        kernel: None,
        replace: false,
    };
    let options = banger_image::BuildOptions { size: 64 << 20, free: 0, ..Default::default() };
    let cancel = CancelFlag::default();
    let input = archive(&[file("a", b"second")]);
    let refused = store.store.import(&new, &input[..], &options, &NoProgress, &cancel);
    assert!(matches!(refused, Err(ImageStoreError::Shelf(ShelfError::Exists(_)))));
    let base = store.directory.path().join("base.ext4");
    first.link_root(&base).unwrap();
    new.replace = true;
    let second = store.store.import(&new, &input[..], &options, &NoProgress, &cancel).unwrap();
    assert_ne!(first.manifest.id, second.manifest.id);
    assert_eq!(content(&base, "/a"), b"first");
    assert_eq!(content(&second.root(), "/a"), b"second");
    assert_eq!(fs::metadata(second.root()).unwrap().mode() & 0o7777, 0o444);
    assert_eq!(store.left(), ["test"]);
    assert!(store.store.delete(&new.name).unwrap());
    assert!(!store.store.delete(&new.name).unwrap());
    assert_eq!(content(&base, "/a"), b"first");
    let missing = store.store.get(&new.name);
    assert!(matches!(missing, Err(ImageStoreError::Shelf(ShelfError::Missing(_)))));
}

#[test]
fn manifests_are_enough_to_list_and_damaged_ones_are_left_out() {
    let store = Store::new();
    store.import(&archive(&[file("a", b"x")])[..]).unwrap();
    let images = store.directory.path().join("images");
    fs::create_dir(images.join("damaged")).unwrap();
    fs::write(images.join("damaged/manifest.json"), "{").unwrap();
    fs::create_dir(images.join(".staging-x")).unwrap();
    fs::create_dir(images.join("empty")).unwrap();
    let again = banger_image::ImageStore::open(&images).unwrap();
    assert_eq!(again.clean_staging().unwrap(), 1);
    let names: Vec<String> =
        again.list().unwrap().iter().map(|image| image.manifest.name.to_string()).collect();
    assert_eq!(names, ["test"]);
}

#[test]
fn a_work_disk_begins_as_the_image_had_it() {
    let parts = [
        directory("root"),
        file("root/.bashrc", b"PS1=x"),
        directory("root/.ssh"),
        file("etc/passwd", b"not for the seed"),
        link("root/link", b'2', ".bashrc"),
        link("root/hard", b'1', "root/.bashrc"),
        link("root/outside", b'1', "etc/passwd"),
    ];
    let store = Store::new();
    let image = store.import(&archive(&parts)[..]).unwrap();
    let path = store.directory.path().join("work.ext4");
    let seed = image.work_seed().unwrap();
    let disk = WorkDisk {
        path: &path,
        size: 8 << 30,
        uuid: Uuid::new_v4(),
        label: "banger-work",
        seed: Some(&seed),
    };
    let cancel = CancelFlag::default();
    make_work_disk(&disk, &cancel).unwrap();
    check(&path, &cancel).unwrap();
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < 4 << 20);
    assert_eq!(content(&path, "/.bashrc"), b"PS1=x");
    assert_eq!(content(&path, "/hard"), b"PS1=x");
    let names = debugfs(&path, "ls -p /");
    assert!(names.contains("/link/") && !names.contains("outside") && !names.contains("passwd"));
    // The path is taken now, and what is there must survive the refusal.
    let error = make_work_disk(&disk, &cancel).unwrap_err();
    assert!(chain(&error).contains("File exists"), "{}", chain(&error));
    assert!(path.exists());
}

#[test]
fn work_disks_of_odd_sizes_are_sound_and_bad_ones_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let cancel = CancelFlag::default();
    let path = directory.path().join("work.ext4");
    let disk = |size| WorkDisk { path: &path, size, uuid: Uuid::new_v4(), label: "w", seed: None };
    for size in [8 << 20, (128 << 20) + 4096, (129 << 20) + 1, 1000 << 20, 1 << 40] {
        make_work_disk(&disk(size), &cancel).unwrap();
        check(&path, &cancel).unwrap_or_else(|error| panic!("{size}: {}", chain(&error)));
        let root = debugfs(&path, "stat /");
        assert!(root.contains("Mode:  0700"), "{size}: {root}");
        fs::remove_file(&path).unwrap();
    }
    for size in [0, 4096, (8 << 20) - 1, (1 << 40) + 1] {
        make_work_disk(&disk(size), &cancel).unwrap_err();
        assert!(!path.exists(), "{size}");
    }
    let seed = directory.path().join("seed.tar");
    fs::write(&seed, archive(&[file("root/large", &vec![7; 32 << 20])])).unwrap();
    let error = make_work_disk(&WorkDisk { seed: Some(&seed), ..disk(16 << 20) }, &cancel);
    assert!(chain(&error.unwrap_err()).contains("more than the 16777216 bytes"));
    assert!(!path.exists());
}

/// A Debian package with this control file and these files.
fn package(control: &str, data: &[Vec<u8>]) -> Vec<u8> {
    let member = |name: &str, content: &[u8]| {
        let mut bytes =
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, content.len())
                .into_bytes();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(2), b'\n');
        bytes
    };
    let mut bytes = b"!<arch>\n".to_vec();
    bytes.extend(member("debian-binary", b"2.0\n"));
    bytes.extend(member("control.tar", &archive(&[file("./control", control.as_bytes())])));
    bytes.extend(member("data.tar", &archive(data)));
    bytes
}

/// The least that is a bzImage: a header, and an ELF file's first bytes as an LZ4 block of literals.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0_u8; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    let block = b"\x40\x7fELF";
    let mut payload = b"\x02\x21\x4c\x18".to_vec();
    payload.extend(5_u32.to_le_bytes());
    payload.extend(block);
    payload.extend(4_u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(
        &u32::try_from(payload.len()).expect("a payload of a few bytes").to_le_bytes(),
    );
    image.extend(payload);
    image
}

#[test]
fn a_kernel_with_everything_built_in_needs_no_modules() {
    let directory = tempfile::tempdir().unwrap();
    let store = KernelStore::open(directory.path().join("kernels")).unwrap();
    let import = |name: &str, files: &[Vec<u8>]| {
        let new = NewKernel { name: name.parse().unwrap(), source: "test".into(), replace: false };
        let control = "Package: linux-image-x\nVersion: 1\nArchitecture: amd64\n";
        let package = package(control, files);
        store.import(&new, &package[..], None, &NoProgress, &CancelFlag::default())
    };
    let config = |text: &str| file("./boot/config-1", text.as_bytes());
    let kernel = file("./boot/vmlinuz-1", &bzimage());

    // As `make bindeb-pkg` leaves it: no module tree at all.
    let complete = config("CONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=y\n");
    let bare = import("bare", &[kernel.clone(), complete]).unwrap();
    assert_eq!(bare.manifest.modules, []);
    assert_eq!(bare.modules_image(), None);
    assert!(!directory.path().join("kernels/bare/modules.ext4").exists());
    assert_eq!(store.get(&bare.manifest.name).unwrap().manifest, bare.manifest);
    let initrd =
        build_initrd(&AgentBinary::new(b"agent"), &bare, &directory.path().join("cache")).unwrap();
    assert!(fs::read(initrd).unwrap().starts_with(b"070701"));

    // With the list of what is built in, which lets modprobe succeed in a guest.
    let list = "kernel/drivers/block/virtio_blk.ko\nkernel/fs/ext4/ext4.ko\n";
    let list = file("./lib/modules/1/modules.builtin", list.as_bytes());
    let listed = import("listed", &[kernel.clone(), list]).unwrap();
    let (tree, uuid) = listed.modules_image().unwrap();
    assert_eq!(listed.manifest.modules_image.as_ref().unwrap().modules, 0);
    assert_eq!(listed.manifest.modules_image.as_ref().unwrap().uuid, uuid);
    assert_eq!(content(&tree, "/modules.dep"), b"");
    assert!(!content(&tree, "/modules.builtin.bin").is_empty());

    // A module that cannot be loaded is not there.
    for text in ["", "CONFIG_VIRTIO_BLK=y\n", "CONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=m\n"] {
        let error = import("poor", &[kernel.clone(), config(text)]).unwrap_err();
        assert!(matches!(error, KernelError::NoDriver(_)), "{text:?}: {error}");
    }
    assert!(store.get(&"poor".parse().unwrap()).is_err());
}

#[test]
fn packages_that_are_none_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = KernelStore::open(directory.path().join("kernels")).unwrap();
    let new = NewKernel { name: "k".parse().unwrap(), source: "test".into(), replace: false };
    let kernel = "Package: linux-image-x\nVersion: 1\nArchitecture: amd64\n";
    let whole = package(kernel, &[file("./boot/vmlinuz-1", b"x")]);
    let mut cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "the archive is empty"),
        (vec![7; 1000], "is damaged"),
        (b"!<arch>\n".to_vec(), "it is empty"),
        (package("Package: bash\nArchitecture: amd64\n", &[]), "is not an amd64 kernel"),
        (package("Package: linux-image-x\nArchitecture: arm64\n", &[]), "is not an amd64 kernel"),
        (package(kernel, &[support::directory("./boot")]), "no boot/vmlinuz"),
        (whole.clone(), "boot/vmlinuz-1 is no kernel that a machine can boot: it is not a bzImage"),
        (
            package(kernel, &[file("./lib/modules/1/a.ko", b"x")]),
            "\"lib/modules/1/a.ko\" is damaged",
        ),
    ];
    for end in [30, 100, 400, whole.len() - 600] {
        cases.push((whole[..end].to_vec(), ""));
    }
    for (bytes, expected) in cases {
        let result = store.import(&new, &bytes[..], None, &NoProgress, &CancelFlag::default());
        let text = chain(&result.map(|kernel| kernel.manifest).unwrap_err());
        assert!(text.contains(expected), "expected {expected:?} in {text:?}");
        assert_eq!(fs::read_dir(directory.path().join("kernels")).unwrap().count(), 0, "{text}");
    }
    let missing = store.get(&new.name);
    assert!(matches!(missing, Err(KernelError::Shelf(ShelfError::Missing(_)))));
}

/// The least that is an ELF kernel of a version.
fn elf(version: &str) -> Vec<u8> {
    let mut kernel = b"\x7fELF\x02\x01\x01".to_vec();
    kernel.resize(64, 0);
    kernel[18] = 62;
    kernel.extend(format!("Linux version {version} (someone@somewhere) #1").bytes());
    kernel
}

#[test]
fn a_kernel_is_made_of_its_files_too() {
    let directory = tempfile::tempdir().unwrap();
    let store = KernelStore::open(directory.path().join("kernels")).unwrap();
    let import = |name: &str, files: &[Vec<u8>]| {
        let new = NewKernel { name: name.parse().unwrap(), source: "test".into(), replace: false };
        store.import(&new, &archive(files)[..], None, &NoProgress, &CancelFlag::default())
    };
    let vmlinux = file("vmlinux", &elf("6.1.2-own+"));
    // A bare kernel, of which nothing else is known.
    let bare = import("bare", std::slice::from_ref(&vmlinux)).unwrap();
    assert_eq!(bare.manifest.version, "6.1.2-own+");
    assert_eq!(fs::read(bare.bzimage()).unwrap(), fs::read(bare.vmlinux()).unwrap());
    assert_eq!(bare.modules_image(), None);
    // In both forms, with what is known of it.
    let config = file("config", b"CONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=y\nCONFIG_PVH=y\n");
    let list = file(
        "modules/modules.builtin",
        b"kernel/drivers/block/virtio_blk.ko\nkernel/fs/ext4/ext4.ko\n",
    );
    let files = [
        file("bzImage", &bzimage()),
        vmlinux.clone(),
        config.clone(),
        list,
        file("initrd.img", b"x"),
    ];
    let whole = import("whole", &files).unwrap();
    assert_eq!(whole.manifest.config["CONFIG_PVH"], "y");
    assert_eq!(&fs::read(whole.bzimage()).unwrap()[0x202..0x206], b"HdrS");
    assert!(whole.modules_image().is_some());
    for (files, expected) in [
        (vec![config.clone()], "no bzImage or vmlinux"),
        (vec![file("vmlinux", b"\x7fELF, or so it says")], "vmlinux is no kernel"),
        (vec![file("vmlinux", &elf("../../etc"))], "no Linux kernel"),
        (vec![file("bzImage", b"none")], "no version"),
        (vec![vmlinux.clone(), file("config", b"CONFIG_EXT4_FS=y\n")], "no virtio_blk"),
        (vec![vmlinux.clone(), file("modules/a.ko", b"x")], "is damaged"),
        (vec![file("../vmlinux", &elf("6.1"))], ""),
        (vec![link("vmlinux", b'2', "/etc/passwd")], "no bzImage or vmlinux"),
    ] {
        let text = chain(&import("bad", &files).map(|kernel| kernel.manifest).unwrap_err());
        assert!(text.contains(expected), "expected {expected:?} in {text:?}");
    }
    assert_eq!(store.list().unwrap().len(), 2);
    assert_eq!(fs::read_dir(directory.path().join("kernels")).unwrap().count(), 2);
}

/// With `BANGER_TEST_KERNEL_DEB` naming Debian kernel packages, separated by colons.
#[test]
fn real_kernel_packages_become_kernels_and_initrds() {
    let Some(packages) = std::env::var_os("BANGER_TEST_KERNEL_DEB") else {
        println!("SKIP: BANGER_TEST_KERNEL_DEB does not name a Debian kernel package");
        return;
    };
    for package in std::env::split_paths(&packages) {
        let directory = tempfile::tempdir().unwrap();
        let store = KernelStore::open(directory.path().join("kernels")).unwrap();
        let new = NewKernel { name: "k".parse().unwrap(), source: "test".into(), replace: false };
        let deb = fs::File::open(&package).unwrap();
        let kernel = store.import(&new, deb, None, &NoProgress, &CancelFlag::default()).unwrap();
        let manifest = &kernel.manifest;
        assert!(fs::read(kernel.vmlinux()).unwrap().starts_with(b"\x7fELF"));
        assert_eq!(&fs::read(kernel.bzimage()).unwrap()[0x202..0x206], b"HdrS");
        for (index, module) in manifest.modules.iter().enumerate() {
            assert!(fs::read(kernel.module(module)).unwrap().starts_with(b"\x7fELF"));
            for needed in &module.depends {
                let earlier = manifest.modules[..index].iter().any(|have| have.name == *needed);
                assert!(earlier, "{} needs {needed} before it", module.name);
            }
        }
        assert!(manifest.modules.iter().any(|module| module.name == "virtio_blk"));
        let tree = content(&kernel.modules_image().unwrap().0, "/modules.dep");
        let tree = String::from_utf8(tree).unwrap();
        assert!(tree.lines().any(|line| line.contains("/overlay.ko")), "{tree}");

        let cache = directory.path().join("cache");
        let first = build_initrd(&AgentBinary::new(b"agent"), &kernel, &cache).unwrap();
        let bytes = fs::read(&first).unwrap();
        assert!(bytes.starts_with(b"070701"));
        fs::remove_file(&first).unwrap();
        assert_eq!(build_initrd(&AgentBinary::new(b"agent"), &kernel, &cache).unwrap(), first);
        assert_eq!(fs::read(&first).unwrap(), bytes, "the same input makes the same bytes");
        assert_ne!(build_initrd(&AgentBinary::new(b"other"), &kernel, &cache).unwrap(), first);
    }
}
