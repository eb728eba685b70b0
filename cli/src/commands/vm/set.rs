//! `banger vm set`.

use std::str::FromStr;

use banger_daemon_api::vm::SetVm;
use banger_types::{BytesPerSecond, DiskSize, MemoryMib, OpsPerSecond, VcpuCount};
use clap::Args;

use super::{Act, SomeVms, for_each};
use crate::daemon;
use crate::error::CliError;
use crate::ui::Ui;

/// Arguments of `banger vm set`.
#[derive(Args, Debug)]
pub struct SetArgs {
    #[command(flatten)]
    vms: SomeVms,
    #[command(flatten)]
    change: ChangeArgs,
}

/// What can be changed; at least one of it.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
struct ChangeArgs {
    /// Virtual CPUs, 1 to 32
    #[arg(long, value_name = "COUNT")]
    vcpu: Option<VcpuCount>,
    /// Memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE")]
    memory: Option<MemoryMib>,
    /// Size of the work disk at /root; it only grows
    #[arg(long, value_name = "SIZE")]
    disk_size: Option<DiskSize>,
    /// Size of the root disk; it only grows
    #[arg(long, value_name = "SIZE")]
    root_size: Option<DiskSize>,
    /// The most that each disk reads and writes a second, such as 50M, or none
    #[arg(long, value_name = "SIZE")]
    disk_bandwidth: Option<Limit<BytesPerSecond>>,
    /// The most operations of each disk a second, or none
    #[arg(long, value_name = "COUNT")]
    disk_ops: Option<Limit<OpsPerSecond>>,
}

impl ChangeArgs {
    fn body(&self) -> SetVm {
        SetVm {
            vcpus: self.vcpu,
            memory_mib: self.memory,
            root_size: self.root_size,
            work_size: self.disk_size,
            disk_bandwidth: self.disk_bandwidth.map(|limit| limit.0),
            disk_ops: self.disk_ops.map(|limit| limit.0),
        }
    }
}

/// A limit, or `none`.
#[derive(Clone, Copy, Debug)]
struct Limit<T>(Option<T>);

impl<T: FromStr> FromStr for Limit<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(Some).map(Self) }
    }
}

/// Changes stopped machines.
pub async fn run(ui: &Ui, args: &SetArgs) -> Result<(), CliError> {
    let body = serde_json::to_value(args.change.body())
        .map_err(|error| CliError::new("cannot write the request").because(&error))?;
    let client = daemon::connect(ui).await?;
    for_each(ui, &client, &args.vms.vms, Act::Post("/set", &body)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: SetArgs,
    }

    fn parse(arguments: &[&str]) -> Result<SetVm, String> {
        Line::try_parse_from([&["x", "box"], arguments].concat())
            .map(|line| line.args.change.body())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_given_is_sent_and_nothing_else() {
        let body = parse(&["--vcpu", "2", "--disk-bandwidth", "none", "--disk-ops", "500"]);
        let body = serde_json::to_string(&body.unwrap()).unwrap();
        assert_eq!(body, r#"{"vcpus":2,"disk_bandwidth":null,"disk_ops":500}"#);
    }

    #[test]
    fn a_change_without_anything_to_change_and_values_out_of_range_are_refused() {
        for (arguments, part) in [
            (&[][..], "required"),
            (&["--vcpu", "0"], "the least is 1, the most 32"),
            (&["--memory", "1M"], "the least is 128M"),
            (&["--disk-size", "32T"], "the most 16T"),
            (&["--disk-bandwidth", "1K"], "the least is 64K"),
            (&["--disk-ops", "1"], "the least is 10"),
            (&["--disk-ops", "nothing"], "the least is 10"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}
