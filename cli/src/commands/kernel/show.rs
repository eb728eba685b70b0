//! `banger kernel show`.

use banger_daemon_api::artifact::Kernel;
use banger_daemon_api::routes;
use banger_types::KernelName;
use clap::Args;

use super::explain_missing;
use crate::commands::JsonArgs;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{completion, daemon, table};

/// Arguments of `banger kernel show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The kernel
    #[arg(value_name = "KERNEL", add = completion::kernels())]
    name: KernelName,
    #[command(flatten)]
    json: JsonArgs,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: &ShowArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let kernel: Kernel = client
        .get(&routes::kernel(&args.name))
        .await
        .map_err(|error| explain_missing(client.explain(error), &args.name))?;
    if args.json.json {
        return ui.json(&kernel);
    }
    ui.line(render_kernel(&kernel))
}

fn render_kernel(kernel: &Kernel) -> String {
    let or_dash = |items: &[String], separator| {
        if items.is_empty() { "-".to_owned() } else { items.join(separator) }
    };
    table::facts(&[
        ("name", kernel.name.to_string()),
        ("version", kernel.version.clone()),
        ("source", kernel.source.clone()),
        ("sha256", kernel.sha256.clone()),
        ("on disk", table::size(kernel.allocated)),
        ("modules", or_dash(&kernel.modules, " ")),
        ("imported", kernel.imported_at.to_string()),
        ("used by", or_dash(&kernel.used_by, ", ")),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::tests::kernel;
    use super::*;

    #[test]
    fn a_kernel_is_shown_as_facts() {
        insta::assert_snapshot!(render_kernel(&kernel()), @r"
        name:      debian-6.12-cloud
        version:   6.12.117+deb12-cloud-amd64
        source:    apt:linux-image-6.12.117+deb12-cloud-amd64=6.12.117-1
        sha256:    cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd
        on disk:   48M
        modules:   virtio_ring virtio
        imported:  1970-01-01T00:00:00Z
        used by:   -
        ");
    }
}
