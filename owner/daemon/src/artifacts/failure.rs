//! Errors of `banger-image` as clients and the engine see them.

use std::error::Error;
use std::io;
use std::path::Path;

use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_engine::seams::ArtifactError;
use banger_image::{
    BuildError, Cancelled, ContainerError, ImageStoreError, KernelError, ShelfError, ToolError,
};
use banger_types::{ImageName, KernelName};

const MAKE_ROOM: &str = "free some space, then try again";

/// What the cause of a failure is, wherever in the chain it stands.
enum Kind {
    NoSpace,
    Cancelled,
    MissingTool { package: &'static str },
    Other,
}

fn kind(error: &(dyn Error + 'static)) -> Kind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<Cancelled>() {
            return Kind::Cancelled;
        }
        if let Some(ToolError::Missing { package, .. }) = error.downcast_ref() {
            return Kind::MissingTool { package };
        }
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return Kind::NoSpace;
        }
        // `transparent` errors hide themselves behind their source's source.
        cause = match error.downcast_ref::<BuildError>() {
            Some(BuildError::Cancelled(_)) => return Kind::Cancelled,
            _ => error.source(),
        };
    }
    Kind::Other
}

/// A failure of the image store as such.
pub fn image_store(error: &ImageStoreError) -> ApiError {
    general(ErrorCode::OperationFailed, error)
}

/// A failure of the kernel store as such.
pub fn kernel_store(error: &KernelError) -> ApiError {
    general(ErrorCode::OperationFailed, error)
}

/// A failure to find, build or remove image `name`.
pub fn image(name: &ImageName, error: &ImageStoreError) -> ApiError {
    match error {
        error if matches!(kind(error), Kind::NoSpace) => no_room(&format!("image {name}"), error),
        ImageStoreError::Shelf(ShelfError::Missing(_)) => no_image(name),
        ImageStoreError::Shelf(ShelfError::Exists(_)) => image_exists(name),
        ImageStoreError::Shelf(ShelfError::Manifest { .. }) => general(ErrorCode::Corrupt, error)
            .hint(format!("`banger image delete {name}`, then pull or import it again")),
        ImageStoreError::Shelf(_) => general(ErrorCode::OperationFailed, error),
        ImageStoreError::Build { source, .. } => general(build_code(source), error),
        ImageStoreError::Container { source, .. } => container(source, error),
        ImageStoreError::Register { .. } => general(ErrorCode::BadParams, error),
        ImageStoreError::Export { .. } => general(ErrorCode::OperationFailed, error),
    }
}

/// A failure to find, import or remove kernel `name`.
pub fn kernel(name: &KernelName, error: &KernelError) -> ApiError {
    match error {
        error if matches!(kind(error), Kind::NoSpace) => no_room(&format!("kernel {name}"), error),
        KernelError::Shelf(ShelfError::Missing(_)) => no_kernel(name),
        KernelError::Shelf(ShelfError::Exists(_)) => kernel_exists(name),
        KernelError::Shelf(ShelfError::Manifest { .. }) => general(ErrorCode::Corrupt, error)
            .hint(format!("`banger kernel delete {name}`, then pull it again")),
        KernelError::Shelf(_) | KernelError::Tree(_) | KernelError::Check(_) => {
            general(ErrorCode::OperationFailed, error)
        }
        KernelError::Cancelled(_) => general(ErrorCode::Cancelled, error),
        // What else there is says what is wrong with the files, and not whose they are.
        _ if matches!(kind(error), Kind::Other) => {
            let mut api =
                ApiError::new(ErrorCode::BadArchive, format!("kernel {name} cannot be imported"));
            api.causes.push(error.to_string());
            api.caused_by(error)
        }
        _ => general(ErrorCode::BadArchive, error),
    }
}

/// An archive of container images was refused.
fn container(source: &ContainerError, error: &ImageStoreError) -> ApiError {
    let (code, hint) = match source {
        ContainerError::Several(_) => (ErrorCode::BadParams, Some("--ref NAME says which one")),
        ContainerError::NoReference { .. } => (ErrorCode::BadParams, None),
        ContainerError::NoPlatform { .. } => {
            (ErrorCode::BadParams, Some("--platform OS/ARCHITECTURE says another platform"))
        }
        ContainerError::Keep(_) => (ErrorCode::OperationFailed, None),
        ContainerError::Cancelled(_) => (ErrorCode::Cancelled, None),
        _ => (ErrorCode::BadArchive, None),
    };
    let mut api = general(code, error);
    if let Some(hint) = hint {
        api = api.hint(hint);
    }
    api
}

fn build_code(error: &BuildError) -> ErrorCode {
    match error {
        BuildError::Layer { source, .. } => build_code(source),
        BuildError::Archive(_)
        | BuildError::Entry { .. }
        | BuildError::LayerDigest { .. }
        | BuildError::LayerSize { .. }
        | BuildError::Whiteout { .. }
        | BuildError::Ratio { .. }
        | BuildError::Empty
        | BuildError::Limit { .. } => ErrorCode::BadArchive,
        BuildError::Cancelled(_) => ErrorCode::Cancelled,
        _ => ErrorCode::OperationFailed,
    }
}

/// There is no such image.
pub fn no_image(name: &ImageName) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no image {name}"))
        .hint(where_to_look("image", name.as_str()))
}

/// There is no such kernel.
pub fn no_kernel(name: &KernelName) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no kernel {name}"))
        .hint(where_to_look("kernel", name.as_str()))
}

/// Only what has Debian's name can be pulled.
fn where_to_look(what: &str, name: &str) -> String {
    let mut hint = format!("`banger {what} list` shows the {what}s");
    if name.starts_with("debian-") {
        hint += &format!(", `banger {what} pull {name}` fetches this one");
    }
    hint
}

/// The name is taken.
pub fn image_exists(name: &ImageName) -> ApiError {
    ApiError::new(ErrorCode::AlreadyExists, format!("there is an image {name} already"))
        .hint("choose another name, or replace it with --force")
}

/// The name is taken.
pub fn kernel_exists(name: &KernelName) -> ApiError {
    ApiError::new(ErrorCode::AlreadyExists, format!("there is a kernel {name} already"))
        .hint("choose another name, or replace it with --force")
}

/// A thread of ours panicked.
pub fn defect() -> ApiError {
    ApiError::new(ErrorCode::Internal, "the request met a defect of banger")
        .hint("the daemon's log has the place; please report it")
}

/// Adds to a full disk's error how much room there is below `path`.
pub fn with_free_space(mut error: ApiError, path: &Path, taken: u64) -> ApiError {
    if error.code == ErrorCode::NoSpace
        && let Ok(stat) = rustix::fs::statvfs(path)
    {
        error.hint = Some(format!(
            "{} MiB are free below {}, and it takes more than the {} MiB that were read so far: \
             free some space, then try again",
            stat.f_bavail.saturating_mul(stat.f_frsize) >> 20,
            path.display(),
            taken >> 20
        ));
    }
    error
}

fn general(code: ErrorCode, error: &(dyn Error + 'static)) -> ApiError {
    let (code, hint) = match kind(error) {
        Kind::NoSpace => (ErrorCode::NoSpace, Some(MAKE_ROOM.to_owned())),
        Kind::Cancelled => (ErrorCode::Cancelled, None),
        Kind::MissingTool { package } => {
            (ErrorCode::Unavailable, Some(format!("apt-get install {package}")))
        }
        Kind::Other => (code, None),
    };
    let mut api = ApiError::new(code, error.to_string()).caused_by(error);
    api.hint = hint;
    api
}

/// The disk is full. Which file met that is chance, and it is gone by now: only the log has it.
fn no_room(subject: &str, error: &(dyn Error + 'static)) -> ApiError {
    let mut causes = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    tracing::warn!(subject, error = causes.join(": "), "the disk is full");
    ApiError::new(ErrorCode::NoSpace, format!("no space left on the disk for {subject}"))
        .hint(MAKE_ROOM)
}

/// The engine asked for image `name`.
pub fn image_artifact(name: &ImageName, error: ImageStoreError) -> ArtifactError {
    match error {
        ImageStoreError::Shelf(shelf) => shelf_artifact("image", name.as_str(), shelf),
        error => read_artifact(name.as_str(), error),
    }
}

/// The engine asked for kernel `name`.
pub fn kernel_artifact(name: &KernelName, error: KernelError) -> ArtifactError {
    match error {
        KernelError::Shelf(shelf) => shelf_artifact("kernel", name.as_str(), shelf),
        error => read_artifact(name.as_str(), error),
    }
}

fn shelf_artifact(kind: &'static str, name: &str, error: ShelfError) -> ArtifactError {
    match error {
        ShelfError::Missing(_) => ArtifactError::NotFound { kind, name: name.to_owned() },
        ShelfError::Manifest { .. } => {
            ArtifactError::Corrupt { kind, name: name.to_owned(), problem: error.to_string() }
        }
        error => read_artifact(name, error),
    }
}

fn read_artifact(name: &str, error: impl Error + Send + Sync + 'static) -> ArtifactError {
    ArtifactError::Failed { act: "reading", object: name.to_owned(), source: Box::new(error) }
}

/// Making a file for a VM failed.
pub fn making<E: Error + Send + Sync + 'static>(
    act: &'static str,
    name: &(impl std::fmt::Display + ?Sized),
    path: &Path,
    error: E,
) -> ArtifactError {
    match kind(&error) {
        Kind::NoSpace => ArtifactError::NoSpace { act, path: path.to_owned() },
        Kind::MissingTool { package } => ArtifactError::Unavailable {
            what: format!("a program of package {package}"),
            hint: format!("apt-get install {package}"),
        },
        Kind::Cancelled | Kind::Other => {
            ArtifactError::Failed { act, object: name.to_string(), source: Box::new(error) }
        }
    }
}
