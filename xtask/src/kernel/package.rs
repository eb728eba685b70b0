//! The Debian package of the built kernel, in the form of `make bindeb-pkg`.
//!
//! It is never installed; it is what `banger kernel import` takes. It has the
//! lists of what is built in, so that `modprobe overlay` succeeds in a guest
//! as it does under a kernel with modules.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::source::Tree;
use crate::process::output_of;

/// Sets a mode, so that the package does not depend on the user's umask.
fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", path.display()))
}

/// Makes `path` and the folders above it, up to `top`.
fn make_folder(top: &Path, path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    path.ancestors()
        .take_while(|folder| folder.starts_with(top))
        .try_for_each(|folder| set_mode(folder, 0o755))
}

/// Copies a file to `name` below `top`.
fn copy(from: &Path, top: &Path, name: &str) -> Result<()> {
    let to = top.join(name);
    make_folder(top, to.parent().unwrap_or(top))?;
    fs::copy(from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    set_mode(&to, 0o644)
}

/// Puts the built kernel of `tree` into a folder of `scratch`, beside a package of it.
pub(super) fn make(tree: &Tree, release: &str, version: &str, scratch: &Path) -> Result<PathBuf> {
    let result = scratch.join("result");
    let built = |name: &str| tree.folder.join(name);
    copy(&built("arch/x86/boot/bzImage"), &result, "bzImage")?;
    // What is compressed in the bzImage: vmlinux without its symbols.
    copy(&built("arch/x86/boot/compressed/vmlinux.bin"), &result, "vmlinux")?;
    copy(&built(".config"), &result, "config")?;

    let root = scratch.join("root");
    copy(&built("arch/x86/boot/bzImage"), &root, &format!("boot/vmlinuz-{release}"))?;
    copy(&built(".config"), &root, &format!("boot/config-{release}"))?;
    for name in ["modules.builtin", "modules.builtin.modinfo"] {
        copy(&built(name), &root, &format!("lib/modules/{release}/{name}"))?;
    }
    let name = format!("linux-image-{release}");
    let control = format!(
        "Package: {name}\n\
         Version: {version}\n\
         Architecture: amd64\n\
         Maintainer: banger\n\
         Description: Linux kernel of banger's guests, with everything built in\n"
    );
    make_folder(&root, &root.join("DEBIAN"))?;
    fs::write(root.join("DEBIAN/control"), control).context("write the control file")?;
    set_mode(&root.join("DEBIAN/control"), 0o644)?;
    output_of(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "--build"])
            .arg(&root)
            .arg(result.join(format!("{name}_amd64.deb")))
            .env("SOURCE_DATE_EPOCH", tree.epoch.to_string()),
    )?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_kernel_makes_the_same_package() {
        let make_once = || {
            let scratch = tempfile::tempdir().unwrap();
            let folder = scratch.path().join("tree");
            for name in [
                "arch/x86/boot/bzImage",
                "arch/x86/boot/compressed/vmlinux.bin",
                ".config",
                "modules.builtin",
                "modules.builtin.modinfo",
            ] {
                let path = folder.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, name).unwrap();
            }
            let tree = Tree {
                folder,
                release: "6.12.117".into(),
                epoch: 1_700_000_000,
                date: "Tue Nov 14 22:13:20 UTC 2023".into(),
            };
            let result = make(&tree, "6.12.117-banger", "6.12.117-1", scratch.path()).unwrap();
            let deb = result.join("linux-image-6.12.117-banger_amd64.deb");
            let listed = output_of(Command::new("dpkg-deb").arg("--contents").arg(&deb)).unwrap();
            (listed, fs::read(deb).unwrap(), fs::read(result.join("vmlinux")).unwrap())
        };
        let (listed, first, vmlinux) = make_once();
        for name in ["boot/vmlinuz-", "boot/config-", "lib/modules/6.12.117-banger/modules.builtin"]
        {
            assert!(listed.contains(name), "{listed}");
        }
        assert!(listed.lines().all(|line| line.contains("root/root")), "{listed}");
        assert_eq!(vmlinux, b"arch/x86/boot/compressed/vmlinux.bin");
        // Past the second, which is what a package's time stamps are counted in.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert_eq!(make_once().1, first);
    }
}
