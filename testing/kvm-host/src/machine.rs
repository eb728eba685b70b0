//! What a machine is made of: image, kernel, initrd, QEMU.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use banger_agent_api::{BootConfig, StaticNetwork};
use banger_image::{AgentBinary, Kernel, KernelStore, build_initrd};
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheLock, Key};
use crate::emulator::{Emulator, Retry};
use crate::host_image::{HostImage, build_anew, ensure_image};
use crate::note;
use crate::qemu::{self, Parts};

/// A change of how a machine is saved or prepared; part of its key.
const LAYOUT: &str = "banger kvm-host machine 3";
/// What the folders with a kernel's copy begin with.
const KERNEL: &str = "kernel";
/// What the folders with an initrd begin with, and where it lies in them.
const INITRD: &str = "initrd";
const CPIO: &str = "cpio";

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
        let initrd = own_initrd(&kernel, cache, lock)?;
        cache.hold(&initrd)?;
        Self::of(image, &kernel, initrd, Emulator::prepare(cache, lock, retry)?)
    }

    /// The machine of today's inputs, where all that it is made of is there. Waits for nobody, makes
    /// nothing and holds nothing.
    pub fn find(cache: &Cache) -> Result<Option<Self>> {
        let Some(image) = HostImage::find(cache)? else { return Ok(None) };
        let shared = banger_harness::kernel_store_now().context("find the shared kernel")?;
        let shared = shared.map(|store| kernel_at(&store)).transpose()?.flatten();
        let Some(kernel) = known_kernel(shared.as_ref(), cache)? else { return Ok(None) };
        let agent = agent()?;
        let folder = initrd_folder(&agent, &kernel, cache);
        if !folder.is_dir() {
            return Ok(None);
        }
        let initrd = build_initrd(&AgentBinary::new(&agent), &kernel, &folder.join(CPIO))
            .context("find the initrd")?;
        Self::of(image, &kernel, initrd, Emulator::find(cache)?).map(Some)
    }

    fn of(image: HostImage, kernel: &Kernel, initrd: PathBuf, emulator: Emulator) -> Result<Self> {
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

    /// Reads the image, and builds it anew if it is not what was built.
    pub fn with_sound_image(self, cache: &Cache, lock: &CacheLock) -> Result<Self> {
        let Err(error) = self.image.check() else { return Ok(self) };
        note(format_args!("the root file system: {error:#}"));
        build_anew(cache, lock)?;
        Self::prepare(cache, lock, Retry::AfterPause)
    }

    /// Keeps what it is made of from being removed while this process lives; needs the lock.
    pub fn hold(&self, cache: &Cache) -> Result<()> {
        cache.hold(&self.image.root)?;
        cache.hold(&self.parts.vmlinux)?;
        cache.hold(&self.parts.initrd)?;
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
    if let Some(kernel) = known_kernel(shared.as_ref(), cache)? {
        return Ok(kernel);
    }
    let Some(shared) = shared else {
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

/// The copy of the shared kernel, or where that is not there the one that was used last.
fn known_kernel(shared: Option<&Kernel>, cache: &Cache) -> Result<Option<Kernel>> {
    let folders = match shared {
        Some(kernel) => vec![kernel_folder(kernel, cache)],
        None => cache.by_last_use(KERNEL)?,
    };
    for folder in folders {
        if folder.is_dir()
            && let Some(kernel) = kernel_at(&folder)?
        {
            return Ok(Some(kernel));
        }
    }
    Ok(None)
}

fn kernel_key(kernel: &Kernel) -> &str {
    let digest = &kernel.manifest.sha256;
    digest.get(..16).unwrap_or(digest)
}

fn kernel_folder(kernel: &Kernel, cache: &Cache) -> PathBuf {
    cache.root().join(format!("{KERNEL}-{}", kernel_key(kernel)))
}

fn copy_of(kernel: &Kernel, cache: &Cache, lock: &CacheLock) -> Result<Kernel> {
    let staged = cache.stage(lock)?;
    let from = kernel.vmlinux();
    let from = from.parent().context("a kernel lies in a folder")?;
    let name = &kernel.manifest.name;
    banger_harness::link_folder(from, &staged.path().join(name.as_str()))?;
    let folder = cache.publish(staged, KERNEL, kernel_key(kernel))?;
    kernel_at(&folder)?.context("read the kernel's copy")
}

fn initrd_key(agent: &[u8], kernel: &Kernel) -> String {
    Key::default().with(agent).with(&kernel.manifest.sha256).with(kernel.manifest.id).name()
}

fn initrd_folder(agent: &[u8], kernel: &Kernel, cache: &Cache) -> PathBuf {
    cache.root().join(format!("{INITRD}-{}", initrd_key(agent, kernel)))
}

/// The initrd of today's agent for this kernel.
fn own_initrd(kernel: &Kernel, cache: &Cache, lock: &CacheLock) -> Result<PathBuf> {
    let agent = agent()?;
    let folder = initrd_folder(&agent, kernel, cache);
    if !folder.is_dir() {
        let staged = cache.stage(lock)?;
        build_initrd(&AgentBinary::new(&agent), kernel, &staged.path().join(CPIO))
            .context("build the initrd")?;
        cache.publish(staged, INITRD, &initrd_key(&agent, kernel))?;
        cache.remove_former_initrds(lock)?;
    }
    build_initrd(&AgentBinary::new(&agent), kernel, &folder.join(CPIO)).context("find the initrd")
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
