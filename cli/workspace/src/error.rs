//! Why a workspace cannot be prepared or exported.

use std::io;
use std::path::PathBuf;

/// What goes wrong with a machine's side of a workspace.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The file or directory is not in the guest.
    #[error("it is not in the machine")]
    NotFound(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The agent was started by an older banger.
    #[error("the machine's agent is older than this banger")]
    OldAgent,
    /// What came is none of what was asked for, or over a bound.
    #[error("the machine's answer is not acceptable: {0}")]
    Bad(String),
    /// Anything else.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl GuestError {
    /// Wraps any cause.
    pub fn other(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Other(source.into())
    }
}

/// Why a workspace cannot be prepared or exported.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// The path does not lead to a directory.
    #[error("cannot use {} as a workspace", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No repository.
    #[error("{} is not in the working tree of a git repository", path.display())]
    NotARepository {
        /// The path.
        path: PathBuf,
    },
    /// Nothing there would be in the guest.
    #[error("no file of the repository lies in {}", path.display())]
    NothingTracked {
        /// The path.
        path: PathBuf,
    },
    /// A configuration that points elsewhere.
    #[error("the repository at {} says that its working tree is {}", path.display(), says.display())]
    Elsewhere {
        /// The directory with `.git` in it.
        path: PathBuf,
        /// What git says.
        says: PathBuf,
    },
    /// A `.git` that leads to a repository that does not know of it.
    #[error("{} leads to a repository that is not its own", path.display())]
    ForeignGit {
        /// The `.git`.
        path: PathBuf,
    },
    /// A part of a repository that is a link, or no file at all.
    #[error("{} is a link or no plain file, and could lead to another repository", path.display())]
    OddGit {
        /// The part.
        path: PathBuf,
    },
    /// Objects that lie in another repository.
    #[error("{} has git read another repository's objects", path.display())]
    Alternates {
        /// The file that names it.
        path: PathBuf,
    },
    /// A name that git lets nobody make.
    #[error("the repository at {} has a file named {name}, which git does not allow", path.display())]
    OddName {
        /// The name.
        name: String,
        /// The repository.
        path: PathBuf,
    },
    /// Git does not use it, because it belongs to somebody else.
    #[error("git does not use the repository at {}: it belongs to another user", path.display())]
    OthersGit {
        /// The repository.
        path: PathBuf,
    },
    /// Git is not installed.
    #[error("cannot run git")]
    NoGit(#[source] io::Error),
    /// Git failed.
    #[error("git {command} failed in {}: {message}", path.display())]
    Git {
        /// The subcommand.
        command: &'static str,
        /// The directory.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// No such commit.
    #[error("{name} is no commit of {}", path.display())]
    NoCommit {
        /// What was asked for.
        name: String,
        /// The repository.
        path: PathBuf,
    },
    /// No name for a branch.
    #[error("{name:?} cannot be the name of a branch")]
    BranchName {
        /// What was asked for.
        name: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file, relative to the working tree.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The archive cannot be written on.
    #[error("cannot pack {}", path.display())]
    Pack {
        /// The file, relative to the working tree.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What is kept of a workspace on the host cannot be read or written.
    #[error("cannot {operation} {}", path.display())]
    Keep {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What was carried into the machine is not known here.
    #[error("what was carried into the machine is not kept in {}", path.display())]
    NotKept {
        /// Where it would be.
        path: PathBuf,
    },
    /// An earlier prepare was cut off.
    #[error("an earlier prepare of this machine was cut off")]
    CutOff,
    /// Something else is where the repository would go.
    #[error("{path} in the machine is not empty, and is no workspace")]
    Occupied {
        /// The directory in the guest.
        path: String,
    },
    /// The guest has work that would be lost.
    #[error("the machine has work that the host does not have: {what}")]
    NewerWork {
        /// The names, or what else it is.
        what: String,
    },
    /// A branch of the guest's whose name and that of the carried one exclude each other.
    #[error("the machine has a branch {theirs}, beside which there can be no branch {branch}")]
    BranchInTheWay {
        /// The one that is carried.
        branch: String,
        /// The guest's.
        theirs: String,
    },
    /// The guest.
    #[error("cannot {operation}")]
    Guest {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        #[source]
        source: GuestError,
    },
    /// Changes of the working tree cannot be seen.
    #[error("cannot watch {}", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The patch cannot be written.
    #[error("cannot write the patch")]
    Output(#[source] io::Error),
}

impl WorkspaceError {
    /// Returns whether it comes of how the repository is at this moment, so that the next change may mend it.
    pub(crate) fn is_of_the_moment(&self) -> bool {
        matches!(
            self,
            Self::Git { .. }
                | Self::File { .. }
                | Self::OddGit { .. }
                | Self::OddName { .. }
                | Self::Alternates { .. }
                | Self::NothingTracked { .. }
                | Self::NoCommit { .. }
        )
    }

    /// Returns whether there is no repository where one is looked for, or none that is its own.
    pub(crate) fn is_of_the_top(&self) -> bool {
        matches!(
            self,
            Self::Path { .. }
                | Self::NotARepository { .. }
                | Self::Elsewhere { .. }
                | Self::ForeignGit { .. }
        )
    }

    /// Says which file of what is kept, and what was tried.
    pub(crate) fn keep(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Keep { operation, path, source }
    }

    /// Says what was tried with the guest.
    pub(crate) fn guest(operation: &'static str) -> impl FnOnce(GuestError) -> Self {
        move |source| Self::Guest { operation, source }
    }
}
