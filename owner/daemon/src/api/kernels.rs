//! `/v1/kernels`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use banger_daemon_api::artifact::{ImportKernel, Kernel};
use banger_daemon_api::config::KERNEL_DEFAULT;
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::operation::OperationStarted;
use banger_types::KernelName;

use super::{Api, Nothing, Shared};
use crate::server::{Answer, Failure, JsonBody, OpId, PathPart};

/// Lists the kernels.
#[utoipa::path(get, path = "/v1/kernels", responses((status = 200, body = Vec<Kernel>)))]
pub async fn list(State(api): Shared) -> Answer<Json<Vec<Kernel>>> {
    let mut kernels = api.services.artifacts().kernels().await?;
    for kernel in &mut kernels {
        kernel.used_by = users(&api, &kernel.name);
    }
    Ok(Json(kernels))
}

/// Shows a kernel.
#[utoipa::path(
    get,
    path = "/v1/kernels/{name}",
    params(("name" = String, Path)),
    responses((status = 200, body = Kernel), (status = 404, body = ApiError))
)]
pub async fn get(State(api): Shared, PathPart(name): PathPart<KernelName>) -> Answer<Json<Kernel>> {
    let mut kernel = api.services.artifacts().kernel(&name).await?;
    kernel.used_by = users(&api, &name);
    Ok(Json(kernel))
}

/// Begins an import, or joins the one of this name that is under way.
#[utoipa::path(
    post,
    path = "/v1/kernels",
    request_body = ImportKernel,
    responses((status = 202, body = OperationStarted), (status = 409, body = ApiError))
)]
pub async fn import(
    State(api): Shared,
    OpId(op_id): OpId,
    JsonBody(request): JsonBody<ImportKernel>,
) -> Answer<(StatusCode, Json<OperationStarted>)> {
    let started = api.services.importer().kernel(request, op_id).await?;
    Ok((StatusCode::ACCEPTED, Json(started)))
}

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
    refuse_in_use(&api, &name)?;
    refuse_default(&api, &name).await?;
    api.services.artifacts().delete_kernel(&name).await?;
    tracing::info!(kernel = name.as_str(), "deleted");
    Ok(Json(Nothing {}))
}

fn refuse_in_use(api: &Api, name: &KernelName) -> Answer<()> {
    let users = users(api, name);
    if users.is_empty() {
        return Ok(());
    }
    let message = format!("kernel {name} is used by VM {}", users.join(", "));
    Err(Failure::new(ErrorCode::InUse, message)
        .hint(format!("`banger vm delete {}` first", users.join(" "))))
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

/// Returns the names of the VMs that use it.
pub(super) fn users(api: &Api, name: &KernelName) -> Vec<String> {
    api.services.engine().users_of_kernel(name).iter().map(ToString::to_string).collect()
}
