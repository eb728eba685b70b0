//! Kernel modules from the initrd, in the order that the host resolved.
//!
//! `/modules/order` has one line per module, `ROLE FILE`; FILE is a plain (not compressed) module
//! in `/modules`. Roles say what a module is for, and so when it is needed.

use std::path::{Path, PathBuf};

use super::{BootError, read, system_error};

const DIRECTORY: &str = "/modules";

/// Roles without which neither host nor disk is reachable.
const EARLY: [&str; 4] = ["transport", "disk", "channel", "filesystem"];

/// The modules of this initrd.
pub(super) struct Order(Vec<Module>);

struct Module {
    early: bool,
    path: PathBuf,
}

impl Order {
    /// Reads the list; an initrd without one needs no modules.
    pub fn read() -> Result<Self, BootError> {
        let path = format!("{DIRECTORY}/order");
        if !Path::new(&path).exists() {
            return Ok(Self(Vec::new()));
        }
        Ok(Self(parse(&read(&path)?)))
    }

    /// Loads what the boot waits for.
    pub fn load_early(&self) -> Result<(), BootError> {
        self.0.iter().filter(|module| module.early).try_for_each(Module::load)
    }

    /// Loads the rest, and takes every file out of the initrd's memory. One that fails does not
    /// keep the next from being loaded; the first failure is returned.
    pub fn load_late(&self) -> Result<(), BootError> {
        let mut result = Ok(());
        for module in &self.0 {
            if !module.early
                && let Err(error) = module.load()
                && result.is_ok()
            {
                result = Err(error);
            }
            let _ = std::fs::remove_file(&module.path);
        }
        result
    }
}

fn parse(text: &str) -> Vec<Module> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(role, file)| Module {
            early: EARLY.contains(&role),
            path: Path::new(DIRECTORY).join(file.trim()),
        })
        .collect()
}

impl Module {
    fn load(&self) -> Result<(), BootError> {
        let name = self.path.display();
        let file = std::fs::File::open(&self.path).map_err(system_error("open module", name))?;
        match rustix::system::finit_module(&file, c"", 0) {
            // Built in, or loaded as the dependency of another.
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(BootError::Module {
                name: self.path.display().to_string(),
                source: error.into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_a_role_and_a_file() {
        let modules = parse("transport virtio.ko\ndisk virtio_blk.ko\n\nrubbish\nnetwork a b.ko\n");
        let seen: Vec<_> =
            modules.iter().map(|m| (m.early, m.path.to_str().unwrap().to_owned())).collect();
        assert_eq!(
            seen,
            [
                (true, "/modules/virtio.ko".to_owned()),
                (true, "/modules/virtio_blk.ko".to_owned()),
                (false, "/modules/a b.ko".to_owned()),
            ]
        );
    }
}
