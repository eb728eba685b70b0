//! `/v1/images`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::artifact::{ChangeImage, Image, ImportImage};
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_daemon_api::operation::OperationStarted;
use banger_types::{ImageName, KernelName};

use super::{Accepted, Nothing, Shared, accepted, used};
use crate::server::{Answer, Failure, JsonBody, OpId, PathPart};

/// Lists the images.
#[utoipa::path(get, path = "/v1/images", responses((status = 200, body = Vec<Image>)))]
pub async fn list(State(api): Shared) -> Answer<Json<Vec<Image>>> {
    Ok(Json(used::images(&api).await?))
}

/// Shows an image.
#[utoipa::path(
    get,
    path = "/v1/images/{name}",
    params(("name" = String, Path)),
    responses((status = 200, body = Image), (status = 404, body = ApiError))
)]
pub async fn get(State(api): Shared, PathPart(name): PathPart<ImageName>) -> Answer<Json<Image>> {
    Ok(Json(used::image(&api, &name).await?))
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
) -> Accepted {
    Ok(accepted(api.services.importer().image(request, op_id).await?))
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
    Ok(Json(used::image(&api, &name).await?))
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
    used::refuse_used_image(&api, &name)?;
    api.services.artifacts().delete_image(&name).await?;
    tracing::info!(image = name.as_str(), "deleted");
    Ok(Json(Nothing {}))
}
