//! What the host has now of some names, for a round of [`crate::Mirror`].

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::SystemTime;

use banger_agent_api::Listed;

use crate::agent::as_path;
use crate::base::{self, TreeEntry, is_settled};
use crate::error::WorkspaceError;
use crate::fast_import::{Content, FastImport};
use crate::files::{self, Entry, git_mode, open_beneath};
use crate::git;
use crate::kept::Kept;
use crate::snapshot::{BASE, NEXT};
use crate::sync::Known;

/// Most names of a round that is no whole look.
const NAMES_MOST: usize = 2_000;

/// A name of the host's that is different from what was carried.
#[derive(Debug)]
pub(crate) struct Different {
    pub name: Vec<u8>,
    /// What it is now.
    pub entry: Option<TreeEntry>,
}

/// Files of the host that were looked at.
#[derive(Debug)]
pub(crate) struct Taken {
    pub different: Vec<Different>,
    /// How those that are there were found.
    found: Vec<Listed>,
    gone: Vec<Vec<u8>>,
    /// The host's clock before.
    now_nanos: i64,
}

impl Taken {
    fn listed(&self, name: &[u8]) -> Option<&Listed> {
        self.found.iter().find(|listed| listed.name == name)
    }

    /// When a file changed, in seconds since the epoch.
    pub fn modified(&self, name: &[u8]) -> Option<u64> {
        let listed = self.listed(name)?;
        u64::try_from(listed.modified_nanos / 1_000_000_000).ok()
    }

    /// How a name was found, if a later change of it would show; the inner `None` is a name that is not
    /// there.
    pub fn settled(&self, name: &[u8]) -> Option<Option<&Listed>> {
        match self.listed(name) {
            Some(listed) => is_settled(listed, self.now_nanos).then_some(Some(listed)),
            None => Some(None),
        }
    }

    /// Notes what need not be read again.
    pub fn note(self, known: &mut Known) {
        for name in &self.gone {
            known.host.remove(name);
        }
        for listed in self.found {
            if is_settled(&listed, self.now_nanos) && !known.left.contains_key(&listed.name) {
                known.host.insert(listed.name.clone(), listed);
            } else {
                known.host.remove(&listed.name);
            }
        }
    }
}

/// Returns the names to look at, `again` among them; `None` where a whole look must say them.
pub(crate) fn names(
    known: &Known,
    changed: &BTreeSet<PathBuf>,
    again: BTreeSet<Vec<u8>>,
    include_untracked: bool,
) -> Result<Option<BTreeSet<Vec<u8>>>, WorkspaceError> {
    let mut names = again;
    let mut asked = Vec::new();
    for path in changed {
        let parts = || path.components().map(|part| part.as_os_str().as_bytes());
        if parts().any(|part| part == b".git" || part == b".gitignore" || part == b".gitmodules") {
            return Ok(None);
        }
        let name = path.as_os_str().as_bytes();
        let start = [name, b"/"].concat();
        let below = known.names.range(start.clone()..).take_while(|name| name.starts_with(&start));
        names.extend(below.cloned());
        names.extend(base::beneath(&known.tree, name).map(|(name, _)| name.clone()));
        let is_ours = known.names.contains(name) || known.tree.contains_key(name);
        if is_ours {
            names.insert(name.to_vec());
        }
        // A directory may have come where a file of ours was.
        let is_directory =
            || known.workspace.top.join(path).symlink_metadata().is_ok_and(|now| now.is_dir());
        if include_untracked && (!is_ours || is_directory()) {
            if known.workspace.submodules.iter().any(|(place, _)| path.starts_with(place)) {
                return Ok(None);
            }
            asked.push(path.clone());
        }
        if names.len() + asked.len() > NAMES_MOST {
            return Ok(None);
        }
    }
    if !asked.is_empty() {
        for path in git::untracked_of(&known.workspace.top, &asked)? {
            let name = path.into_os_string().into_encoded_bytes();
            // A repository of its own.
            if !name.ends_with(b"/") {
                names.insert(name);
            }
        }
    }
    Ok((names.len() <= NAMES_MOST).then_some(names))
}

/// Looks at names of the host, and makes the commit that has them; `None` where a file came in the
/// place of a directory, or the other way round.
pub(crate) fn take(
    kept: &Kept,
    known: &Known,
    names: &BTreeSet<Vec<u8>>,
) -> Result<Option<Taken>, WorkspaceError> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now_nanos = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
    let top = files::open_top(&known.workspace.top)?;
    let (mut found, mut gone) = (Vec::new(), Vec::new());
    let mut import = FastImport::start(&kept.base())?;
    let mut contents: Vec<(Listed, Content)> = Vec::new();
    for name in names {
        let path = as_path(name);
        let Some(entry) = open_beneath(&top, path)? else {
            if known.tree.contains_key(name) {
                gone.push(name.clone());
            }
            continue;
        };
        let parents = path.ancestors().skip(1).map(|parent| parent.as_os_str().as_bytes());
        if base::beneath(&known.tree, name).next().is_some()
            || parents.into_iter().any(|parent| known.tree.contains_key(parent))
        {
            return Ok(None);
        }
        let (Entry::File(_, metadata) | Entry::Link(_, metadata)) = &entry;
        let listed = files::listed(path, metadata);
        if known.tree.contains_key(name) && known.host.get(name) == Some(&listed) {
            continue;
        }
        let mark = match entry {
            Entry::File(file, metadata) => import.blob(metadata.len(), file),
            Entry::Link(target, _) => import.blob(target.len() as u64, &target[..]),
        };
        match mark {
            Ok(mark) => contents.push((listed, Content::Mark(mark))),
            Err(error) => return Err(import.failed(error)),
        }
    }
    if contents.is_empty() && gone.is_empty() {
        import.finish()?;
        return Ok(Some(Taken { different: Vec::new(), found, gone, now_nanos }));
    }
    let set = || {
        import.commit(NEXT, None)?;
        import.root(&known.base.1)?;
        for name in &gone {
            import.delete(name)?;
        }
        for (listed, content) in contents {
            import.set(git_mode(listed.kind, listed.mode), &content, &listed.name)?;
            found.push(listed);
        }
        Ok(())
    };
    match set() {
        Ok(()) => import.finish()?,
        Err(error) => return Err(import.failed(error)),
    }
    let different = git::changed(&kept.base(), (BASE, NEXT))?.into_iter().map(|(name, entry)| {
        Different { name, entry: entry.map(|(mode, object)| TreeEntry { mode, object }) }
    });
    Ok(Some(Taken { different: different.collect(), found, gone, now_nanos }))
}

/// Makes a commit of a tree and what is different from it.
pub(crate) fn commit(
    mut import: FastImport,
    root: &str,
    different: &[(&Vec<u8>, Option<&TreeEntry>)],
) -> Result<(), WorkspaceError> {
    let mut set = || {
        import.commit(NEXT, None)?;
        import.root(root)?;
        for (name, entry) in different {
            match entry {
                Some(entry) => {
                    import.set(entry.mode, &Content::Object(entry.object.clone()), name)?;
                }
                None => import.delete(name)?,
            }
        }
        Ok(())
    };
    match set() {
        Ok(()) => import.finish(),
        Err(error) => Err(import.failed(error)),
    }
}
