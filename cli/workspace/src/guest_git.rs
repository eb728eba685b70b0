//! The repository that a guest gets, made on the host: a guest needs no git to have one.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_agent_api::{GuestPath, Listed, ListedKind};
use rustix::fs::OFlags;

use crate::HISTORY_DEPTH;
use crate::agent::AgentGuest;
use crate::archive::Archive;
use crate::base::{self, open};
use crate::error::{GuestError, WorkspaceError};
use crate::git;
use crate::kept::Kept;
use crate::layout::{SHARED_INDEX, read_beneath, read_capped};
use crate::pruning;
use crate::repository::Workspace;

/// The commit that the guest is on, in a repository of ours.
pub(crate) const HEAD: &str = "refs/banger/head";

/// Most bytes of a guest's branches, and most names.
const REFS_LIMIT: u64 = 16 << 20;
const REFS_MOST: usize = 100_000;

/// Most bytes of an index, and of rules for what is ignored.
const INDEX_LIMIT: u64 = 1 << 30;
const EXCLUDE_LIMIT: u64 = 1 << 20;
const NONBLOCK: i32 = OFlags::NONBLOCK.bits().cast_signed();

/// A guest's branches: `HEAD` and what is in `refs/`, by name.
pub(crate) type Refs = BTreeMap<Vec<u8>, Vec<u8>>;

/// The files with objects that a guest's repository has, and their sizes.
pub(crate) type PacksThere = BTreeMap<Vec<u8>, u64>;

/// A repository or submodule to be made in the guest.
#[derive(Debug)]
pub(crate) struct GuestGit {
    /// Where it is in the guest's tree; empty for the top.
    pub place: PathBuf,
    /// The one of ours that it is made of, below what is kept, which gets another name once its machine is
    /// made.
    repository: PathBuf,
    index: Vec<u8>,
    index_objects: Vec<String>,
    head: Vec<u8>,
    branch: Option<(String, String)>,
    config: Vec<u8>,
    exclude: Vec<u8>,
}

impl GuestGit {
    /// Copies a repository's recent history and index into one of ours, at `ours` below what is kept.
    pub fn make(
        place: PathBuf,
        workspace: &Workspace,
        (kept, ours): (&Kept, PathBuf),
    ) -> Result<Self, WorkspaceError> {
        let repository = kept.directory().join(&ours);
        if !repository.join("objects").exists() {
            base::init(&repository, &workspace.object_format)?;
        }
        if let Some(head) = &workspace.head {
            git::fetch(&repository, &workspace.common_dir, head, HISTORY_DEPTH, HEAD)?;
        }
        let objects = workspace.index_objects.iter().map(String::as_str).collect();
        git::copy_objects(&repository, &workspace.top, objects)?;
        let index = index(workspace, &repository)?;
        let exclude = exclude(workspace)?;
        let info = repository.join("info");
        fs::create_dir_all(&info)
            .and_then(|()| fs::write(info.join("exclude"), &exclude))
            .map_err(WorkspaceError::keep("write", info))?;
        let branch = workspace.branch.clone();
        let head = match (&branch, &workspace.head) {
            (Some(branch), _) => format!("ref: {branch}\n"),
            (None, Some(head)) => format!("{head}\n"),
            (None, None) => "ref: refs/heads/main\n".to_owned(),
        };
        Ok(Self {
            config: config(workspace)?,
            branch: branch.zip(workspace.head.clone()),
            head: head.into_bytes(),
            index_objects: workspace.index_objects.clone(),
            place,
            repository: ours,
            index,
            exclude,
        })
    }

    /// Returns the repository of ours that it is made of.
    pub fn repository(&self, kept: &Kept) -> PathBuf {
        kept.directory().join(&self.repository)
    }

    /// Returns the branch that it is on (`refs/heads/...`), where that has a commit.
    pub fn branch(&self) -> Option<&str> {
        self.branch.as_ref().map(|(branch, _)| &branch[..])
    }

    /// Returns the objects that its index names.
    pub fn index_objects(&self) -> &[String] {
        &self.index_objects
    }

    /// Puts it into the archive: all of it, or, into a repository that the guest has, the objects that it
    /// does not have by its own listing `there`, and not the configuration, which it may have changed.
    pub fn pack(
        &self,
        kept: &Kept,
        archive: &mut Archive<impl Write>,
        there: Option<&PacksThere>,
    ) -> Result<(), WorkspaceError> {
        let dot_git = self.place.join(".git");
        for directory in ["objects/pack", "objects/info", "refs/heads", "refs/tags", "info"] {
            archive.directory(&dot_git.join(directory))?;
        }
        let repository = self.repository(kept);
        for pack in packs(&repository)? {
            let file = open(&pack)?;
            let size = file.metadata().map_err(WorkspaceError::keep("read", &pack))?.len();
            let name = pack.file_name().unwrap_or_default();
            // A pack is named after its content.
            if there.is_some_and(|there| there.get(name.as_bytes()) == Some(&size)) {
                continue;
            }
            archive.file(&dot_git.join("objects/pack").join(name), 0o444, size, 0, file)?;
        }
        // gitformat-shallow(5): where the history that is carried ends.
        if let Ok(shallow) = fs::read(repository.join("shallow")) {
            archive.text(&dot_git.join("shallow"), &shallow)?;
        }
        if there.is_none() {
            archive.text(&dot_git.join("config"), &self.config)?;
        }
        archive.text(&dot_git.join("info/exclude"), &self.exclude)?;
        if let Some((branch, head)) = &self.branch {
            archive.text(&dot_git.join(branch), format!("{head}\n").as_bytes())?;
        }
        archive.text(&dot_git.join("index"), &self.index)?;
        // Last: with it, git takes the directory for a repository.
        archive.text(&dot_git.join("HEAD"), &self.head)
    }

    /// Asks which packs the guest has. What it was once given says nothing: it may have packed anew, and
    /// what was made for it may never have been sent.
    pub fn packs_there(
        &self,
        guest: &mut AgentGuest,
        root: &GuestPath,
    ) -> Result<PacksThere, WorkspaceError> {
        let failed = || WorkspaceError::guest("list the objects of the machine's repository");
        let mut path = PathBuf::from(OsStr::from_bytes(root.as_bytes()));
        path.push(&self.place);
        path.push(".git/objects/pack");
        let path = GuestPath::new(path.into_os_string().into_encoded_bytes())
            .map_err(|error| failed()(GuestError::other(error)))?;
        let listing = match guest.list(&path, &[]) {
            Err(GuestError::NotFound(_)) => return Ok(PacksThere::new()),
            other => other.map_err(failed())?,
        };
        let files = listing.entries.into_iter().filter(|listed| listed.kind == ListedKind::File);
        Ok(files.map(|listed| (listed.name, listed.size)).collect())
    }
}

/// A repository's place and a ref of it, as one key.
fn ref_name(place: &[u8], name: &[u8]) -> Vec<u8> {
    let mut key = place.to_vec();
    key.push(0);
    key.extend_from_slice(name);
    key
}

/// Returns the files with objects.
fn packs(repository: &Path) -> Result<Vec<PathBuf>, WorkspaceError> {
    let mut packs = pruning::pack_files(repository)?;
    packs.retain(|path| {
        path.extension().is_some_and(|extension| extension == "pack" || extension == "idx")
    });
    packs.sort();
    Ok(packs)
}

/// Returns the user's index as the guest can read it: in one file, and without what speaks of this
/// host.
fn index(workspace: &Workspace, repository: &Path) -> Result<Vec<u8>, WorkspaceError> {
    let ours = repository.join("index");
    let _ = fs::remove_file(&ours);
    if workspace.is_commit {
        git::checked(git::own(repository).args(["read-tree", HEAD]), "read-tree", repository)?;
    } else {
        if !copy(&workspace.git_dir, OsStr::new("index"), repository)? {
            return empty_index(repository);
        }
        // The other half of a split index lies beside it (git-update-index(1)).
        let entries = fs::read_dir(&workspace.git_dir).into_iter().flatten().flatten();
        for entry in entries.filter(|e| e.file_name().as_bytes().starts_with(SHARED_INDEX)) {
            copy(&workspace.git_dir, &entry.file_name(), repository)?;
        }
        let mut git = git::own(repository);
        git.args(["update-index", "--force-write-index", "--no-split-index"]);
        git.args(["--no-untracked-cache", "--no-fsmonitor"]);
        git::checked(&mut git, "update-index", &workspace.top)?;
    }
    fs::read(&ours).map_err(WorkspaceError::keep("read", ours))
}

/// Copies an index, or a part of one, of the user's repository; returns whether it is there.
fn copy(git_dir: &Path, name: &OsStr, repository: &Path) -> Result<bool, WorkspaceError> {
    let Some(bytes) = read_beneath(git_dir, Path::new(name), INDEX_LIMIT)? else {
        return Ok(false);
    };
    let ours = repository.join(name);
    fs::write(&ours, bytes).map_err(WorkspaceError::keep("write", ours))?;
    Ok(true)
}

fn empty_index(repository: &Path) -> Result<Vec<u8>, WorkspaceError> {
    let git = &mut git::own(repository);
    git::checked(git.args(["read-tree", "--empty"]), "read-tree", repository)?;
    let ours = repository.join("index");
    fs::read(&ours).map_err(WorkspaceError::keep("read", ours))
}

/// Returns what is ignored beside what the repository's own files say.
fn exclude(workspace: &Workspace) -> Result<Vec<u8>, WorkspaceError> {
    let mut rules = Vec::new();
    if let Some(path) = git::user_excludes(&workspace.top)? {
        let failed = |source| WorkspaceError::Path { path: path.clone(), source };
        // It may be a link, for it is the user's choice. A fifo would not be waited for.
        let file = File::options().read(true).custom_flags(NONBLOCK).open(&path);
        // Git takes none that it cannot read, either.
        if let Ok((true, file)) = file.and_then(|file| Ok((file.metadata()?.is_file(), file))) {
            rules = read_capped(file, EXCLUDE_LIMIT).map_err(failed)?;
        }
        rules.push(b'\n');
    }
    let own = read_beneath(&workspace.common_dir, Path::new("info/exclude"), EXCLUDE_LIMIT)?;
    rules.extend_from_slice(&own.unwrap_or_default());
    rules.push(b'\n');
    Ok(rules)
}

/// Returns the guest's configuration: where the repository came from, and who works in it.
fn config(workspace: &Workspace) -> Result<Vec<u8>, WorkspaceError> {
    let get = |name| git::setting(&workspace.top, &[], name);
    let sha256 = workspace.object_format != "sha1";
    let mut text = Vec::new();
    let version = u8::from(sha256);
    write_line(&mut text, &format!("[core]\n\trepositoryformatversion = {version}"));
    write_line(&mut text, "\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true");
    // What decides how files are compared; none of it can name a program.
    for name in ["core.autocrlf", "core.eol"] {
        if let Some(value) = get(name)? {
            write_setting(&mut text, &name["core.".len()..], &value);
        }
    }
    if sha256 {
        write_line(&mut text, "[extensions]");
        write_setting(&mut text, "objectformat", workspace.object_format.as_bytes());
    }
    let url = get("remote.origin.url")?;
    if let Some(url) = url.filter(|url| is_public_url(url)) {
        write_line(&mut text, "[remote \"origin\"]");
        write_setting(&mut text, "url", &url);
        write_setting(&mut text, "fetch", b"+refs/heads/*:refs/remotes/origin/*");
    }
    let (name, email) = (get("user.name")?, get("user.email")?);
    if name.is_some() || email.is_some() {
        write_line(&mut text, "[user]");
        name.iter().for_each(|value| write_setting(&mut text, "name", value));
        email.iter().for_each(|value| write_setting(&mut text, "email", value));
    }
    for (place, _) in &workspace.submodules {
        let mut section = b"[submodule \"".to_vec();
        for &byte in place.as_os_str().as_bytes() {
            if byte == b'"' || byte == b'\\' {
                section.push(b'\\');
            }
            section.push(byte);
        }
        // A name with a line's end cannot be written there (git-config(1)).
        if !section.contains(&b'\n') {
            text.extend_from_slice(&section);
            write_line(&mut text, "\"]\n\tactive = true");
        }
    }
    Ok(text)
}

fn write_line(text: &mut Vec<u8>, line: &str) {
    text.extend_from_slice(line.as_bytes());
    text.push(b'\n');
}

/// Writes a setting, quoted as git-config(1) wants.
pub(crate) fn write_setting(text: &mut Vec<u8>, name: &str, value: &[u8]) {
    text.extend_from_slice(format!("\t{name} = \"").as_bytes());
    for &byte in value {
        match byte {
            b'\n' => text.extend_from_slice(b"\\n"),
            b'"' | b'\\' => text.extend_from_slice(&[b'\\', byte]),
            byte => text.push(byte),
        }
    }
    text.extend_from_slice(b"\"\n");
}

/// Returns whether an address of a repository means something elsewhere and has no secret in it.
fn is_public_url(url: &[u8]) -> bool {
    let Ok(url) = std::str::from_utf8(url) else { return false };
    if url.contains(|c: char| c.is_control() || c == '?' || c == '#') || url.starts_with('-') {
        return false;
    }
    match url.split_once("://") {
        Some((scheme @ ("http" | "https" | "ssh" | "git"), rest)) => {
            let authority = rest.split('/').next().unwrap_or_default();
            match authority.rsplit_once('@') {
                None => true,
                // ssh://git@host/ names an account; a password, or what a web address has there,
                // is a secret.
                Some((user, _)) => scheme == "ssh" && !user.contains(':'),
            }
        }
        Some(_) => false,
        // user@host:path, as scp(1) has it; a colon after a slash is part of a path, and two are
        // another transport (gitremote-helpers(7)).
        None => url.split_once(':').is_some_and(|(host, path)| {
            // A second @ would be a name and its secret.
            let first = path.split('/').next().unwrap_or_default();
            !host.is_empty()
                && !host.contains('/')
                && !path.starts_with(':')
                && !first.contains('@')
        }),
    }
}

/// Notes which branches the guest has: name, NUL, NUL, value, line's end; values have neither.
pub(crate) fn save_refs(
    path: &Path,
    guest: &mut AgentGuest,
    root: &GuestPath,
    places: impl Iterator<Item = Vec<u8>>,
) -> Result<(), WorkspaceError> {
    let mut refs = Refs::new();
    for place in places {
        refs.extend(keyed(&place, refs_of(guest, root, &place)?));
    }
    let mut bytes = Vec::new();
    for (name, value) in &refs {
        bytes.extend_from_slice(&[name, &b"\0\0"[..], value, b"\n"].concat());
    }
    fs::write(path, bytes).map_err(WorkspaceError::keep("write", path))
}

/// Says which of the guest's branches are not as they were when they were carried.
pub(crate) fn moved_refs(
    saved: &Path,
    guest: &mut AgentGuest,
    root: &GuestPath,
    places: &[Vec<u8>],
) -> Result<Vec<String>, WorkspaceError> {
    let before = fs::read(saved).map_err(WorkspaceError::keep("read", saved))?;
    let mut now = Refs::new();
    for place in places {
        now.extend(keyed(place, refs_of(guest, root, place)?));
    }
    let mut text = Vec::new();
    for (name, value) in &now {
        text.push([name, &b"\0\0"[..], value].concat());
    }
    let before: HashSet<&[u8]> = before.split(|&byte| byte == b'\n').collect();
    let mut moved: Vec<String> = text
        .iter()
        .filter(|line| !before.contains(&line[..]))
        .map(|line| {
            let mut parts = line.split(|&byte| byte == 0).filter(|part| !part.is_empty());
            let is_top = line.first() == Some(&0);
            let place = if is_top { None } else { parts.next() };
            let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
            let name = name.strip_prefix("refs/heads/").unwrap_or(&name).to_owned();
            match place {
                Some(place) => format!("{name} of {}", String::from_utf8_lossy(place)),
                None => name,
            }
        })
        .collect();
    moved.dedup();
    Ok(moved)
}

/// What a guest's repository has of branches and tags, but for those of its remotes.
#[derive(Debug, Default)]
pub(crate) struct HasRefs {
    /// `HEAD` and what is in `refs/`, by name.
    pub values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What lies in `refs/`, directories included.
    pub loose: Vec<Listed>,
    /// Names that are (also) in `packed-refs`.
    pub packed: HashSet<Vec<u8>>,
}

fn keyed(place: &[u8], refs: HasRefs) -> Refs {
    refs.values.into_iter().map(|(name, value)| (ref_name(place, &name), value)).collect()
}

/// Reads the branches of the repository at `place` below `root`.
pub(crate) fn refs_of(
    guest: &mut AgentGuest,
    root: &GuestPath,
    place: &[u8],
) -> Result<HasRefs, WorkspaceError> {
    let failed = || WorkspaceError::guest("read the branches of the machine's repository");
    let mut path = root.as_bytes().to_vec();
    if !place.is_empty() {
        path.push(b'/');
        path.extend_from_slice(place);
    }
    path.extend_from_slice(b"/.git");
    let path = GuestPath::new(path).map_err(|error| failed()(GuestError::other(error)))?;
    let below = GuestPath::new([path.as_bytes(), b"/refs"].concat())
        .map_err(|error| failed()(GuestError::other(error)))?;
    let entries = match guest.list(&below, &[]) {
        // It or all of the repository was removed in the guest.
        Err(GuestError::NotFound(_)) => Vec::new(),
        other => other.map_err(failed())?.entries,
    };
    let mut refs = HasRefs::default();
    for mut listed in entries {
        // The directory itself has no name there.
        if !listed.name.is_empty() && !listed.name.starts_with(b"remotes/") {
            listed.name = [&b"refs/"[..], &listed.name].concat();
            refs.loose.push(listed);
        }
    }
    let files = refs.loose.iter().filter(|listed| listed.kind == ListedKind::File);
    let mut names: Vec<Vec<u8>> = files.map(|listed| listed.name.clone()).collect();
    if names.len() > REFS_MOST {
        let why = format!("there are more than {REFS_MOST} branches and tags");
        return Err(failed()(GuestError::Bad(why)));
    }
    names.extend([b"HEAD".to_vec(), b"packed-refs".to_vec()]);
    let mut packed = Vec::new();
    let got = guest.get(&path, &names, REFS_LIMIT, &mut |name, _, _, content| {
        let mut value = Vec::new();
        content.read_to_end(&mut value)?;
        if name == b"packed-refs" {
            packed = value;
        } else {
            refs.values.insert(name.to_vec(), value.trim_ascii_end().to_vec());
        }
        Ok(())
    });
    match got {
        // Then there is nothing there to lose.
        Err(GuestError::NotFound(_)) => return Ok(HasRefs::default()),
        other => other.map_err(failed())?,
    }
    // `<object> SP <name>`; a peeled tag begins with ^ and a comment with # (git-pack-refs(1)).
    for line in packed.split(|&byte| byte == b'\n') {
        let mut parts = line.splitn(2, |&byte| byte == b' ');
        if let (Some(value), Some(name)) = (parts.next(), parts.next())
            && name.starts_with(b"refs/")
            && !name.starts_with(b"refs/remotes/")
        {
            refs.values.entry(name.to_vec()).or_insert_with(|| value.to_vec());
            refs.packed.insert(name.to_vec());
        }
    }
    Ok(refs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_secrets_or_of_this_host_stay() {
        for public in [
            "https://example.org/a.git",
            "ssh://git@example.org:22/a",
            "git@example.org:a/b.git",
            "example.org:a",
            "git://example.org/a",
        ] {
            assert!(is_public_url(public.as_bytes()), "{public}");
        }
        for other in [
            "https://token@example.org/a.git",
            "https://user:password@example.org/a.git",
            "ssh://git:password@example.org/a",
            "uploader:secret@example.org:a/b.git",
            "https://example.org/a?private_token=1",
            "/srv/a.git",
            "../a:b",
            "file:///srv/a.git",
            "ext::sh -c 'touch /tmp/x'",
            "",
        ] {
            assert!(!is_public_url(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn settings_are_quoted() {
        let mut text = Vec::new();
        write_setting(&mut text, "name", b"A \"B\" \\ \n[alias] x = !y");
        assert_eq!(text, b"\tname = \"A \\\"B\\\" \\\\ \\n[alias] x = !y\"\n");
    }
}
