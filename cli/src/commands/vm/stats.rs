//! `banger vm stats`.

use std::io::{self, IsTerminal};
use std::time::Duration;

use banger_daemon_api::routes;
use banger_daemon_api::stats::{GuestUse, HostUse, VmStats};
use clap::Args;
use tokio::time::MissedTickBehavior;

use super::SomeVms;
use crate::client::Client;
use crate::commands::JsonArgs;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{artifacts, daemon, table};

/// Clears a terminal and begins at its top (ECMA-48: CUP, ED).
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

/// Arguments of `banger vm stats`.
#[derive(Args, Debug)]
pub struct StatsArgs {
    #[command(flatten)]
    vms: SomeVms,
    #[command(flatten)]
    json: JsonArgs,
    /// Measure again and again, this many seconds apart, until Ctrl-C [default with it: 2]
    #[arg(
        short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
        default_missing_value = "2", value_parser = clap::value_parser!(u16).range(1..)
    )]
    watch: Option<u16>,
}

/// Measures machines at once and shows them in the order given; JSON is one array, and with
/// `--watch` one a line.
pub async fn run(ui: &Ui, args: &StatsArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let Some(seconds) = args.watch else { return measure(ui, &client, args).await };
    let mut ticks = tokio::time::interval(Duration::from_secs(seconds.into()));
    // One that was missed, because measuring took longer, is not made up for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if io::stdout().is_terminal() && !args.json.json {
            ui.bytes(CLEAR)?;
        }
        measure(ui, &client, args).await?;
    }
}

async fn measure(ui: &Ui, client: &Client, args: &StatsArgs) -> Result<(), CliError> {
    let vms = args.vms.resolve(client, |_| true).await?;
    let measured = vms.iter().map(async |reference| {
        let vm = super::get(client, reference).await?;
        let path = routes::vm(&(&vm.id).into(), "/stats");
        client.get::<VmStats>(&path).await.map_err(|error| client.explain(error))
    });
    let (mut stats, mut failures) = (Vec::new(), Vec::new());
    for result in futures::future::join_all(measured).await {
        match result {
            Ok(one) if stats.iter().all(|known: &VmStats| known.id != one.id) => stats.push(one),
            Ok(_) => {}
            Err(error) => failures.push(error),
        }
    }
    if args.json.json && args.watch.is_some() {
        let line = serde_json::to_string(&stats)
            .map_err(|error| CliError::new("cannot write JSON").because(&error))?;
        ui.line(line)?;
    } else if args.json.json {
        ui.json(&stats)?;
    } else {
        for (number, one) in stats.iter().enumerate() {
            let space = if number == 0 { "" } else { "\n" };
            ui.line(format!("{space}{}", render(one)))?;
        }
    }
    artifacts::report_all(ui, failures)
}

/// What of the processors a VMM took, of one as 100.
pub(super) fn cpu(host: &HostUse) -> String {
    format!("{} %", host.cpu_milli / 10)
}

/// A guest's load average.
pub(super) fn load(guest: &GuestUse) -> String {
    format!("{}.{:02}", guest.load_milli / 1000, guest.load_milli % 1000 / 10)
}

/// How much of a whole is not free.
pub(super) fn used(total: u64, free: u64) -> String {
    table::size(total.saturating_sub(free))
}

fn render(stats: &VmStats) -> String {
    let mut facts = vec![("name", stats.name.to_string()), ("state", stats.state.to_string())];
    if let Some(host) = &stats.host {
        facts.extend([
            ("CPU", format!("{} of {} vCPUs", cpu(host), host.vcpus)),
            ("CPU time", format!("{}.{:03} s", host.cpu_time_ms / 1000, host.cpu_time_ms % 1000)),
            (
                "memory on the host",
                format!(
                    "{} for a guest of {}",
                    table::size(host.memory_bytes),
                    table::size(host.memory_limit_bytes)
                ),
            ),
        ]);
    }
    if let Some(guest) = &stats.guest {
        let used = |total, free| format!("{} of {} used", used(total, free), table::size(total));
        facts.extend([
            ("memory in the guest", used(guest.memory_total_bytes, guest.memory_available_bytes)),
            ("load", load(guest)),
            ("processes", guest.processes.to_string()),
            ("/", used(guest.root_total_bytes, guest.root_free_bytes)),
            ("/root", used(guest.work_total_bytes, guest.work_free_bytes)),
        ]);
    }
    if let Some(problem) = &stats.guest_problem {
        facts.push(("guest", format!("does not answer: {problem}")));
    }
    for disk in &stats.disks {
        let mut text = format!(
            "{}: {}, {} ({} on the host)",
            disk.role,
            disk.kind,
            table::size(disk.size),
            table::size(disk.allocated)
        );
        if let Some(percent) = disk.fill_percent {
            text.push_str(&format!(", {percent} % full"));
        }
        if let Some(broken) = &disk.broken {
            text.push_str(&format!(", {broken}"));
        }
        facts.push(("disk", text));
    }
    table::facts(&facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_shown_as_facts() {
        let stats: VmStats = serde_json::from_value(serde_json::json!({
            "id": "0123456789abcdef0123456789abcdef", "name": "box", "state": "running",
            "measured_at": "1970-01-01T00:00:00Z",
            "host": {
                "pid": 7, "cpu_time_ms": 12_034, "cpu_milli": 1504, "vcpus": 2,
                "memory_bytes": 268_435_456, "memory_limit_bytes": 1_073_741_824,
            },
            "guest": {
                "load_milli": 1234, "processes": 60,
                "memory_total_bytes": 1_073_741_824, "memory_available_bytes": 805_306_368,
                "root_total_bytes": 8_589_934_592_u64, "root_free_bytes": 7_516_192_768_u64,
                "work_total_bytes": 8_589_934_592_u64, "work_free_bytes": 8_589_934_592_u64,
            },
            "disks": [{
                "role": "root", "kind": "dm-snapshot", "path": "/s/root.cow",
                "size": 8_589_934_592_u64, "allocated": 7_301_444_403_u64, "fill_percent": 84,
            }],
        }))
        .unwrap();
        insta::assert_snapshot!(render(&stats), @r"
        name:                 box
        state:                running
        CPU:                  150 % of 2 vCPUs
        CPU time:             12.034 s
        memory on the host:   256M for a guest of 1G
        memory in the guest:  256M of 1G used
        load:                 1.23
        processes:            60
        /:                    1G of 8G used
        /root:                0B of 8G used
        disk:                 root: dm-snapshot, 8G (6.7G on the host), 84 % full
        ");
    }
}
