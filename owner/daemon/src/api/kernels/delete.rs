//! `DELETE /v1/kernels/{name}`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::config::KERNEL_DEFAULT;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_types::KernelName;

use crate::api::{Api, Nothing, Shared, used};
use crate::server::{Answer, Failure, PathPart};

/// Deletes a kernel that no VM uses.
#[utoipa::path(
    delete,
    path = "/v1/kernels/{name}",
    params(("name" = String, Path)),
    responses(
        (status = 200, body = Nothing),
        (status = 404, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn delete(
    State(api): Shared,
    PathPart(name): PathPart<KernelName>,
) -> Answer<Json<Nothing>> {
    used::refuse_used_kernel(&api, &name)?;
    refuse_default(&api, &name).await?;
    api.services.artifacts().delete_kernel(&name).await?;
    tracing::info!(kernel = name.as_str(), "deleted");
    Ok(Json(Nothing {}))
}

/// A kernel that an image or the configuration names stays, so that the next machine finds it.
async fn refuse_default(api: &Api, name: &KernelName) -> Answer<()> {
    if api.services.config().now().await.kernel.default.as_ref() == Some(name) {
        let message = format!("kernel {name} is what the setting {KERNEL_DEFAULT} names");
        return Err(Failure::new(ErrorCode::InUse, message)
            .hint(format!("`banger config set {KERNEL_DEFAULT} auto` first")));
    }
    let images = api.services.artifacts().images().await?;
    let Some(image) = images.iter().find(|image| image.default_kernel.as_ref() == Some(name))
    else {
        return Ok(());
    };
    let image = &image.name;
    Err(Failure::new(ErrorCode::InUse, format!("kernel {name} is what image {image} boots")).hint(
        format!("`banger image set {image} --kernel OTHER` or `banger image delete {image}` first"),
    ))
}
