//! `banger image show`.

use banger_daemon_api::artifact::Image;
use banger_types::ImageName;
use clap::Args;

use crate::commands::JsonArgs;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{completion, daemon, host, table};

/// Arguments of `banger image show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The image
    #[arg(value_name = "IMAGE", add = completion::images())]
    name: ImageName,
    #[command(flatten)]
    json: JsonArgs,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: &ShowArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let image = super::get(&client, &args.name).await?;
    if args.json.json {
        return ui.json(&image);
    }
    ui.line(render_image(&image))
}

fn render_image(image: &Image) -> String {
    let init = if image.has_init { "its own" } else { "none; banger's agent is PID 1" };
    let kernel = image.default_kernel.as_ref().map_or_else(
        || format!("{} (banger's default)", host::DEFAULT_KERNEL),
        ToString::to_string,
    );
    table::facts(&[
        ("name", image.name.to_string()),
        ("id", image.id.clone()),
        ("os", image.os.clone().unwrap_or_else(|| "-".to_owned())),
        ("source", image.source.clone()),
        ("sha256", if image.sha256.is_empty() { "-".to_owned() } else { image.sha256.clone() }),
        ("size", table::size(image.size)),
        ("on disk", table::size(image.allocated)),
        ("entries", image.entries.to_string()),
        ("init", init.to_owned()),
        ("kernel", kernel),
        ("created", image.created_at.to_string()),
        (
            "used by",
            if image.used_by.is_empty() { "-".to_owned() } else { image.used_by.join(", ") },
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::tests::image;
    use super::*;

    #[test]
    fn an_image_is_shown_as_facts() {
        insta::assert_snapshot!(render_image(&image()), @r"
        name:     debian-bookworm
        id:       6d3c0b1e-0000-4000-8000-000000000001
        os:       debian 12
        source:   mmdebstrap:bookworm
        sha256:   abababababababababababababababababababababababababababababababab
        size:     8G
        on disk:  512M
        entries:  12345
        init:     its own
        kernel:   debian-6.12-cloud (banger's default)
        created:  1970-01-01T00:00:00Z
        used by:  box
        ");
    }
}
