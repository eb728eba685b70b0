//! `PATCH /v1/images/{name}`.

use axum::Json;
use axum::extract::State;
use banger_daemon_api::artifact::{ChangeImage, Image};
use banger_daemon_api::error::{ApiError, ErrorCode};
use banger_types::{ImageName, KernelName};

use crate::api::{Shared, used};
use crate::server::{Answer, Failure, JsonBody, PathPart};

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
                .hint("banger kernel list")
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
