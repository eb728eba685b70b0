//! Kernels from directories and files, and which one machines boot.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use banger_harness::{Contents, DEFAULT_KERNEL, Environment};

/// A directory with the default kernel's own files.
pub(crate) fn kernel_directory(environment: &Environment, name: &str, files: &[&str]) -> PathBuf {
    let (from, to) = (environment.kernel(), environment.home().join(name));
    std::fs::create_dir(&to).unwrap();
    for file in files {
        copy(&from.join(file), &to.join(file));
    }
    to
}

fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        std::fs::copy(from, to).unwrap();
        return;
    }
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

#[test]
fn a_kernel_comes_from_a_directory_and_unsafe_ones_are_refused() {
    let environment = Environment::new(Contents::Kernel);
    let import = |from: &Path, name: &str, more: &[&str]| {
        let import = environment.banger(["kernel", "import", "--name", name]).arg(from);
        more.iter().fold(import, |import, word| import.arg(word)).run()
    };
    let whole =
        kernel_directory(&environment, "whole", &["bzImage", "vmlinux", "config", "modules"]);
    std::fs::write(whole.join("initrd.img"), "x").unwrap();
    let taken = import(&whole, "own", &[]).code(0);
    assert!(taken.err().contains("not taken: initrd.img"), "{}", taken.err());
    let show = |name: &str| environment.banger(["kernel", "show", name, "--json"]).ok().json();
    assert_eq!(show("own")["version"], environment.kernel_manifest()["version"]);
    assert_eq!(show("own")["source"], "import:whole");
    // The name is taken; only --force replaces what has it.
    let again = import(&whole, "own", &[]);
    again.code(1).is_a_clear_error().says(&["own", "--force"]);
    import(&whole, "own", &["--force"]).code(0);

    // Debian's kernel cannot do without its modules, and says so where its configuration is known.
    let bare = kernel_directory(&environment, "bare", &["bzImage", "config"]);
    import(&bare, "bad", &[]).code(1).is_a_clear_error().says(&["virtio_blk"]);
    import(&bare.join("config"), "bad", &[]).code(1).is_a_clear_error();
    std::fs::remove_file(bare.join("bzImage")).unwrap();
    import(&bare, "bad", &[]).code(1).is_a_clear_error().says(&["no bzImage"]);
    symlink(whole.join("bzImage"), bare.join("bzImage")).unwrap();
    import(&bare, "bad", &[]).code(1).is_a_clear_error().says(&["bzImage is a link"]);
    std::fs::remove_file(bare.join("bzImage")).unwrap();
    symlink("/", bare.join("modules")).unwrap();
    std::fs::copy(whole.join("bzImage"), bare.join("bzImage")).unwrap();
    import(&bare, "bad", &[]).code(1).is_a_clear_error().says(&["modules is a link"]);
    let names = environment.banger(["kernel", "list", "--json"]).ok().json();
    let names: Vec<&str> =
        names.as_array().unwrap().iter().map(|kernel| kernel["name"].as_str().unwrap()).collect();
    assert_eq!(names, [DEFAULT_KERNEL, "own"], "what is refused leaves nothing");
    environment.finish();
}

#[test]
fn a_host_and_an_image_have_a_default_kernel() {
    let environment = Environment::new(Contents::Busybox);
    let run = |words: &[&str]| environment.banger(words).run();
    run(&["config", "set", "kernel.default", "../x"]).code(2).is_a_clear_error();
    let set = run(&["config", "set", "kernel.default", "nothing"]).code(0);
    assert!(set.err().contains("there is no kernel nothing yet"), "{}", set.err());
    // The name is looked up when it is needed.
    let machine = ["vm", "create", "--image", "busybox"];
    run(&machine).code(1).is_a_clear_error().says(&["nothing", "kernel.default auto"]);
    let set = run(&["config", "set", "kernel.default", DEFAULT_KERNEL]).code(0);
    assert_eq!(set.err(), "");
    let refused = run(&["kernel", "delete", DEFAULT_KERNEL]);
    refused.code(1).is_a_clear_error().says(&["kernel.default", "auto"]);
    run(&["config", "set", "kernel.default", "auto"]).code(0);
    run(&["image", "set", "busybox", "--kernel", "nothing"]).code(1).is_a_clear_error();
    run(&["image", "set", "none", "--kernel", "none"]).code(1).is_a_clear_error();
    let default = || {
        let shown = environment.banger(["image", "show", "busybox", "--json"]).ok().json();
        shown["default_kernel"].clone()
    };
    let before = default();
    run(&["image", "set", "busybox", "--kernel", DEFAULT_KERNEL]).code(0);
    assert_eq!(default(), DEFAULT_KERNEL);
    // It is in the manifest, which is what the next daemon reads.
    environment.stop_daemon();
    assert_eq!(default(), DEFAULT_KERNEL);
    let refused = run(&["kernel", "delete", DEFAULT_KERNEL]);
    refused.code(1).is_a_clear_error().says(&["what image busybox boots", "image set busybox"]);
    run(&["image", "set", "busybox", "--kernel", "none"]).code(0);
    assert_eq!(default(), before);
    environment.finish();
}
