//! `banger kernel list`.

use banger_daemon_api::artifact::Kernel;
use banger_daemon_api::routes;
use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use crate::commands::JsonArgs;
use crate::debian::KNOWN_KERNELS;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, host, table};

/// Arguments of `banger kernel list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// List the kernels that can be pulled instead
    #[arg(long)]
    available: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// Runs the verb.
pub async fn run(ui: &Ui, args: &ListArgs) -> Result<(), CliError> {
    if args.available {
        return list_available(ui, args.json.json);
    }
    let client = daemon::connect(ui).await?;
    let kernels: Vec<Kernel> =
        client.get(routes::KERNELS).await.map_err(|error| client.explain(error))?;
    if args.json.json {
        return ui.json(&kernels);
    }
    ui.line(render_list(&kernels, Timestamp::now()))?;
    if kernels.is_empty() {
        ui.hint(format_args!("banger kernel pull {}", host::DEFAULT_KERNEL));
    }
    Ok(())
}

fn list_available(ui: &Ui, json: bool) -> Result<(), CliError> {
    if json {
        let known = KNOWN_KERNELS
            .map(|known| json!({ "name": known.name, "description": known.description }));
        return ui.json(&known);
    }
    let rows = KNOWN_KERNELS.map(|known| [known.name.to_owned(), known.description.to_owned()]);
    ui.line(table::table(["NAME", "DESCRIPTION"], &rows))
}

fn render_list(kernels: &[Kernel], now: Timestamp) -> String {
    let rows: Vec<_> = kernels
        .iter()
        .map(|kernel| {
            [
                kernel.name.to_string(),
                kernel.version.clone(),
                table::size(kernel.allocated),
                kernel.used_by.len().to_string(),
                kernel.source.clone(),
                table::ago(kernel.imported_at, now),
            ]
        })
        .collect();
    table::table(["NAME", "VERSION", "SIZE", "VMS", "SOURCE", "IMPORTED"], &rows)
}

#[cfg(test)]
mod tests {
    use super::super::tests::kernel;
    use super::*;

    #[test]
    fn the_list_is_a_table() {
        let now = Timestamp::from_second(90).unwrap();
        insta::assert_snapshot!(render_list(&[kernel()], now), @r"
        NAME               VERSION                     SIZE  VMS  SOURCE                                                 IMPORTED
        debian-6.12-cloud  6.12.117+deb12-cloud-amd64  48M   0    apt:linux-image-6.12.117+deb12-cloud-amd64=6.12.117-1  1 minute ago
        ");
    }
}
