//! What was carried, as a tree of git's and as listings.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use banger_agent_api::{Listed, ListingDecoder};

use crate::error::WorkspaceError;
use crate::git;

/// A file or link of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeEntry {
    pub mode: u32,
    pub object: String,
}

/// The files and links of a tree, by name.
pub(crate) type Tree = BTreeMap<Vec<u8>, TreeEntry>;

/// What is known of files beside their content, by name.
pub(crate) type Listing = HashMap<Vec<u8>, Listed>;

/// How long after a change a file may change again without its times telling: twice the tick of a
/// kernel of 100 Hz, whose clock stamps files.
const TICK_NANOS: i64 = 20_000_000;

/// Returns whether a change after `now` would show in the times of what was listed.
pub(crate) fn is_settled(listed: &Listed, now_nanos: i64) -> bool {
    listed.changed_nanos < now_nanos - TICK_NANOS
}

/// Returns what a tree has below a directory.
pub(crate) fn beneath<'t>(
    tree: &'t Tree,
    directory: &[u8],
) -> impl Iterator<Item = (&'t Vec<u8>, &'t TreeEntry)> {
    let start = [directory, b"/"].concat();
    let within = start.clone();
    tree.range(start..).take_while(move |(name, _)| name.starts_with(&within))
}

/// Reads the tree of a commit of one of our repositories.
pub(crate) fn tree(repository: &Path, name: &str) -> Result<Tree, WorkspaceError> {
    let entries = git::tree(repository, name)?.into_iter();
    Ok(entries
        .map(|entry| {
            let name = entry.name.as_os_str().as_bytes().to_vec();
            (name, TreeEntry { mode: entry.mode, object: entry.object })
        })
        .collect())
}

/// Writes a listing into a file.
pub(crate) fn save<'l>(
    path: &Path,
    listing: impl Iterator<Item = &'l Listed>,
) -> Result<(), WorkspaceError> {
    let mut bytes = Vec::new();
    listing.for_each(|listed| listed.encode(&mut bytes));
    let aside = path.with_extension("new");
    fs::write(&aside, bytes)
        .and_then(|()| fs::rename(&aside, path))
        .map_err(WorkspaceError::keep("write", path))
}

/// Reads a listing; one that is not there or not whole is empty, which costs time only.
pub(crate) fn load(path: &Path) -> Listing {
    let mut decoder = ListingDecoder::default();
    decoder.push(&fs::read(path).unwrap_or_default());
    let mut listing = Listing::new();
    while let Ok(Some(listed)) = decoder.next_record() {
        listing.insert(listed.name.clone(), listed);
    }
    listing
}

/// A running `git cat-file --batch`.
pub(crate) struct Objects {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Objects {
    pub fn open(repository: &Path) -> Result<Self, WorkspaceError> {
        let mut child = git::own(repository)
            .args(["cat-file", "--batch"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(WorkspaceError::NoGit)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => {
                Ok(Self { child, input, output: BufReader::with_capacity(1 << 16, output) })
            }
            _ => Err(WorkspaceError::NoGit(io::Error::other("git has no standard streams"))),
        }
    }

    /// Gives an object's size and content to `take`, which reads all of it.
    pub fn read<T>(
        &mut self,
        object: &str,
        take: impl FnOnce(u64, &mut dyn Read) -> io::Result<T>,
    ) -> io::Result<T> {
        writeln!(self.input, "{object}")?;
        let mut header = Vec::new();
        io::BufRead::read_until(&mut self.output, b'\n', &mut header)?;
        // `<object> SP <type> SP <size> LF` (git-cat-file(1))
        let size = std::str::from_utf8(&header)
            .ok()
            .and_then(|line| line.trim_end().rsplit(' ').next()?.parse::<u64>().ok())
            .ok_or_else(|| io::Error::other(format!("git has no object {object}")))?;
        let taken = take(size, &mut (&mut self.output).take(size))?;
        self.output.read_exact(&mut [0])?;
        Ok(taken)
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // It has nothing to write, so nothing is lost.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an empty bare repository of ours.
pub(crate) fn init(repository: &Path, object_format: &str) -> Result<(), WorkspaceError> {
    let mut git = git::own(repository);
    git.env_remove("GIT_DIR").args(["init", "--quiet", "--bare", "--template="]);
    git.arg(format!("--object-format={object_format}")).arg(repository);
    git::checked(&mut git, "init", repository).map(drop)
}

/// Has a repository of ours find objects in another one that lies beside it.
pub(crate) fn borrow(repository: &Path, from: &Path) -> Result<(), WorkspaceError> {
    let info = repository.join("objects/info");
    // Relative to the objects (gitrepository-layout(5)): what is kept gets another name once.
    let beside = Path::new("../..").join(from.file_name().unwrap_or_default()).join("objects\n");
    fs::create_dir_all(&info)
        .and_then(|()| fs::write(info.join("alternates"), beside.as_os_str().as_bytes()))
        .map_err(WorkspaceError::keep("write", info))
}

/// Opens a file of what is kept for reading, where it is there.
pub(crate) fn open(path: &Path) -> Result<File, WorkspaceError> {
    File::open(path).map_err(WorkspaceError::keep("open", path))
}
