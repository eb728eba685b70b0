//! What a machine is made of: image, kernel, initrd, QEMU.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use banger_agent_api::{BootConfig, StaticNetwork};
use banger_image::{AgentBinary, Kernel, KernelStore, build_initrd};
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheLock, Key};
use crate::emulator::{Emulator, Retry};
use crate::host_image::{HostImage, ensure_image};
use crate::note;
use crate::qemu::{self, Parts};

/// A change of how a machine is saved or prepared; part of its key.
const LAYOUT: &str = "banger kvm-host machine 2";
/// What the folders with a kernel's copy begin with.
const KERNEL: &str = "kernel";

/// Everything a boot needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The key of its saved state.
    pub key: String,
    /// The root file system.
    pub image: HostImage,
    /// The kernel, the initrd and their disk.
    pub parts: Parts,
}

impl Machine {
    /// Finds or builds what a machine is made of.
    pub fn prepare(cache: &Cache, lock: &CacheLock, retry: Retry) -> Result<Self> {
        let image = ensure_image(cache, lock)?;
        cache.hold(&image.root)?;
        let kernel = own_kernel(cache, lock)?;
        cache.hold(&kernel.vmlinux())?;
        let initrd = cache.root().join("initrd");
        let agent = agent()?;
        let initrd = build_initrd(&AgentBinary::new(&agent), &kernel, &initrd)
            .context("build the initrd")?;
        let emulator = Emulator::prepare(cache, lock, retry)?;
        let mut boot = BootConfig::new(image.uuid);
        let (modules, modules_uuid) =
            kernel.modules_image().context("the shared kernel has no module tree")?;
        boot.modules = Some(modules_uuid);
        // Without a name server: systemd-resolved is the host's own (host/customize).
        boot.network = Some(StaticNetwork {
            address: [10, 0, 2, 15].into(),
            prefix: 24,
            gateway: Some([10, 0, 2, 2].into()),
            dns: Vec::new(),
        });
        let parts = Parts {
            vmlinux: kernel.vmlinux(),
            initrd,
            modules,
            boot: boot.to_kernel_args().context("write the kernel's arguments")?,
            emulator,
        };
        let key = Key::default()
            .with(LAYOUT)
            .with(&image.key)
            .with(image.uuid.as_bytes())
            .with(&kernel.manifest.sha256)
            .with(parts.initrd.as_os_str().as_encoded_bytes())
            .with(parts.emulator.version())
            .with(qemu::fingerprint(&parts))
            .name();
        Ok(Self { key, image, parts })
    }

    /// Keeps what it is made of from being removed while this process lives; needs the lock.
    pub fn hold(&self, cache: &Cache) -> Result<()> {
        cache.hold(&self.image.root)?;
        cache.hold(&self.parts.vmlinux)?;
        self.parts.emulator.hold(cache)
    }
}

/// The kernel in the store `folder`, if it is whole.
fn kernel_at(folder: &Path) -> Result<Option<Kernel>> {
    let name = banger_harness::DEFAULT_KERNEL.parse().context("the shared kernel's name")?;
    let kernel = KernelStore::open(folder).and_then(|store| store.get(&name)).ok();
    Ok(kernel.filter(|kernel| kernel.modules_image().is_some_and(|(path, _)| path.is_file())))
}

/// A copy of the shared kernel in this cache. The shared one is pulled again whenever the sources
/// that read it change, with another file system for the same modules, and a saved state would be
/// lost each time. So it is asked for only where this clone's tests have it; otherwise the copy that
/// was used last will do, and nothing has to be fetched.
fn own_kernel(cache: &Cache, lock: &CacheLock) -> Result<Kernel> {
    let shared = match banger_harness::kernel_store_if_made().context("find the shared kernel")? {
        Some(store) => kernel_at(&store)?,
        None => None,
    };
    let Some(shared) = shared else {
        for folder in cache.by_last_use(KERNEL)? {
            if let Some(kernel) = kernel_at(&folder)? {
                return Ok(kernel);
            }
        }
        note(format_args!(
            "fetching {} from Debian (some seconds)",
            banger_harness::DEFAULT_KERNEL
        ));
        let pulled = cache.stage(lock)?;
        let store = pulled.path().join("kernels");
        banger_harness::pull_kernel(&store).context("fetch the KVM host's kernel")?;
        let kernel = kernel_at(&store)?.context("the fetched kernel has no module tree")?;
        return copy_of(&kernel, cache, lock);
    };
    copy_of(&shared, cache, lock)
}

fn copy_of(kernel: &Kernel, cache: &Cache, lock: &CacheLock) -> Result<Kernel> {
    let name = &kernel.manifest.name;
    let key = &kernel.manifest.sha256[..16.min(kernel.manifest.sha256.len())];
    let folder = cache.root().join(format!("{KERNEL}-{key}"));
    if folder.is_dir()
        && let Some(copy) = kernel_at(&folder)?
    {
        return Ok(copy);
    }
    let staged = cache.stage(lock)?;
    let from = kernel.vmlinux();
    let from = from.parent().context("a kernel lies in a folder")?;
    banger_harness::link_folder(from, &staged.path().join(name.as_str()))?;
    let folder = cache.publish(staged, KERNEL, key)?;
    kernel_at(&folder)?.context("read the kernel's copy")
}

/// The guest agent, which cargo builds along with `bangerd` (owner/daemon/build.rs).
pub fn agent() -> Result<Vec<u8>> {
    let programs = banger_harness::program_folder();
    let target = programs.parent().context("programs lie in a target directory")?;
    let path = target.join("agent/x86_64-unknown-linux-gnu/agent/banger-vsock-agent");
    std::fs::read(&path)
        .with_context(|| format!("read {}; cargo build --package banger-daemon", path.display()))
}

/// Where one start of a machine has its disk and its sockets.
#[derive(Clone, Debug)]
pub struct Place {
    /// An existing folder for sockets and the console's log.
    pub folder: PathBuf,
    /// The disk's overlay.
    pub overlay: PathBuf,
}
