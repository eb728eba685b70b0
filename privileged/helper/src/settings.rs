//! What the helper works with, fixed when it starts.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use banger_gates::{Owner, Policy};

use crate::arguments::Arguments;
use crate::install::Install;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Written by `banger system install`.
const INSTALL_FILE: &str = "/etc/banger/install.toml";
const LONGEST_INSTALL_FILE: u64 = 64 << 10;

/// Where all is and for whom.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) policy: Policy,
    /// The helper's own directory, root's alone.
    pub(crate) own: PathBuf,
    /// The socket to make where none is passed.
    pub(crate) socket: PathBuf,
}

impl Settings {
    /// Reads what the command line or install.toml says.
    pub(crate) fn read(arguments: Arguments) -> Result<Self, Failure> {
        let (socket, install) = match arguments {
            Arguments::Direct(direct) => *direct,
            _ => {
                let failed = |error| format!("read {INSTALL_FILE}: {error}");
                let install = read_install().map_err(failed)?;
                (PathBuf::from("/run/banger-root/bangerd-root.sock"), install)
            }
        };
        let owner = Owner::new(install.owner_uid, install.owner_gid)?;
        let own = socket.parent().ok_or("the socket lies in no directory")?.to_owned();
        for directory in [&own, &install.jail_dir] {
            make_roots_own(directory)?;
        }
        let memory = rustix::system::sysinfo();
        let unit = u64::from(memory.mem_unit).max(1);
        let policy = Policy {
            owner,
            state: install.state_dir,
            runtime: install.runtime_dir,
            jails: install.jail_dir,
            vmm_directories: Policy::VMM_DIRECTORIES.map(PathBuf::from).to_vec(),
            vmm_files: install.vmm_files,
            host_memory_mib: (memory.totalram.saturating_mul(unit)) >> 20,
            own_pid: std::process::id(),
        };
        Ok(Self { policy, own, socket })
    }
}

/// Removes the socket, and the helper's own directory where nothing is recorded in it: in direct
/// mode it has the life of one daemon.
pub(crate) fn leave(own: &Path, socket: &Path) {
    // What cannot be removed is in nobody's way.
    let _ = std::fs::remove_file(socket);
    let _ = std::fs::remove_dir(own.join("records"));
    let _ = std::fs::remove_dir(own);
}

/// Makes a directory that others may pass through and only root may change, and refuses one that
/// lies, or would lie, where anybody else could swap it.
fn make_roots_own(path: &Path) -> Result<(), Failure> {
    let opened = banger_host::open_guarded(path, true);
    let opened =
        opened.map_err(|fault| format!("a directory of root's alone is needed: {fault}"))?;
    if let Some((_, stat)) = opened {
        if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(());
        }
        return Err(format!("{} is not a directory", path.display()).into());
    }
    // What it lies in first: nothing is made below somebody else's directory.
    make_roots_own(path.parent().ok_or("the root directory is missing")?)?;
    let made = std::fs::DirBuilder::new().mode(0o711).create(path);
    // The umask took the others' right to pass through.
    let made = made.and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o711)));
    Ok(made.map_err(|error| format!("make {}: {error}", path.display()))?)
}

/// Reads install.toml, which only root may have written.
fn read_install() -> Result<Install, Failure> {
    let file = File::open(INSTALL_FILE)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        return Err("it is not a file that only root can write".into());
    }
    let mut text = String::new();
    file.take(LONGEST_INSTALL_FILE).read_to_string(&mut text)?;
    Ok(text.parse()?)
}
