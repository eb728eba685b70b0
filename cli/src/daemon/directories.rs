//! Makes the daemon's directories: 0700, owned by the daemon's uid, real directories.
//!
//! Where root makes them for another uid, a directory is handed over only when root has just made
//! it, never when it was found; a found one must already be as it should be.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Uid};

use crate::environment::{self, DirectMode};
use crate::error::CliError;

const PRIVATE: u32 = 0o700;

/// Makes and checks all three.
pub fn prepare(mode: &DirectMode) -> Result<(), CliError> {
    let directories = &mode.directories;
    for (path, variable) in [
        (&directories.state, environment::STATE_DIR),
        (&directories.cache, environment::CACHE_DIR),
        (&directories.runtime, environment::RUNTIME_DIR),
    ] {
        prepare_one(mode, path)
            .map_err(|error| error.hint(format!("{variable} chooses another place")))?;
    }
    Ok(())
}

fn prepare_one(mode: &DirectMode, path: &Path) -> Result<(), CliError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        let message = format!("{} cannot be bangerd's: it has no parent or name", path.display());
        return Err(CliError::new(message));
    };
    let failed = |what: &str, error: &io::Error| {
        CliError::new(format!("cannot {what} the directory {}", path.display())).because(error)
    };
    if mode.dropped {
        check_parents(mode, parent)?;
    } else {
        DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE)
            .create(parent)
            .map_err(|error| failed("create the parent of", &error))?;
    }
    // Made and opened in the same parent, whatever its name leads to meanwhile: what root hands over
    // is what root has just made.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty())
        .map_err(|error| failed("open the parent of", &error.into()))?;
    if mode.dropped {
        make_for_another(mode, parent.as_fd(), name)
    } else {
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(PRIVATE)).or_else(unless_it_exists)
    }
    .map_err(|error| failed("create", &error.into()))?;
    let directory = rustix::fs::openat(&parent, name, flags | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|error| failed("use", &error.into()))?;
    let directory = File::from(directory);
    let metadata = directory.metadata().map_err(|error| failed("look at", &error))?;
    if metadata.uid() != mode.uid {
        return Err(CliError::new(format!(
            "the directory {} belongs to uid {}, not to uid {} that bangerd runs as",
            path.display(),
            metadata.uid(),
            mode.uid
        ))
        .hint(format!(
            "sudo chown -R {} {}, if it is yours to give",
            mode.uid,
            path.display()
        )));
    }
    if metadata.mode() & 0o7777 != PRIVATE {
        directory
            .set_permissions(fs::Permissions::from_mode(PRIVATE))
            .map_err(|error| failed("make private", &error))?;
    }
    Ok(())
}

/// Makes a directory of the daemon's uid, or leaves what is there. It gets its name only when it
/// has its owner, so that a command that comes at the same moment never finds it half made.
fn make_for_another(
    mode: &DirectMode,
    parent: BorrowedFd<'_>,
    name: &OsStr,
) -> rustix::io::Result<()> {
    if rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return Ok(());
    }
    let mut aside = OsString::from(".");
    aside.push(name);
    aside.push(format!(".{}", rustix::process::getpid()));
    rustix::fs::mkdirat(parent, &aside, Mode::from_raw_mode(PRIVATE)).or_else(unless_it_exists)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, &aside, flags, Mode::empty())
        .and_then(|directory| {
            let metadata = rustix::fs::fstat(&directory)?;
            // One of that name that root has not made is nothing to hand over.
            if metadata.st_uid != 0 {
                return Err(rustix::io::Errno::EXIST);
            }
            let (uid, gid) = (Uid::from_raw(mode.uid), Gid::from_raw(mode.gid));
            rustix::fs::fchown(&directory, Some(uid), Some(gid))
        })
        .and_then(|()| {
            rustix::fs::renameat_with(parent, &aside, parent, name, RenameFlags::NOREPLACE)
        })
        .or_else(|error| {
            let _ = rustix::fs::unlinkat(parent, &aside, AtFlags::REMOVEDIR);
            unless_it_exists(error)
        })
}

fn unless_it_exists(error: rustix::io::Errno) -> rustix::io::Result<()> {
    if error == rustix::io::Errno::EXIST { Ok(()) } else { Err(error) }
}

/// Checks that bangerd's uid can reach a directory, and that nobody but root and bangerd itself can
/// replace it.
fn check_parents(mode: &DirectMode, directory: &Path) -> Result<(), CliError> {
    for ancestor in directory.ancestors() {
        let metadata = fs::metadata(ancestor).map_err(|error| {
            CliError::new(format!("cannot look at {}", ancestor.display()))
                .because(&error)
                .hint(format!("mkdir -p -m 0755 {}", directory.display()))
        })?;
        let bits = metadata.mode();
        let reach = if metadata.uid() == mode.uid {
            bits & 0o100
        } else if metadata.gid() == mode.gid {
            bits & 0o010
        } else {
            bits & 0o001
        };
        if reach == 0 {
            return Err(CliError::new(format!(
                "bangerd runs as uid {} and cannot enter {}",
                mode.uid,
                ancestor.display()
            ))
            .hint(format!("chmod o+x {}", ancestor.display())));
        }
        if metadata.uid() != 0 && metadata.uid() != mode.uid {
            return Err(CliError::new(format!(
                "{} belongs to uid {}, who could replace what is below it",
                ancestor.display(),
                metadata.uid()
            ))
            .hint("choose a directory below those of root, such as /var/lib"));
        }
        let sticky = bits & 0o1000 != 0;
        let group_is_trusted = metadata.gid() == 0 || metadata.gid() == mode.gid;
        let writer = if bits & 0o002 != 0 {
            Some(("everybody".to_owned(), "o-w"))
        } else if bits & 0o020 != 0 && !group_is_trusted {
            Some((format!("group {}", metadata.gid()), "g-w"))
        } else {
            None
        };
        if let Some((who, change)) = writer.filter(|_| !sticky) {
            return Err(CliError::new(format!(
                "{who} may write to {}, and so could replace what is below it",
                ancestor.display()
            ))
            .hint(format!("chmod {change} {}", ancestor.display())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Directories;
    use std::os::unix::fs::symlink;

    fn mode_in(base: &Path) -> DirectMode {
        DirectMode {
            directories: Directories {
                state: base.join("a/state"),
                cache: base.join("a/cache"),
                runtime: base.join("a/run"),
            },
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            dropped: false,
        }
    }

    #[test]
    fn directories_are_private_and_existing_ones_are_made_so() {
        let base = tempfile::tempdir().unwrap();
        let mode = mode_in(base.path());
        prepare(&mode).unwrap();
        fs::set_permissions(&mode.directories.state, fs::Permissions::from_mode(0o755)).unwrap();
        prepare(&mode).unwrap();
        for path in [&mode.directories.state, &mode.directories.cache, &mode.directories.runtime] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o700);
        }
    }

    #[test]
    fn a_symlink_or_a_file_in_place_of_a_directory_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let mode = mode_in(base.path());
        fs::create_dir(base.path().join("a")).unwrap();
        symlink("/tmp", &mode.directories.runtime).unwrap();
        assert!(prepare(&mode).unwrap_err().message.contains("a/run"));
        fs::remove_file(&mode.directories.runtime).unwrap();
        fs::write(&mode.directories.runtime, "").unwrap();
        assert!(prepare(&mode).is_err());
    }

    #[test]
    fn a_directory_of_another_user_is_refused_not_taken_over() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP: root: making a directory of another user needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(base.path().join("a")).unwrap();
        let mode = DirectMode { uid: 60907, gid: 60907, dropped: true, ..mode_in(base.path()) };
        prepare(&mode).unwrap();
        assert_eq!(fs::metadata(&mode.directories.state).unwrap().uid(), 60907);
        std::os::unix::fs::chown(&mode.directories.state, Some(0), Some(0)).unwrap();
        let error = prepare(&mode).unwrap_err();
        assert!(error.message.contains("belongs to uid 0"), "{error}");
        assert_eq!(fs::metadata(&mode.directories.state).unwrap().uid(), 0);
    }

    #[test]
    fn a_parent_of_a_third_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP: root: making a directory of another user needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let parent = base.path().join("a");
        fs::create_dir(&parent).unwrap();
        let mode = DirectMode { uid: 60907, gid: 60907, dropped: true, ..mode_in(base.path()) };
        std::os::unix::fs::chown(&parent, Some(4242), None).unwrap();
        let error = prepare(&mode).unwrap_err();
        assert!(error.message.contains("belongs to uid 4242"), "{error}");
        assert!(!mode.directories.state.exists());
        std::os::unix::fs::chown(&parent, Some(60907), None).unwrap();
        prepare(&mode).unwrap();
    }

    #[test]
    fn a_parent_that_bangerd_cannot_enter_is_named() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP: root: dropping to another user needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(base.path().join("a")).unwrap();
        let mode = DirectMode { uid: 60907, gid: 60907, dropped: true, ..mode_in(base.path()) };
        let error = prepare(&mode).unwrap_err();
        assert!(error.message.contains("cannot enter"), "{error}");
        assert!(error.hints.iter().any(|hint| hint.starts_with("chmod o+x")), "{error:?}");
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(prepare(&mode).unwrap_err().message.contains("everybody may write"));
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o775)).unwrap();
        std::os::unix::fs::chown(base.path(), None, Some(4242)).unwrap();
        let error = prepare(&mode).unwrap_err();
        assert!(error.message.contains("group 4242 may write"), "{error}");
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o1775)).unwrap();
        prepare(&mode).unwrap();
    }
}
