//! Turns a Debian kernel package, or a tar of a kernel's files, into the files of the store, in one
//! pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::deb::{self, Control, Package};
use super::depmod::{self, Tree, TreeModule};
use super::{
    BZIMAGE, BzImageError, CONFIG, DebError, KernelError, KernelManifest, KernelModule, MODULES,
    MODULES_IMAGE, ModuleRole, ModulesImage, NewKernel, VMLINUX, bzimage, modinfo,
};
use crate::builder;
use crate::ext4::{self, FileContent, Metadata, Timestamp, Writer};
use crate::progress::{CancelFlag, Progress};
use crate::shelf::{failed, sync_directory};
use crate::tarball::{Archive, Entry, EntryKind, Hashing, Piece, Source, TarError};

const LARGEST_KERNEL: u64 = 256 << 20;
/// A kernel with all its symbols.
const LARGEST_ELF: u64 = 1 << 30;
const LARGEST_MODULE: u64 = 64 << 20;
const LARGEST_TEXT: u64 = 16 << 20;
const MOST_MODULES: usize = 20_000;
const LONGEST_MODULE_PATH: u64 = 255;
/// Most bytes of all modules, packed and unpacked together; Debian's have about 1 GiB.
const LARGEST_TREE: u64 = 16 << 30;
/// Most bytes that all modules say about themselves; Debian's have about 2 MiB.
const LARGEST_DESCRIPTIONS: u64 = 64 << 20;
const MOST_FILES: u64 = 100_000;

/// What the initrd loads where the kernel has it as a module, in this order.
const WANTED: [(&str, ModuleRole); 8] = [
    ("virtio_mmio", ModuleRole::Transport),
    ("virtio_pci", ModuleRole::Transport),
    ("virtio_blk", ModuleRole::Disk),
    ("ext4", ModuleRole::Filesystem),
    ("virtio_console", ModuleRole::Channel),
    ("virtio_rng", ModuleRole::Entropy),
    ("vmw_vsock_virtio_transport", ModuleRole::Vsock),
    ("virtio_net", ModuleRole::Network),
];
/// Without these no guest can work; the option says whether one is built in where the package has
/// no list of that.
const NEEDED: [(&str, &str); 2] = [("virtio_blk", "CONFIG_VIRTIO_BLK"), ("ext4", "CONFIG_EXT4_FS")];

/// Configuration that says what a kernel can run on.
const CONFIG_FACTS: [&str; 12] = [
    "CONFIG_ACPI",
    "CONFIG_AUTOFS_FS",
    "CONFIG_EXT4_FS",
    "CONFIG_HYPERVISOR_GUEST",
    "CONFIG_KVM_GUEST",
    "CONFIG_MODULE_COMPRESS_XZ",
    "CONFIG_PVH",
    "CONFIG_SERIAL_8250_CONSOLE",
    "CONFIG_VIRTIO_CONSOLE",
    "CONFIG_VIRTIO_MMIO",
    "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES",
    "CONFIG_VIRTIO_VSOCKETS",
];

pub(super) struct Report<'a> {
    pub(super) size: Option<u64>,
    pub(super) progress: &'a dyn Progress,
}

/// What the pass over the package finds.
struct Found {
    tree: Tree,
    /// Where each module's uncompressed bytes are in the spool.
    places: BTreeMap<String, (u64, u64)>,
    spool: File,
    spooled: u64,
    /// What was taken of [`MOST_FILES`], [`LARGEST_TREE`] and [`LARGEST_DESCRIPTIONS`].
    files: u64,
    taken: u64,
    described: u64,
    writer: Writer,
    kernel: Option<(Option<String>, Vec<u8>)>,
    elf: Option<Vec<u8>>,
    config: Option<Vec<u8>>,
    builtin: Vec<u8>,
    builtin_info: Vec<u8>,
}

pub(super) fn import(
    directory: &Path,
    new: &NewKernel,
    package: impl Read,
    report: &Report<'_>,
    cancel: &CancelFlag,
) -> Result<KernelManifest, KernelError> {
    let mut package = package;
    let mut magic = Vec::new();
    package.by_ref().take(8).read_to_end(&mut magic).map_err(DebError::Read)?;
    let is_deb = magic == deb::MAGIC;
    let mut reader = Hashing::new(io::Read::chain(&magic[..], package));
    let (tree_path, uuid, mut found) = Found::new(directory)?;
    let control = if is_deb {
        report.progress.stage("reading the package");
        let mut package = Package::open(&mut reader)?;
        let control = package.control()?;
        if control.architecture != "amd64" || !control.package.starts_with("linux-image-") {
            return Err(KernelError::NotAKernel {
                package: control.package.escape_debug().to_string(),
                architecture: control.architecture.escape_debug().to_string(),
            });
        }
        let mut data = package.data()?;
        found.read(&mut data, place_in_package, directory, report, cancel)?;
        drop(data);
        package.drain()?;
        control
    } else {
        report.progress.stage("reading the kernel's files");
        let mut data = Archive::new(Source::new(&mut reader).map_err(DebError::Read)?);
        found.read(&mut data, place_in_tree, directory, report, cancel)?;
        Control::default()
    };
    let (_, sha256) = reader.finish();

    let images = found.images(is_deb)?;
    report.progress.stage("extracting the kernel");
    let vmlinux = match images.elf {
        Some(elf) => elf,
        None => bzimage::extract(&images.compressed)
            .map_err(|source| KernelError::Image { file: images.file.clone(), source })?,
    };
    cancel.check()?;
    write(&directory.join(BZIMAGE), &images.compressed)?;
    write(&directory.join(VMLINUX), &vmlinux)?;
    let config = match found.config.take() {
        Some(config) => config,
        None => bzimage::configuration(&vmlinux).unwrap_or_default(),
    };
    write(&directory.join(CONFIG), &config)?;

    report.progress.stage("writing its modules");
    let config = String::from_utf8_lossy(&config);
    let modules = found.write_initrd_modules(&directory.join(MODULES), &config, is_deb)?;
    let modules_image = if found.files == 0 {
        drop(found);
        fs::remove_file(&tree_path).map_err(failed("remove", &tree_path))?;
        None
    } else {
        let modules = found.tree.len();
        let size = found.write_indexes(&tree_path, cancel)?;
        Some(ModulesImage { uuid, size, modules })
    };
    sync_directory(directory)?;
    Ok(KernelManifest {
        schema: 1,
        id: Uuid::new_v4(),
        name: new.name.clone(),
        version: images.version,
        package: control.package,
        package_version: control.version,
        sha256,
        source: new.source.clone(),
        imported_at: jiff::Timestamp::now(),
        bzimage_size: images.compressed.len() as u64,
        vmlinux_size: vmlinux.len() as u64,
        modules,
        modules_image,
        config: facts(&config),
    })
}

/// What a file is for.
enum Place<'a> {
    /// The kernel as it is booted, and its version where the name says it.
    Compressed(Option<&'a str>),
    /// The kernel as an ELF file.
    Elf,
    Config,
    /// A file of the module tree, by its path there.
    Module(&'a str),
}

/// Names in a Debian package.
fn place_in_package(path: &str) -> Option<Place<'_>> {
    let path = path.strip_prefix("usr/").unwrap_or(path);
    if let Some(version) = path.strip_prefix("boot/vmlinuz-") {
        return Some(Place::Compressed(Some(version)));
    }
    if path.starts_with("boot/config-") {
        return Some(Place::Config);
    }
    let (_, below) = path.strip_prefix("lib/modules/")?.split_once('/')?;
    Some(Place::Module(below))
}

/// Names in a tar of a kernel's files.
fn place_in_tree(path: &str) -> Option<Place<'_>> {
    match path {
        "bzImage" => Some(Place::Compressed(None)),
        "vmlinux" => Some(Place::Elf),
        "config" => Some(Place::Config),
        _ => path.strip_prefix("modules/").filter(|below| !below.is_empty()).map(Place::Module),
    }
}

/// The kernel in both its forms.
struct Images {
    version: String,
    /// The name of what QEMU boots, safe to show.
    file: String,
    /// What QEMU boots: where there is only the ELF file that, by its PVH entry.
    compressed: Vec<u8>,
    elf: Option<Vec<u8>>,
}

impl Found {
    /// Begins with the files that take what the pass finds.
    fn new(directory: &Path) -> Result<(PathBuf, Uuid, Self), KernelError> {
        let tree_path = directory.join(MODULES_IMAGE);
        let tree_file = File::create_new(&tree_path).map_err(failed("create", &tree_path))?;
        let uuid = Uuid::new_v4();
        let writer = Writer::new(
            tree_file,
            ext4::Options {
                size: 32 << 20,
                grow_with_free: Some(0),
                uuid,
                label: "banger-modules".into(),
                // It is only ever mounted read-only.
                journal: false,
            },
        )
        .map_err(KernelError::Tree)?;
        let spool = {
            // Nameless, so that it is gone however this ends.
            let path = directory.join(".spool");
            let file = File::options().read(true).write(true).create_new(true).open(&path);
            let file = file.map_err(failed("create", &path))?;
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            file
        };
        let found = Self {
            tree: Tree::new(),
            places: BTreeMap::new(),
            spool,
            spooled: 0,
            files: 0,
            taken: 0,
            described: 0,
            writer,
            kernel: None,
            elf: None,
            config: None,
            builtin: Vec::new(),
            builtin_info: Vec::new(),
        };
        Ok((tree_path, uuid, found))
    }

    /// Takes the kernel that was found and says which it is.
    fn images(&mut self, is_deb: bool) -> Result<Images, KernelError> {
        let elf = self.elf.take();
        if elf.as_ref().is_some_and(|elf| !bzimage::is_elf(elf)) {
            let (file, source) = (VMLINUX.to_owned(), BzImageError::NotElf);
            return Err(KernelError::Image { file, source });
        }
        let (named, compressed) = match (self.kernel.take(), &elf) {
            (Some(kernel), _) => kernel,
            (None, Some(elf)) => (None, elf.clone()),
            (None, None) if is_deb => {
                return Err(KernelError::Missing("boot/vmlinuz-VERSION in the package"));
            }
            (None, None) => {
                return Err(KernelError::Missing("bzImage or vmlinux among the kernel's files"));
            }
        };
        let file = named.as_ref().map_or_else(
            || BZIMAGE.to_owned(),
            |version| format!("boot/vmlinuz-{}", version.escape_debug()),
        );
        let version = named
            .or_else(|| bzimage::version(&compressed))
            .or_else(|| elf.as_deref().and_then(bzimage::version));
        let missing = || match elf {
            Some(_) => KernelError::NoKernel,
            None => KernelError::Missing("version in bzImage"),
        };
        let version = version.ok_or_else(missing)?;
        Ok(Images { version, file, compressed, elf })
    }

    /// Reads the package's files.
    fn read<R: Read>(
        &mut self,
        data: &mut Archive<Source<R>>,
        place: impl Fn(&str) -> Option<Place<'_>>,
        directory: &Path,
        report: &Report<'_>,
        cancel: &CancelFlag,
    ) -> Result<(), KernelError> {
        let damaged = |source| DebError::Archive { member: "data.tar".into(), source };
        while let Some(entry) = data.next_entry().map_err(damaged)? {
            cancel.check()?;
            // Nearly all of a package is its data archive.
            report.progress.bytes(data.source().bytes_in(), report.size);
            if entry.kind != EntryKind::File {
                continue;
            }
            let Ok(path) = std::str::from_utf8(&entry.path) else { continue };
            match place(path) {
                Some(Place::Compressed(version)) => {
                    let image = content(data, &entry, LARGEST_KERNEL)?;
                    self.kernel = Some((version.map(str::to_owned), image));
                }
                Some(Place::Elf) => self.elf = Some(content(data, &entry, LARGEST_ELF)?),
                Some(Place::Config) => self.config = Some(content(data, &entry, LARGEST_TEXT)?),
                Some(Place::Module(below)) => {
                    let below = below.to_owned();
                    self.add_to_tree(data, &entry, &below, directory)?;
                }
                None => {}
            }
        }
        data.drain(1 << 20).map_err(damaged)?;
        Ok(())
    }

    fn add_to_tree<R: Read>(
        &mut self,
        data: &mut Archive<R>,
        entry: &Entry,
        below: &str,
        directory: &Path,
    ) -> Result<(), KernelError> {
        let bytes = content(data, entry, LARGEST_MODULE)?;
        spend(&mut self.files, 1, MOST_FILES, "the number of files")?;
        spend(&mut self.taken, bytes.len() as u64, LARGEST_TREE, "the module tree")?;
        self.add_file(below, &bytes, entry.metadata.modified)?;
        match below {
            "modules.builtin" => self.builtin.clone_from(&bytes),
            "modules.builtin.modinfo" => self.builtin_info.clone_from(&bytes),
            _ => {}
        }
        let Some(name) = depmod::module_name(below) else { return Ok(()) };
        spend(&mut 0, below.len() as u64, LONGEST_MODULE_PATH, "a module's path")?;
        let plain = decompress(&bytes)
            .map_err(|source| KernelError::Module { module: entry.shown(), source })?;
        let info = modinfo::parse(&plain).ok_or_else(|| KernelError::Module {
            module: entry.shown(),
            source: io::Error::new(io::ErrorKind::InvalidData, "it has no module information"),
        })?;
        spend(&mut self.taken, plain.len() as u64, LARGEST_TREE, "the module tree")?;
        let what = "what the modules say about themselves";
        spend(&mut self.described, info.bytes(), LARGEST_DESCRIPTIONS, what)?;
        if self.tree.len() >= MOST_MODULES {
            let limit = MOST_MODULES as u64;
            return Err(KernelError::TooLarge { entry: "modules".into(), size: limit + 1, limit });
        }
        self.spool
            .write_all_at(&plain, self.spooled)
            .map_err(failed("write modules in", directory))?;
        self.places.insert(name.clone(), (self.spooled, plain.len() as u64));
        self.spooled += plain.len() as u64;
        self.tree.insert(name.clone(), TreeModule { path: below.to_owned(), name, info });
        Ok(())
    }

    fn add_file(
        &mut self,
        path: &str,
        bytes: &[u8],
        modified: Timestamp,
    ) -> Result<(), KernelError> {
        let metadata = Metadata { permissions: 0o644, modified, ..Metadata::default() };
        let mut file = FileContent::new();
        self.writer.append(&mut file, bytes).map_err(KernelError::Tree)?;
        self.writer
            .add_file(path.as_bytes(), file, &metadata)
            .map(|_| ())
            .map_err(KernelError::Tree)
    }

    /// Picks the modules for the initrd and writes them uncompressed.
    fn write_initrd_modules(
        &mut self,
        directory: &Path,
        config: &str,
        is_deb: bool,
    ) -> Result<Vec<KernelModule>, KernelError> {
        fs::create_dir(directory).map_err(failed("create", directory))?;
        let builtin = String::from_utf8_lossy(&self.builtin);
        let builtin: BTreeSet<String> = builtin.lines().filter_map(depmod::module_name).collect();
        // A bare kernel says nothing of what it has.
        let is_known = is_deb || !builtin.is_empty() || !self.tree.is_empty() || !config.is_empty();
        for (needed, option) in NEEDED.into_iter().filter(|_| is_known) {
            let is_built_in = builtin.contains(needed)
                || config.lines().any(|line| line.strip_prefix(option) == Some("=y"));
            if !is_built_in && !self.tree.contains_key(needed) {
                return Err(KernelError::NoDriver(needed));
            }
        }
        let mut modules: Vec<KernelModule> = Vec::new();
        for (wanted, role) in WANTED {
            let Some(module) = self.tree.get(wanted) else { continue };
            let mut needed = depmod::dependencies(&self.tree, wanted);
            needed.push(module);
            for module in needed {
                if modules.iter().any(|have| have.name == module.name) {
                    continue;
                }
                let depends = module
                    .info
                    .depends
                    .iter()
                    .filter(|name| modules.iter().any(|have| have.name == **name))
                    .cloned()
                    .collect();
                let file = format!("{}.ko", module.name);
                let (offset, size) = self.places.get(&module.name).copied().unwrap_or_default();
                let path = directory.join(&file);
                let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
                self.spool
                    .read_exact_at(&mut bytes, offset)
                    .map_err(failed("read modules for", &path))?;
                write(&path, &bytes)?;
                let name = module.name.clone();
                modules.push(KernelModule { name, file, role, depends, size });
            }
        }
        sync_directory(directory)?;
        Ok(modules)
    }

    /// Completes the module tree and returns its size.
    fn write_indexes(mut self, path: &Path, cancel: &CancelFlag) -> Result<u64, KernelError> {
        let builtin = String::from_utf8_lossy(&self.builtin).into_owned();
        for (name, bytes) in depmod::indexes(&self.tree, &builtin, &self.builtin_info) {
            self.add_file(name, &bytes, Timestamp::now())?;
        }
        let finished = self.writer.finish().map_err(KernelError::Tree)?;
        finished.file.sync_all().map_err(failed("sync", path))?;
        builder::check(path, cancel).map_err(KernelError::Check)?;
        Ok(finished.size)
    }
}

/// Adds `more` to what a package has used up; refuses what is over `limit`.
fn spend(used: &mut u64, more: u64, limit: u64, what: &str) -> Result<(), KernelError> {
    *used = used.saturating_add(more);
    if *used > limit {
        return Err(KernelError::TooLarge { entry: what.to_owned(), size: *used, limit });
    }
    Ok(())
}

/// Reads a file of the package into memory.
fn content<R: Read>(
    data: &mut Archive<R>,
    entry: &Entry,
    limit: u64,
) -> Result<Vec<u8>, KernelError> {
    if entry.size > limit {
        return Err(KernelError::TooLarge { entry: entry.shown(), size: entry.size, limit });
    }
    let damaged = |source: TarError| DebError::Archive { member: "data.tar".into(), source };
    let mut bytes = Vec::with_capacity(usize::try_from(entry.size).unwrap_or(0));
    while let Some(piece) = data.next_piece().map_err(damaged)? {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(data),
            Piece::Hole(length) => {
                let length = usize::try_from(length).unwrap_or(0);
                bytes.resize(bytes.len() + length, 0);
            }
        }
    }
    Ok(bytes)
}

fn decompress(module: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    let mut source = Source::new(module)?;
    source.by_ref().take(LARGEST_MODULE + 1).read_to_end(&mut plain)?;
    if plain.len() as u64 > LARGEST_MODULE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 64 MiB"));
    }
    Ok(plain)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), KernelError> {
    let mut file = File::create_new(path).map_err(failed("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", path))?;
    Ok(())
}

fn facts(config: &str) -> BTreeMap<String, String> {
    config
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| CONFIG_FACTS.contains(key))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_package_takes_adds_up_to_a_limit() {
        let mut used = 0;
        spend(&mut used, 60, 100, "x").unwrap();
        spend(&mut used, 40, 100, "x").unwrap();
        let error = spend(&mut used, u64::MAX, 100, "x").unwrap_err();
        assert!(matches!(error, KernelError::TooLarge { limit: 100, .. }), "{error}");
    }
}
