//! `banger image list`.

use banger_daemon_api::artifact::Image;
use banger_daemon_api::routes;
use banger_types::OciReference;
use jiff::Timestamp;

use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, host, table};

/// Runs the verb.
pub async fn run(ui: &Ui, json: bool) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let images: Vec<Image> =
        client.get(routes::IMAGES).await.map_err(|error| client.explain(error))?;
    if json {
        return ui.json(&images);
    }
    ui.line(render_list(&images, Timestamp::now()))?;
    if images.is_empty() {
        ui.hint(format_args!("banger image pull {}", host::DEFAULT_IMAGE));
    }
    Ok(())
}

fn render_list(images: &[Image], now: Timestamp) -> String {
    let rows: Vec<_> = images
        .iter()
        .map(|image| {
            [
                image.name.to_string(),
                image.os.clone().unwrap_or_else(|| "-".to_owned()),
                table::size(image.allocated),
                image.used_by.len().to_string(),
                source(image),
                table::ago(image.created_at, now),
            ]
        })
        .collect();
    table::table(["NAME", "OS", "SIZE", "VMS", "SOURCE", "CREATED"], &rows)
}

/// Where an image comes from, short: `image show` has the digest.
fn source(image: &Image) -> String {
    OciReference::recorded(&image.source)
        .map_or_else(|| image.source.clone(), |reference| reference.unpinned().to_string())
}

#[cfg(test)]
mod tests {
    use super::super::tests::image;
    use super::*;

    #[test]
    fn the_list_is_a_table() {
        let now = Timestamp::from_second(7200).unwrap();
        insta::assert_snapshot!(render_list(&[image()], now), @r"
        NAME             OS         SIZE  VMS  SOURCE               CREATED
        debian-bookworm  debian 12  512M  1    mmdebstrap:bookworm  2 hours ago
        ");
    }
}
