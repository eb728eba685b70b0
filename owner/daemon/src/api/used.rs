//! Images and kernels together with the VMs that use them, which the engine knows.

use banger_daemon_api::artifact::{Image, Kernel};
use banger_daemon_api::error::ErrorCode;
use banger_types::{ImageName, KernelName, VmName};

use super::Api;
use crate::server::{Answer, Failure};

/// Returns all images.
pub(super) async fn images(api: &Api) -> Answer<Vec<Image>> {
    let mut images = api.services.artifacts().images().await?;
    for image in &mut images {
        image.used_by = of_image(api, &image.name);
    }
    Ok(images)
}

/// Returns an image.
pub(super) async fn image(api: &Api, name: &ImageName) -> Answer<Image> {
    let mut image = api.services.artifacts().image(name).await?;
    image.used_by = of_image(api, name);
    Ok(image)
}

/// Returns all kernels.
pub(super) async fn kernels(api: &Api) -> Answer<Vec<Kernel>> {
    let mut kernels = api.services.artifacts().kernels().await?;
    for kernel in &mut kernels {
        kernel.used_by = of_kernel(api, &kernel.name);
    }
    Ok(kernels)
}

/// Returns a kernel.
pub(super) async fn kernel(api: &Api, name: &KernelName) -> Answer<Kernel> {
    let mut kernel = api.services.artifacts().kernel(name).await?;
    kernel.used_by = of_kernel(api, name);
    Ok(kernel)
}

/// Refuses where a VM uses an image.
pub(super) fn refuse_used_image(api: &Api, name: &ImageName) -> Answer<()> {
    refuse(format_args!("image {name}"), &of_image(api, name))
}

/// Refuses where a VM uses a kernel.
pub(super) fn refuse_used_kernel(api: &Api, name: &KernelName) -> Answer<()> {
    refuse(format_args!("kernel {name}"), &of_kernel(api, name))
}

fn refuse(what: std::fmt::Arguments<'_>, users: &[String]) -> Answer<()> {
    if users.is_empty() {
        return Ok(());
    }
    let message = format!("{what} is used by VM {}", users.join(", "));
    Err(Failure::new(ErrorCode::InUse, message)
        .hint(format!("`banger vm delete {}` first", users.join(" "))))
}

fn of_image(api: &Api, name: &ImageName) -> Vec<String> {
    texts(api.services.engine().users_of_image(name))
}

fn of_kernel(api: &Api, name: &KernelName) -> Vec<String> {
    texts(api.services.engine().users_of_kernel(name))
}

fn texts(names: impl IntoIterator<Item = VmName>) -> Vec<String> {
    names.into_iter().map(|name| name.to_string()).collect()
}
