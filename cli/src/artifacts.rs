//! Images and kernels on their way to the daemon.
//!
//! The daemon has neither root nor the user's files, so the command line fetches (through the
//! host's own Debian tools, as the user) and streams, and the daemon builds. When two commands
//! need the same one at once, the second watches the first, and takes over if that is interrupted.

mod image_source;
mod kernel_files;
mod layout;
mod registry_pull;
mod source;
mod transfer;

use std::path::Path;

use banger_daemon_api::artifact::{FILE_SOURCE, Image, ImportImage, ImportKernel, Kernel};
use banger_daemon_api::config::{KERNEL_DEFAULT, Setting};
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::routes;
use banger_types::{ImageConfig, ImageName, KernelName};

pub use image_source::{ImageSource, is_reference};
pub use layout::ImageFiles;
pub use registry_pull::{RegistryPull, pull_reference};
pub use source::NamedKernel;
use source::Source;
use transfer::Transfer;

use crate::client::{Client, ClientError};
use crate::debian::{ImageRequest, KernelRequest};
use crate::error::CliError;
use crate::host;
use crate::interrupt::Interrupts;
use crate::ui::Ui;

/// What to pull, and from where.
#[derive(Clone, Debug)]
pub struct ImagePull {
    /// The image's name, `debian-SUITE` unless a suite is given.
    pub name: ImageName,
    /// What says the suite, unless that is given; the same as the name in most cases.
    pub built_from: ImageName,
    /// Instead of the host's own mirror.
    pub mirror: Option<String>,
    /// Instead of the one in the name.
    pub suite: Option<String>,
    /// Beside the default ones.
    pub packages: Vec<String>,
    /// The kernel its machines boot unless told otherwise.
    pub default_kernel: Option<KernelName>,
    /// Replace an image of this name.
    pub replace: bool,
}

impl ImagePull {
    /// Pulls `name` as its name says.
    pub fn new(name: ImageName) -> Self {
        Self {
            built_from: name.clone(),
            name,
            mirror: None,
            suite: None,
            packages: Vec::new(),
            default_kernel: None,
            replace: false,
        }
    }

    fn request(&self) -> Result<ImageRequest, CliError> {
        let mirror = self.mirror.as_deref();
        let request = match &self.suite {
            Some(suite) => ImageRequest::new(suite, mirror)?,
            None => ImageRequest::for_name(self.built_from.as_str(), mirror).map_err(|error| {
                let error = CliError::from(error);
                if can_pull_image(&self.name) {
                    return error;
                }
                error
                    .hint(format!("banger image pull {} --suite SUITE", self.name))
                    .hint(format!("banger image import FILE.tar --name {}", self.name))
            })?,
        };
        Ok(request.with_packages(&self.packages)?)
    }
}

/// Returns whether an image of this name can be pulled without being told from where.
pub fn can_pull_image(name: &ImageName) -> bool {
    ImageRequest::for_name(name.as_str(), None).is_ok()
}

/// Returns whether a kernel of this name can be pulled.
pub fn can_pull_kernel(name: &KernelName) -> bool {
    KernelRequest::for_name(name.as_str()).is_ok()
}

/// Returns the kernel of a machine when neither the user nor the image says one, pulled first where
/// it is not here.
///
/// That is the setting's, or our own choice.
pub async fn ensure_default_kernel(
    ui: &Ui,
    client: &Client,
    interrupts: &mut Interrupts,
) -> Result<KernelName, CliError> {
    let settings: Vec<Setting> =
        client.get(routes::CONFIG).await.map_err(|error| client.explain(error))?;
    let set = settings.into_iter().find(|setting| setting.key == KERNEL_DEFAULT);
    let set = set.and_then(|setting| (setting.value != "auto").then_some(setting.value));
    let name: KernelName = set
        .as_deref()
        .unwrap_or(host::DEFAULT_KERNEL)
        .parse()
        .map_err(|error| CliError::new("the default kernel's name is wrong").because(&error))?;
    let ensured = ensure_kernel(ui, client, interrupts, &name).await;
    match ensured {
        Err(error) if set.is_some() => Err(error.hint(format!(
            "the setting {KERNEL_DEFAULT} names it: banger config set {KERNEL_DEFAULT} auto"
        ))),
        other => other.map(|()| name),
    }
}

/// Returns the image where it is here; one that is not here and cannot be pulled is an error.
pub async fn find_image(client: &Client, source: &ImageSource) -> Result<Option<Image>, CliError> {
    let name = match source {
        ImageSource::Name(name) => name,
        ImageSource::Registry(reference, name) => {
            return registry_pull::find_reference(client, reference, name).await;
        }
    };
    match client.get(&routes::image(name)).await {
        Ok(image) => Ok(Some(image)),
        Err(ClientError::Api(error)) if error.code == ErrorCode::NotFound => {
            if can_pull_image(name) {
                return Ok(None);
            }
            Err(CliError::new(format!("there is no image {name}"))
                .hint("banger image list")
                .hint(format!("banger image pull {name} fetches docker.io/library/{name}"))
                .hint(format!("banger image import FILE.tar --name {name}")))
        }
        Err(error) => Err(client.explain(error)),
    }
}

/// Returns the kernel where it is here; one that is not here and cannot be pulled is an error.
pub async fn find_kernel(client: &Client, name: &KernelName) -> Result<Option<Kernel>, CliError> {
    match client.get(&routes::kernel(name)).await {
        Ok(kernel) => Ok(Some(kernel)),
        Err(ClientError::Api(error)) if error.code == ErrorCode::NotFound => {
            if can_pull_kernel(name) {
                return Ok(None);
            }
            Err(CliError::new(format!("there is no kernel {name}"))
                .hint("banger kernel list")
                .hint("banger kernel list --available"))
        }
        Err(error) => Err(client.explain(error)),
    }
}

/// Returns the image, pulled first where it is not here.
pub async fn ensure_image(
    ui: &Ui,
    client: &Client,
    interrupts: &mut Interrupts,
    source: &ImageSource,
) -> Result<Image, CliError> {
    if let Some(image) = find_image(client, source).await? {
        return Ok(image);
    }
    let name = source.name();
    let pulled = match source {
        ImageSource::Name(name) => {
            ui.status(format_args!(
                "image {name} is not here yet; building it from this host's Debian mirror"
            ));
            pull_image(ui, client, interrupts, &ImagePull::new(name.clone())).await
        }
        ImageSource::Registry(reference, name) => {
            ui.status(format_args!("image {name} is not here yet; pulling {reference}"));
            let (reference, name) = (reference.clone(), name.clone());
            let pull = RegistryPull { reference, name, default_kernel: None, replace: false };
            pull_reference(ui, client, interrupts, &pull).await
        }
    };
    match pulled {
        // Another command was quicker.
        Err(error) if error.is_code(ErrorCode::AlreadyExists) => {}
        other => other?,
    }
    client.get(&routes::image(name)).await.map_err(|error| client.explain(error))
}

/// Pulls the kernel where it is not here.
pub async fn ensure_kernel(
    ui: &Ui,
    client: &Client,
    interrupts: &mut Interrupts,
    name: &KernelName,
) -> Result<(), CliError> {
    if find_kernel(client, name).await?.is_some() {
        return Ok(());
    }
    ui.status(format_args!("kernel {name} is not here yet; fetching it through apt"));
    match pull_kernel(ui, client, interrupts, name, false).await {
        Err(error) if error.is_code(ErrorCode::AlreadyExists) => Ok(()),
        other => other,
    }
}

/// Builds an image from the host's Debian mirror.
pub async fn pull_image(
    ui: &Ui,
    client: &Client,
    interrupts: &mut Interrupts,
    pull: &ImagePull,
) -> Result<(), CliError> {
    let request = pull.request()?;
    let begin = ImportImage {
        name: pull.name.clone(),
        source: request.source(),
        default_kernel: pull.default_kernel.clone(),
        replace: pull.replace,
        reference: None,
        platform: None,
        config: None,
    };
    let transfer =
        Transfer { ui, client, subject: format!("image {}", pull.name), path: routes::IMAGES };
    transfer
        .run(interrupts, &begin, move |stages| Source::debian_image(&request, stages))
        .await
        .map_err(|error| explain_taken(error, "image", pull.name.as_str()))
}

/// Builds an image from files of the user's.
pub async fn import_image(
    ui: &Ui,
    client: &Client,
    interrupts: &mut Interrupts,
    begin: &ImportImage,
    files: ImageFiles,
) -> Result<(), CliError> {
    let subject = format!("image {}", begin.name);
    let transfer = Transfer { ui, client, subject, path: routes::IMAGES };
    transfer
        .run_once(interrupts, begin, move |_| Ok(files.into_source()))
        .await
        .map_err(|error| explain_taken(error, "image", begin.name.as_str()))
}

/// Reads how an image is to be run: an OCI image configuration, or its `config` alone.
pub fn read_image_config(path: &Path) -> Result<ImageConfig, CliError> {
    /// Larger than any that would be taken.
    const MOST: u64 = 1 << 20;
    let failed = |error: &(dyn std::error::Error + 'static)| {
        CliError::usage(format!("cannot read the configuration {}", path.display()))
            .because(error)
            .hint("it is JSON such as {\"Entrypoint\": [\"/app\"], \"Env\": [\"A=b\"], \"User\": \"1000\"}")
    };
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| {
            std::io::Read::read_to_end(&mut std::io::Read::take(file, MOST), &mut text)
        })
        .map_err(|error| failed(&error))?;
    let mut json: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| failed(&error))?;
    let config = match json.get_mut("config") {
        Some(config) => config.take(),
        None => json,
    };
    // What `docker inspect` shows of images is a list, which would be taken for an empty object.
    if !config.is_object() {
        return Err(failed(&std::io::Error::other("it is no object")));
    }
    serde_json::from_value(config).map_err(|error| failed(&error))
}

/// Takes a kernel from a Debian package.
pub async fn pull_kernel(
    ui: &Ui,
    client: &Client,
    interrupts: &mut Interrupts,
    name: &KernelName,
    replace: bool,
) -> Result<(), CliError> {
    let package = KernelRequest::for_name(name.as_str())?.resolve()?;
    let begin = ImportKernel { name: name.clone(), source: package.source(), replace };
    let transfer =
        Transfer { ui, client, subject: format!("kernel {name}"), path: routes::KERNELS };
    transfer
        .run(interrupts, &begin, move |stages| Source::debian_kernel(&package, stages))
        .await
        .map_err(|error| explain_taken(error, "kernel", name.as_str()))
}

/// Takes a kernel that the user has.
pub async fn import_kernel(
    ui: &Ui,
    client: &Client,
    interrupts: &mut Interrupts,
    name: &KernelName,
    replace: bool,
    named: NamedKernel,
) -> Result<(), CliError> {
    let source = format!("{FILE_SOURCE}{}", named.name());
    let begin = ImportKernel { name: name.clone(), source, replace };
    let transfer =
        Transfer { ui, client, subject: format!("kernel {name}"), path: routes::KERNELS };
    transfer
        .run_once(interrupts, &begin, move |_| Source::kernel(named))
        .await
        .map_err(|error| explain_taken(error, "kernel", name.as_str()))
}

fn explain_taken(error: CliError, noun: &str, name: &str) -> CliError {
    if error.is_code(ErrorCode::AlreadyExists) && error.hints.is_empty() {
        return error
            .hint(format!("banger {noun} show {name}"))
            .hint("--force replaces it; machines made from the old one keep it");
    }
    error
}

/// Returns the name of the image that a tar's file name suggests.
pub fn image_name_of(path: &Path) -> Result<ImageName, CliError> {
    const ENDINGS: [&str; 6] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.zstd"];
    let file = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let stem = ENDINGS.iter().find_map(|ending| file.strip_suffix(ending)).unwrap_or(&file);
    stem.parse().map_err(|error| {
        CliError::usage(format!("cannot make an image's name from {}", path.display()))
            .because(&error)
            .hint("--name NAME says it")
    })
}

/// Adds what to do to the error of an image or kernel that is not here: look at which there are, or
/// pull it, where that can be.
pub fn explain_missing(error: CliError, list: &str, pull: Option<String>) -> CliError {
    if !error.is_code(ErrorCode::NotFound) || !error.hints.is_empty() {
        return error;
    }
    let error = error.hint(list);
    match pull {
        Some(pull) => error.hint(pull),
        None => error,
    }
}

/// Deletes what `path` says of each name and prints those that are gone; one that stays keeps no other.
pub async fn delete_all<Name: std::fmt::Display>(
    ui: &Ui,
    client: &Client,
    names: &[Name],
    path: impl Fn(&Name) -> String,
    explain: impl Fn(CliError, &Name) -> CliError,
) -> Result<(), CliError> {
    let mut failures = Vec::new();
    for name in names {
        match client.delete::<serde_json::Value>(&path(name)).await {
            Ok(_) => ui.line(name)?,
            Err(error) => failures.push(explain(client.explain(error), name)),
        }
    }
    report_all(ui, failures)
}

/// Shows all failures but the last, and returns that one.
pub fn report_all(ui: &Ui, mut failures: Vec<CliError>) -> Result<(), CliError> {
    let last = failures.pop();
    for failure in &failures {
        ui.error(failure);
    }
    last.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_names_can_be_pulled() {
        let image = |name: &str| can_pull_image(&name.parse().unwrap());
        assert!(image("debian-bookworm"));
        assert!(!image("alpine"));
        let kernel = |name: &str| can_pull_kernel(&name.parse().unwrap());
        assert!(kernel(host::DEFAULT_KERNEL));
        assert!(!kernel("mine"));
    }

    #[test]
    fn names_come_from_file_names() {
        for (path, name) in [
            ("/x/rootfs.tar.zst", "rootfs"),
            ("Alpine-3.20.tar.gz", "alpine-3.20"),
            ("a.tgz", "a"),
            ("plain", "plain"),
        ] {
            assert_eq!(image_name_of(Path::new(path)).unwrap().as_str(), name);
        }
        for bad in ["-", "/", ".tar", "a b.tar"] {
            assert!(image_name_of(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
