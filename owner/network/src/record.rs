//! What is remembered of the bridge, so that VMs keep their addresses over a reboot.

use std::io::Write;
use std::path::{Path, PathBuf};

use banger_types::Subnet;
use serde::{Deserialize, Serialize};

/// A file larger than this is not ours.
const LONGEST: u64 = 4 << 10;

/// The bridge as it was set up last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) subnet: Subnet,
    /// Where the name server listens.
    pub(crate) port: u16,
}

/// Its file.
#[derive(Clone, Debug)]
pub(crate) struct RecordFile(PathBuf);

impl RecordFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Reads it; one that is missing or damaged says nothing, and a subnet is chosen anew.
    pub(crate) fn read(&self) -> Option<Record> {
        let size = std::fs::metadata(&self.0).ok()?.len();
        let text = if size <= LONGEST { std::fs::read(&self.0).ok()? } else { return None };
        serde_json::from_slice(&text).ok()
    }

    pub(crate) fn write(&self, record: &Record) {
        if let Err(error) = replace(&self.0, record) {
            tracing::warn!(%error, path = %self.0.display(), "the bridge's subnet was not written down");
        }
    }
}

fn replace(path: &Path, record: &Record) -> std::io::Result<()> {
    let temporary = path.with_extension("json.new");
    let text = serde_json::to_vec(record)?;
    let mut file = std::fs::File::create(&temporary)?;
    let written = file.write_all(&text).and_then(|()| file.sync_all());
    written.and_then(|()| std::fs::rename(&temporary, path)).inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_back_and_damage_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("network.json");
        let file = RecordFile::new(path.clone());
        assert_eq!(file.read(), None);
        let record = Record { subnet: "10.1.2.1/24".parse().unwrap(), port: 5300 };
        file.write(&record);
        assert_eq!(file.read(), Some(record));
        let long = " ".repeat(5000) + r#"{"subnet":"10.1.2.1/24","port":5300}"#;
        for damage in ["", "{", r#"{"subnet":"8.8.8.1/24","port":1}"#, &long] {
            std::fs::write(&path, damage).unwrap();
            assert_eq!(file.read(), None, "{damage}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
