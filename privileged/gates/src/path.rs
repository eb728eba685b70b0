//! Paths: on the host below a root, in an image, of a jail, of an executable.
//!
//! A path of this module is a text of a safe form, no more. Whether a link lies on the way is not
//! asked here: the host opens the root once and the rest by `openat2(RESOLVE_BENEATH |
//! RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)` and works on what it opened.

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use banger_helper_api::ErrorCode;

use crate::{JailId, Name, Policy, Refusal, Result};

/// PATH_MAX without its NUL byte.
const LONGEST_PATH: usize = 4095;
const LONGEST_COMPONENT: usize = 255;
/// debugfs reads lines into a buffer of 8192 bytes; a command has two paths.
const LONGEST_GUEST_PATH: usize = 1024;

/// Refuses what is no absolute, clean path.
fn check_clean(parameter: Name, text: &str) -> Result<()> {
    Refusal::when(text.len() > LONGEST_PATH, parameter, "longer than a path can be")?;
    Refusal::when(text.chars().any(char::is_control), parameter, "a control character in a path")?;
    let rest = text.strip_prefix('/');
    let rest = rest.ok_or_else(|| Refusal::new(parameter, "not an absolute path"))?;
    let is_bad = |part: &str| {
        part.is_empty() || part == "." || part == ".." || part.len() > LONGEST_COMPONENT
    };
    let rule = "not a clean path: an empty part, . or ..";
    Refusal::when(rest.split('/').any(is_bad), parameter, rule)
}

/// One of the two directories that `bangerd` owns.
pub trait Root: Clone + fmt::Debug {
    /// What it is called in messages.
    const NAME: &'static str;

    /// Its path.
    fn path(policy: &Policy) -> &Path;
}

/// The state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State;

/// The runtime directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime;

impl Root for State {
    const NAME: &'static str = "state";

    fn path(policy: &Policy) -> &Path {
        &policy.state
    }
}

impl Root for Runtime {
    const NAME: &'static str = "runtime";

    fn path(policy: &Policy) -> &Path {
        &policy.runtime
    }
}

/// A socket of the owner's.
pub type Socket = ManagedPath<Runtime>;

/// A path below a root, never the root itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedPath<R> {
    /// Relative to the root, one component or more.
    relative: PathBuf,
    root: PhantomData<R>,
}

impl<R: Root> ManagedPath<R> {
    /// Checks a path.
    ///
    /// # Errors
    /// A path that is relative, not clean, too long, not below the root, or has a control character.
    pub fn parse(parameter: Name, text: &str, policy: &Policy) -> Result<Self> {
        check_clean(parameter, text)?;
        let below = Path::new(text).strip_prefix(R::path(policy)).ok();
        let relative = below.filter(|below| !below.as_os_str().is_empty()).ok_or_else(|| {
            Refusal::new(parameter, format!("not below the {} directory", R::NAME))
        })?;
        Ok(Self { relative: relative.to_owned(), root: PhantomData })
    }

    /// The path below the root.
    #[must_use]
    pub fn relative(&self) -> &Path {
        &self.relative
    }
}

/// A path inside an image that debugfs takes for nothing but a path: absolute, clean, at most 1024
/// bytes, no control character, no `"` and no backslash. It is put between double quotes, within
/// which libss (lib/ss/parse.c of e2fsprogs) knows one special character, the double quote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPath(String);

impl GuestPath {
    /// Checks a path.
    ///
    /// # Errors
    /// A path that breaks the rule above.
    pub fn parse(parameter: Name, text: &str) -> Result<Self> {
        check_clean(parameter, text)?;
        let rule = "a path in an image has at most 1024 bytes";
        Refusal::when(text.len() > LONGEST_GUEST_PATH, parameter, rule)?;
        if text.contains(['"', '\'', '\\', '`', '\u{2028}', '\u{2029}']) {
            return Err(Refusal::new(parameter, "a quote or backslash in a path in an image"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A jail's root directory: `JAILS/firecracker/ID/root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailRoot(JailId);

impl JailRoot {
    /// Checks a path.
    ///
    /// # Errors
    /// Any path that is not of that one form, with the code `invalid_path`.
    pub fn parse(parameter: Name, text: &str, policy: &Policy) -> Result<Self> {
        let parse = || {
            check_clean(parameter, text)?;
            let below = Path::new(text).strip_prefix(&policy.jails).ok().and_then(Path::to_str);
            let id = below
                .and_then(|below| below.strip_prefix("firecracker/"))
                .and_then(|below| below.strip_suffix("/root"));
            let id = id.ok_or_else(|| Refusal::new(parameter, "not JAILS/firecracker/ID/root"))?;
            JailId::parse(parameter, id).map(Self)
        };
        parse().map_err(|refusal: Refusal| refusal.with_code(ErrorCode::InvalidPath))
    }

    /// The jail's name.
    #[must_use]
    pub fn id(&self) -> &JailId {
        &self.0
    }
}

/// What of the VMM is to be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmmKind {
    /// The VMM itself.
    Firecracker,
    /// What locks it in.
    Jailer,
}

impl VmmKind {
    /// The file's name.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::Jailer => "jailer",
        }
    }
}

/// Where firecracker or jailer is said to lie: the right file name in one of the fixed directories,
/// or a file that install.toml names. Who owns it is checked when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmPath(PathBuf);

impl VmmPath {
    /// Checks a path.
    ///
    /// # Errors
    /// A path that is not clean, of another file name, or in another directory.
    pub fn parse(parameter: Name, text: &str, kind: VmmKind, policy: &Policy) -> Result<Self> {
        check_clean(parameter, text)?;
        let path = PathBuf::from(text);
        let name = kind.file_name();
        let is_broken = path.file_name().and_then(|name| name.to_str()) != Some(name);
        Refusal::when(is_broken, parameter, format!("the file's name is not {name}"))?;
        let is_in_directory =
            policy.vmm_directories.iter().any(|directory| path.parent() == Some(directory));
        let rule = "not in a directory that may be executed from";
        Refusal::when(!is_in_directory && !policy.vmm_files.contains(&path), parameter, rule)?;
        Ok(Self(path))
    }

    /// The places to look at, in order: what install.toml names, then the fixed directories.
    #[must_use]
    pub fn candidates(kind: VmmKind, policy: &Policy) -> Vec<Self> {
        let in_directories =
            policy.vmm_directories.iter().map(|directory| directory.join(kind.file_name()));
        let named = policy.vmm_files.iter().filter(|path| path.ends_with(kind.file_name()));
        named.cloned().chain(in_directories).map(Self).collect()
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}
