//! `banger vm list` and `banger ps`.

use banger_daemon_api::routes;
use banger_daemon_api::vm::{DISK_NOTE, HELD_NOTE, Vm, VmState};
use jiff::Timestamp;

use crate::error::CliError;
use crate::ui::Ui;
use crate::{daemon, table};

/// Prints machines: all, or those that are not stopped.
pub async fn print(ui: &Ui, all: bool, json: bool) -> Result<(), CliError> {
    let client = daemon::connect(ui).await?;
    let mut vms: Vec<Vm> = client.get(routes::VMS).await.map_err(|error| client.explain(error))?;
    vms.retain(|vm| all || is_up(vm.state));
    if json {
        return ui.json(&vms);
    }
    ui.line(render(&vms, Timestamp::now()))?;
    for vm in &vms {
        if let Some(note) = vm.notes.get(DISK_NOTE) {
            ui.warning(format!("VM {}: {note}", vm.name));
        }
    }
    Ok(())
}

fn is_up(state: VmState) -> bool {
    match state {
        VmState::Starting | VmState::Running | VmState::Stopping | VmState::Deleting => true,
        VmState::Created | VmState::Stopped | VmState::Failed => false,
    }
}

fn render(vms: &[Vm], now: Timestamp) -> String {
    let rows: Vec<_> = vms
        .iter()
        .map(|vm| {
            let address = vm.runtime.as_ref().and_then(|runtime| runtime.guest_ip);
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            [
                vm.id.short().to_owned(),
                vm.name.to_string(),
                // It runs, and stands still: `vm show` says why.
                if vm.notes.contains_key(HELD_NOTE) {
                    HELD_NOTE.to_owned()
                } else {
                    vm.state.to_string()
                },
                vm.image.to_string(),
                or_dash(address.map(|address| address.to_string())),
                vm.spec.vcpus.to_string(),
                vm.spec.memory_mib.to_string(),
                vm.spec.work_size.to_string(),
                or_dash(vm.workspace.as_ref().map(|workspace| workspace.source_path.clone())),
                table::ago(vm.created_at, now),
            ]
        })
        .collect();
    table::table(
        ["ID", "NAME", "STATE", "IMAGE", "IP", "VCPU", "MEM", "DISK", "WORKSPACE", "CREATED"],
        &rows,
    )
}

/// A machine as tests show it.
#[cfg(test)]
pub fn example() -> Vm {
    serde_json::from_value(serde_json::json!({
        "id": "0123456789abcdef0123456789abcdef",
        "name": "box",
        "state": "running",
        "image": "debian-bookworm",
        "kernel": "debian-6.12-cloud",
        "spec": {
            "vcpus": 2, "memory_mib": 1024, "root_size": 8_589_934_592_u64,
            "work_size": 8_589_934_592_u64, "nat": true, "vmm": "auto",
        },
        "ephemeral": false,
        "runtime": {
            "pid": 4242, "vmm": "qemu", "acceleration": "tcg",
            "boot_id": "5a3c0b1e-0000-4000-8000-000000000002",
            "kernel_release": "6.12.117+deb12-cloud-amd64",
            "agent_version": "0.1.0",
            "guest_ip": "10.0.2.15",
            "started_at": "1970-01-01T00:00:00Z",
        },
        "disks": [{
            "role": "root", "kind": "qcow2-overlay", "path": "/s/vms/0123/root.qcow2",
            "size": 8_589_934_592_u64, "allocated": 1_048_576,
        }],
        "network": "user",
        "workspace": { "guest_path": "/root/repo", "source_path": "/home/u/repo" },
        "created_at": "1970-01-01T00:00:00Z",
        "updated_at": "1970-01-01T00:00:00Z",
        "console_log": "/s/vms/0123/console.log",
        "notes": { "VMM choice": "QEMU: no usable KVM" },
    }))
    .unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_a_table() {
        let mut stopped = example();
        stopped.name = "other".parse().unwrap();
        stopped.state = VmState::Stopped;
        stopped.runtime = None;
        stopped.workspace = None;
        let now = Timestamp::from_second(3600).unwrap();
        insta::assert_snapshot!(render(&[example(), stopped], now), @r"
        ID            NAME   STATE    IMAGE            IP         VCPU  MEM  DISK  WORKSPACE     CREATED
        0123456789ab  box    running  debian-bookworm  10.0.2.15  2     1G   8G    /home/u/repo  1 hour ago
        0123456789ab  other  stopped  debian-bookworm  -          2     1G   8G    -             1 hour ago
        ");
    }

    #[test]
    fn an_empty_list_is_a_heading() {
        let text = render(&[], Timestamp::UNIX_EPOCH);
        assert_eq!(text, "ID  NAME  STATE  IMAGE  IP  VCPU  MEM  DISK  WORKSPACE  CREATED");
    }
}
