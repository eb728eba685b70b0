//! `banger vm show`.

use banger_daemon_api::vm::Vm;
use clap::Args;

use super::OneVm;
use crate::commands::JsonArgs;
use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, table};

/// Arguments of `banger vm show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    #[command(flatten)]
    vm: OneVm,
    #[command(flatten)]
    json: JsonArgs,
}

/// Shows a machine.
pub async fn run(ui: &Ui, args: &ShowArgs) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let vm = super::get(&client, &args.vm.vm).await?;
    if args.json.json {
        return ui.json(&vm);
    }
    ui.line(render(&vm))
}

fn render(vm: &Vm) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut facts = vec![
        ("name", vm.name.to_string()),
        ("id", vm.id.to_string()),
        ("state", vm.state.to_string()),
        ("image", vm.image.to_string()),
        ("kernel", vm.kernel.to_string()),
        ("vCPUs", vm.spec.vcpus.to_string()),
        ("memory", vm.spec.memory_mib.to_string()),
        ("network", network(vm)),
        ("deleted with client", if vm.ephemeral { "yes" } else { "no" }.to_owned()),
        ("created", vm.created_at.to_string()),
        ("changed", vm.updated_at.to_string()),
        ("console", vm.console_log.clone()),
    ];
    // An address for life, or the one behind a VMM's own network.
    let address = vm.address.or_else(|| vm.runtime.as_ref()?.guest_ip);
    facts.extend(address.map(|address| ("address", address.to_string())));
    facts.extend(vm.mac.clone().map(|mac| ("MAC", mac)));
    facts.extend(vm.spec.group.as_ref().map(|group| ("group", group.to_string())));
    if let Some(runtime) = &vm.runtime {
        facts.extend([
            ("VMM", format!("{} ({}), pid {}", runtime.vmm, runtime.acceleration, runtime.pid)),
            ("running kernel", or_dash(runtime.kernel_release.clone())),
            ("boot id", or_dash(runtime.boot_id.clone())),
            ("agent", or_dash(runtime.agent_version.clone())),
            ("started", runtime.started_at.to_string()),
        ]);
    }
    if let Some(main) = &vm.main {
        facts.push(("main process", table::printable(&main.argv.join(" "))));
        facts.extend(vm.main_exit.map(|exit| ("main process", exit.to_string())));
    }
    if let Some(workspace) = &vm.workspace {
        let source = table::printable(&workspace.source_path);
        facts.push(("workspace", format!("{} from {source}", workspace.guest_path)));
        let branch = workspace.branch.as_deref().map(table::printable);
        let head = workspace.head_commit.as_deref().map(|head| head.get(..12).unwrap_or(head));
        let at: Vec<String> = [branch, head.map(str::to_owned)].into_iter().flatten().collect();
        if !at.is_empty() {
            facts.push(("workspace at", at.join(", ")));
        }
        facts.extend(workspace.prepared_at.map(|time| ("workspace carried", time.to_string())));
    }
    for port in &vm.ports {
        let guest = format!("{}/{}", port.publication.guest, port.publication.protocol);
        let text = match port.address {
            Some(address) => format!("{address} -> {guest}"),
            None => format!("{} -> {guest} (not open)", port.publication.host),
        };
        facts.push(("published", text));
    }
    for disk in &vm.disks {
        facts.push((
            "disk",
            format!(
                "{}: {}, {} ({} on the host{}), {}",
                disk.role,
                disk.kind,
                table::size(disk.size),
                table::size(disk.allocated),
                disk.fill_percent.map(|percent| format!(", {percent} % full")).unwrap_or_default(),
                disk.path
            ),
        ));
    }
    if !vm.spec.disk_limits.is_unlimited() {
        let limits = &vm.spec.disk_limits;
        let limits = [
            limits.bandwidth.map(|rate| rate.to_string()),
            limits.ops.map(|rate| format!("{} operations/s", rate.get())),
        ];
        let limits: Vec<String> = limits.into_iter().flatten().collect();
        facts.push(("each disk at most", limits.join(", ")));
    }
    if !vm.spec.net_limits.is_unlimited() {
        let limits = &vm.spec.net_limits;
        let limits = [
            limits.bandwidth.map(|rate| rate.to_string()),
            limits.packets.map(|rate| format!("{} packets/s", rate.get())),
        ];
        let limits: Vec<String> = limits.into_iter().flatten().collect();
        facts.push(("network card at most", limits.join(", ") + " each way"));
    }
    facts.extend(vm.notes.iter().map(|(name, value)| (name.as_str(), value.clone())));
    if let Some(error) = &vm.last_error {
        facts.push(("last error", error.message.clone()));
        facts.extend(error.causes.iter().map(|cause| ("caused by", cause.clone())));
    }
    table::facts(&facts)
}

/// The network and what leads out of it.
fn network(vm: &Vm) -> String {
    let outside = match (vm.spec.nat, vm.spec.allow_lan && vm.network == "tap") {
        (true, true) => "outside and private networks reachable",
        (true, false) => "outside reachable",
        (false, _) => "closed",
    };
    let inside = match vm.network.as_str() {
        "user" => "; from here by banger vm exec and published ports only",
        _ => "",
    };
    format!("{}, {outside}{inside}", vm.network)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::vm::list::example;

    #[test]
    fn a_running_machine_is_shown_as_facts() {
        insta::assert_snapshot!(render(&example()), @r"
        name:                 box
        id:                   0123456789abcdef0123456789abcdef
        state:                running
        image:                debian-bookworm
        kernel:               debian-6.12-cloud
        vCPUs:                2
        memory:               1G
        network:              user, outside reachable; from here by banger vm exec and published ports only
        deleted with client:  no
        created:              1970-01-01T00:00:00Z
        changed:              1970-01-01T00:00:00Z
        console:              /s/vms/0123/console.log
        address:              10.0.2.15
        VMM:                  qemu (tcg), pid 4242
        running kernel:       6.12.117+deb12-cloud-amd64
        boot id:              5a3c0b1e-0000-4000-8000-000000000002
        agent:                0.1.0
        started:              1970-01-01T00:00:00Z
        workspace:            /root/repo from /home/u/repo
        disk:                 root: qcow2-overlay, 8G (1M on the host), /s/vms/0123/root.qcow2
        VMM choice:           QEMU: no usable KVM
        ");
    }
}
