//! `banger system df`: what takes this host's disk.

use banger_daemon_api::pull::{DiskUsage, Usage};
use banger_daemon_api::routes;

use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, table};

/// Runs the verb.
pub async fn run(ui: &Ui, json: bool) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let usage: DiskUsage =
        client.get(routes::USAGE).await.map_err(|error| client.explain(error))?;
    if json {
        return ui.json(&usage);
    }
    ui.line(render(&usage))?;
    if usage.blobs.unused_count > 0 {
        ui.hint("banger image cache prune");
    }
    Ok(())
}

fn render(usage: &DiskUsage) -> String {
    let row = |what: &str, usage: &Usage| {
        [
            what.to_owned(),
            usage.count.to_string(),
            table::size(usage.bytes),
            usage.unused_count.to_string(),
            table::size(usage.reclaimable),
        ]
    };
    let rows = [
        row("images", &usage.images),
        row("blobs", &usage.blobs),
        row("kernels", &usage.kernels),
        row("initrds", &usage.initrds),
        row("machines", &usage.vms),
    ];
    table::table(["WHAT", "COUNT", "SIZE", "UNUSED", "RECLAIMABLE"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_a_table() {
        let of = |count, bytes, unused_count, reclaimable| Usage {
            count,
            bytes,
            unused_count,
            reclaimable,
        };
        let usage = DiskUsage {
            images: of(3, 2 << 30, 1, 512 << 20),
            blobs: of(12, 1 << 30, 12, 1 << 30),
            kernels: of(1, 95 << 20, 0, 0),
            initrds: of(1, 3 << 20, 1, 3 << 20),
            vms: of(2, 700 << 20, 0, 0),
        };
        insta::assert_snapshot!(render(&usage), @r"
        WHAT      COUNT  SIZE  UNUSED  RECLAIMABLE
        images    3      2G    1       512M
        blobs     12     1G    12      1G
        kernels   1      95M   0       0B
        initrds   1      3M    1       3M
        machines  2      700M  0       0B
        ");
    }
}
