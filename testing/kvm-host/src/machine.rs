//! What a machine is made of: image, kernel, initrd, QEMU.

use std::path::PathBuf;

use anyhow::{Context, Result};
use banger_agent_api::{BootConfig, StaticNetwork};
use banger_image::{AgentBinary, Kernel, KernelStore, build_initrd};
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheLock, Key};
use crate::emulator::Emulator;
use crate::host_image::{HostImage, ensure_image};
use crate::qemu::{self, Parts};

/// A change of how a machine is saved or prepared; part of its key.
const LAYOUT: &str = "banger kvm-host machine 2";

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
    pub fn prepare(cache: &Cache, lock: &CacheLock) -> Result<Self> {
        let image = ensure_image(cache, lock)?;
        let kernel = own_kernel(cache, lock)?;
        let initrd = cache.root().join("initrd");
        let agent = agent()?;
        let initrd = build_initrd(&AgentBinary::new(&agent), &kernel, &initrd)
            .context("build the initrd")?;
        let emulator = Emulator::prepare(cache, lock)?;
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
}

/// The kernel that the tests share, pulled by the product's own command where it is missing.
pub fn shared_kernel() -> Result<Kernel> {
    let store = banger_harness::kernel_store().context("find the shared kernel")?;
    let name = banger_harness::DEFAULT_KERNEL.parse().context("the shared kernel's name")?;
    KernelStore::open(store)?.get(&name).context("read the shared kernel")
}

/// A copy of the shared kernel in this cache. The shared one is pulled again whenever the sources
/// that read it change, with another file system for the same modules, and a saved state would be
/// lost each time.
fn own_kernel(cache: &Cache, lock: &CacheLock) -> Result<Kernel> {
    let shared = shared_kernel()?;
    let name = &shared.manifest.name;
    let key = &shared.manifest.sha256[..16.min(shared.manifest.sha256.len())];
    let folder = cache.root().join(format!("kernel-{key}"));
    if let Ok(kernel) = KernelStore::open(&folder)?.get(name)
        && kernel.modules_image().is_some_and(|(path, _)| path.is_file())
    {
        return Ok(kernel);
    }
    let staged = cache.stage(lock)?;
    let from = shared.vmlinux();
    let from = from.parent().context("a kernel lies in a folder")?;
    banger_harness::link_folder(from, &staged.path().join(name.as_str()))?;
    let folder = cache.publish(staged, "kernel", key)?;
    KernelStore::open(folder)?.get(name).context("read the kernel's copy")
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
