//! `banger vm set`.

use std::str::FromStr;

use banger_daemon_api::routes;
use banger_daemon_api::vm::{ChangeVm, SetVm, Vm};
use banger_types::{
    BytesPerSecond, DiskSize, GroupName, MemoryMib, OpsPerSecond, VcpuCount, VmReference,
};
use clap::Args;

use super::{Act, SomeVms, for_each};
use crate::client::Client;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{artifacts, daemon};

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
    #[arg(long, value_name = "SIZE", visible_alias = "system-overlay-size")]
    root_size: Option<DiskSize>,
    /// The most that each disk reads and writes a second, such as 50M, or none
    #[arg(long, value_name = "SIZE")]
    disk_bandwidth: Option<Limit<BytesPerSecond>>,
    /// The most operations of each disk a second, or none
    #[arg(long, value_name = "COUNT")]
    disk_ops: Option<Limit<OpsPerSecond>>,
    /// The most bytes that the network card carries a second, each way, or none; at once (Firecracker)
    #[arg(long, value_name = "SIZE")]
    net_bandwidth: Option<Limit<BytesPerSecond>>,
    /// The most packets that the network card carries a second, each way, or none; at once
    #[arg(long, value_name = "COUNT")]
    net_packets: Option<Limit<OpsPerSecond>>,
    /// Let the machine reach the network outside, at once
    #[arg(long)]
    nat: bool,
    /// Let it no longer
    #[arg(long, conflicts_with_all = ["nat", "allow_lan"])]
    no_nat: bool,
    /// Let it reach private networks too, where it has NAT
    #[arg(long)]
    allow_lan: bool,
    /// Let it no longer
    #[arg(long, conflicts_with = "allow_lan")]
    no_allow_lan: bool,
    /// Put the machine into this group, whose machines reach each other, at once
    #[arg(long, value_name = "NAME")]
    group: Option<GroupName>,
    /// Take it out of its group
    #[arg(long, conflicts_with = "group")]
    no_group: bool,
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

    /// Returns what is asked for of the network.
    fn network(&self) -> ChangeVm {
        let either = |yes: bool, no: bool| (yes || no).then_some(yes);
        let group = self.group.as_ref().map(ToString::to_string);
        ChangeVm {
            nat: either(self.nat, self.no_nat),
            allow_lan: either(self.allow_lan, self.no_allow_lan),
            group: group.or_else(|| self.no_group.then(String::new)),
            net_bandwidth: self.net_bandwidth.map(|limit| limit.0),
            net_packets: self.net_packets.map(|limit| limit.0),
            ..ChangeVm::default()
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

/// Changes machines: size and limits of stopped ones, what they may on the network at any time.
pub async fn run(ui: &Ui, args: &SetArgs) -> Result<(), CliError> {
    let (network, sizes) = (args.change.network(), args.change.body());
    if network == ChangeVm::default() {
        return set_sizes(ui, args, &sizes).await;
    }
    // What may be refused comes first.
    if sizes != SetVm::default() {
        set_sizes(ui, args, &sizes).await?;
    }
    let client = daemon::connect(ui).await?;
    let mut failures = Vec::new();
    for reference in &args.vms.resolve(&client, |_| true).await? {
        match set_network(ui, &client, reference, &network).await {
            Ok(vm) if sizes == SetVm::default() => ui.line(&vm.name)?,
            Ok(_) => {}
            Err(error) => failures.push(error),
        }
    }
    artifacts::report_all(ui, failures)
}

async fn set_network(
    ui: &Ui,
    client: &Client,
    reference: &VmReference,
    change: &ChangeVm,
) -> Result<Vm, CliError> {
    let vm = super::get(client, reference).await?;
    let path = routes::vm(&VmReference::from(&vm.id), "");
    let vm: Vm = client.patch(&path, change).await.map_err(|error| client.explain(error))?;
    let name = &vm.name;
    if change.allow_lan == Some(true) && !vm.spec.allow_lan {
        ui.warning(format_args!(
            "without NAT --allow-lan is of no use: banger vm set {name} --nat --allow-lan"
        ));
    }
    if vm.runtime.is_some() && vm.network != "tap" {
        let when = "this takes effect at its next start";
        ui.warning(format_args!("VM {name} is not on the host's bridge: {when}"));
    }
    Ok(vm)
}

async fn set_sizes(ui: &Ui, args: &SetArgs, sizes: &SetVm) -> Result<(), CliError> {
    let body = serde_json::to_value(sizes)
        .map_err(|error| CliError::new("cannot write the request").because(&error))?;
    let client = daemon::connect(ui).await?;
    let vms = args.vms.resolve(&client, |_| true).await?;
    for_each(ui, &client, &vms, Act::Post("/set", &body)).await
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
            (&["--nat", "--no-nat"], "cannot be used with"),
            (&["--group", "X"], "1 to 32 of a-z"),
            (&["--vcpu", "0"], "the least is 1, the most 32"),
            (&["--memory", "1M"], "the least is 128M"),
            (&["--disk-size", "32T"], "the most 16T"),
            (&["--disk-bandwidth", "1K"], "the least is 64K"),
            (&["--disk-ops", "1"], "the least is 10"),
            (&["--disk-ops", "nothing"], "the least is 10"),
            (&["--net-bandwidth", "1K"], "the least is 64K"),
            (&["--net-packets", "9"], "the least is 10"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}
