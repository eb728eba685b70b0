//! `/v1/images`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use banger_daemon_api::artifact::{ChangeImage, Image, ImportImage};
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::operation::OperationStarted;
use banger_types::{ImageName, KernelName};

use super::{Api, Nothing, Shared};
use crate::server::{Answer, Failure, JsonBody, OpId, PathPart};

/// Lists the images.
#[utoipa::path(get, path = "/v1/images", responses((status = 200, body = Vec<Image>)))]
pub async fn list(State(api): Shared) -> Answer<Json<Vec<Image>>> {
    let mut images = api.services.artifacts().images().await?;
    for image in &mut images {
        image.used_by = users(&api, &image.name);
    }
    Ok(Json(images))
}

/// Shows an image.
#[utoipa::path(
    get,
    path = "/v1/images/{name}",
    params(("name" = String, Path)),
    responses((status = 200, body = Image), (status = 404, body = ApiError))
)]
pub async fn get(State(api): Shared, PathPart(name): PathPart<ImageName>) -> Answer<Json<Image>> {
    let mut image = api.services.artifacts().image(&name).await?;
    image.used_by = users(&api, &name);
    Ok(Json(image))
}

/// Begins an import, or joins the one of this name that is under way.
#[utoipa::path(
    post,
    path = "/v1/images",
    request_body = ImportImage,
    responses((status = 202, body = OperationStarted), (status = 409, body = ApiError))
)]
pub async fn import(
    State(api): Shared,
    OpId(op_id): OpId,
    JsonBody(request): JsonBody<ImportImage>,
) -> Answer<(StatusCode, Json<OperationStarted>)> {
    let started = api.services.importer().image(request, op_id).await?;
    Ok((StatusCode::ACCEPTED, Json(started)))
}

/// Changes what VMs of an image boot unless told otherwise.
#[utoipa::path(
    patch,
    path = "/v1/images/{name}",
    params(("name" = String, Path)),
    request_body = ChangeImage,
    responses(
        (status = 200, body = Image),
        (status = 400, body = ApiError),
        (status = 404, body = ApiError)
    )
)]
pub async fn change(
    State(api): Shared,
    PathPart(name): PathPart<ImageName>,
    JsonBody(change): JsonBody<ChangeImage>,
) -> Answer<Json<Image>> {
    if let Some(text) = change.default_kernel {
        let kernel = match text.as_str() {
            "" => None,
            name => Some(name.parse::<KernelName>().map_err(|error| {
                Failure::new(
                    ErrorCode::BadParams,
                    format!("no kernel can be named {name:?}: {error}"),
                )
            })?),
        };
        if let Some(kernel) = &kernel {
            // One that is not there would be noticed by the next VM only.
            api.services.artifacts().kernel(kernel).await?;
        }
        api.services.artifacts().set_image_kernel(&name, kernel).await?;
    }
    let mut image = api.services.artifacts().image(&name).await?;
    image.used_by = users(&api, &name);
    Ok(Json(image))
}

/// Deletes an image that no VM uses.
#[utoipa::path(
    delete,
    path = "/v1/images/{name}",
    params(("name" = String, Path)),
    responses(
        (status = 200, body = Nothing),
        (status = 404, body = ApiError),
        (status = 409, body = ApiError)
    )
)]
pub async fn delete(
    State(api): Shared,
    PathPart(name): PathPart<ImageName>,
) -> Answer<Json<Nothing>> {
    refuse_in_use(&api, &name)?;
    api.services.artifacts().delete_image(&name).await?;
    tracing::info!(image = name.as_str(), "deleted");
    Ok(Json(Nothing {}))
}

fn refuse_in_use(api: &Api, name: &ImageName) -> Answer<()> {
    let users = users(api, name);
    if users.is_empty() {
        return Ok(());
    }
    let message = format!("image {name} is used by VM {}", users.join(", "));
    Err(Failure::new(ErrorCode::InUse, message)
        .hint(format!("`banger vm delete {}` first", users.join(" "))))
}

/// Returns the names of the VMs that use it.
pub(super) fn users(api: &Api, name: &ImageName) -> Vec<String> {
    api.services.engine().users_of_image(name).iter().map(ToString::to_string).collect()
}
