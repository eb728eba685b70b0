//! The Debian package of the built kernel, in the form of `make bindeb-pkg`.
//!
//! It is never installed; it is what `banger kernel import` takes. It has the
//! lists of what is built in, so that `modprobe overlay` succeeds in a guest
//! as it does under a kernel with modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::source::Tree;
use crate::process::output_of;

fn copy(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o644))
        .with_context(|| format!("chmod {}", to.display()))
}

/// Puts the built kernel of `tree` into a folder of `scratch`, beside a package of it.
pub(super) fn make(tree: &Tree, release: &str, version: &str, scratch: &Path) -> Result<PathBuf> {
    let result = scratch.join("result");
    let built = |name: &str| tree.folder.join(name);
    copy(&built("arch/x86/boot/bzImage"), &result.join("bzImage"))?;
    // What is compressed in the bzImage: vmlinux without its symbols.
    copy(&built("arch/x86/boot/compressed/vmlinux.bin"), &result.join("vmlinux"))?;
    copy(&built(".config"), &result.join("config"))?;

    let root = scratch.join("root");
    copy(&built("arch/x86/boot/bzImage"), &root.join(format!("boot/vmlinuz-{release}")))?;
    copy(&built(".config"), &root.join(format!("boot/config-{release}")))?;
    for name in ["modules.builtin", "modules.builtin.modinfo"] {
        copy(&built(name), &root.join(format!("lib/modules/{release}/{name}")))?;
    }
    let name = format!("linux-image-{release}");
    let control = format!(
        "Package: {name}\n\
         Version: {version}\n\
         Architecture: amd64\n\
         Maintainer: banger\n\
         Description: Linux kernel of banger's guests, with everything built in\n"
    );
    fs::create_dir_all(root.join("DEBIAN")).context("make the control folder")?;
    fs::write(root.join("DEBIAN/control"), control).context("write the control file")?;
    output_of(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "--build"])
            .arg(&root)
            .arg(result.join(format!("{name}_amd64.deb")))
            .env("SOURCE_DATE_EPOCH", tree.epoch.to_string()),
    )?;
    Ok(result)
}
