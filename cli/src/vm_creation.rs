//! Making a machine: what `vm run` and `vm create` share.

use banger_daemon_api::daemon::LEASE_HEADER;
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::operation::{Operation, OperationKind, OperationStarted};
use banger_daemon_api::routes;
use banger_daemon_api::vm::{
    CreateVm, DiskLimits, MainOptions, NetLimits, Vm, VmSpec, VmmChoice, WARNING_NOTES, Workspace,
};
use banger_types::{
    ByteSize, BytesPerSecond, DiskSize, GroupName, KernelName, LeaseId, MemoryMib, OpsPerSecond,
    Publication, VcpuCount, VmId, VmName, VmReference,
};
use clap::Args;

use crate::artifacts::ImageSource;
use crate::client::{Client, ClientError, UpgradedStream};
use crate::error::CliError;
use crate::host::DiskSizes;
use crate::interrupt::Interrupts;
use crate::operation::{self, Followed};
use crate::progress::Progress;
use crate::ui::Ui;
use crate::{artifacts, completion, host};

/// The options that shape a new machine.
#[derive(Args, Debug)]
#[command(next_help_heading = "Machine options")]
pub struct CreationArgs {
    /// The machine's name; a readable one is made where it is missing
    #[arg(long)]
    pub name: Option<VmName>,
    /// The image: a name, or what is in a registry (alpine:3.20); pulled on first use
    #[arg(long, default_value = host::DEFAULT_IMAGE, add = completion::images())]
    pub image: ImageSource,
    /// The kernel; pulled on first use [default: the image's own, else the setting kernel.default,
    /// else debian-6.12-cloud]
    #[arg(long, add = completion::kernels())]
    pub kernel: Option<KernelName>,
    /// Virtual CPUs, 1 to 32
    #[arg(long, value_name = "COUNT", default_value_t = host::default_vcpus())]
    pub vcpu: VcpuCount,
    /// Memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE", default_value_t = host::default_memory())]
    pub memory: MemoryMib,
    /// Size of the work disk at /root [default: 8G, or what fits]
    #[arg(long, value_name = "SIZE")]
    pub disk_size: Option<DiskSize>,
    /// Size of the root disk; an image that is larger keeps its size [default: 8G, or what fits]
    #[arg(long, value_name = "SIZE", visible_alias = "system-overlay-size")]
    pub root_size: Option<DiskSize>,
    /// Let the machine reach the network outside (on a rootless network this host's own 127.0.0.1
    /// too, as 10.0.2.2)
    #[arg(long)]
    pub nat: bool,
    /// With --nat: private networks (192.168.0.0/16 and the like) too
    #[arg(long, requires = "nat")]
    pub allow_lan: bool,
    /// Let the machine and the others of this group reach each other
    #[arg(long, value_name = "NAME")]
    pub group: Option<GroupName>,
    #[arg(
        long,
        short,
        value_name = "PORTS",
        // Not a comment: the brackets would be a link.
        help = "Let a port of this host's 127.0.0.1 lead to one of the machine: \
                [HOST_IP:]HOST:GUEST[/udp], HOST 0 for any that is free; may be given more than once"
    )]
    pub publish: Vec<Publication>,
    /// The most that each disk reads and writes a second, such as 50M
    #[arg(long, value_name = "SIZE")]
    pub disk_bandwidth: Option<BytesPerSecond>,
    /// The most operations of each disk a second
    #[arg(long, value_name = "COUNT")]
    pub disk_ops: Option<OpsPerSecond>,
    /// The most bytes that the network card carries a second, each way, such as 10M (Firecracker)
    #[arg(long, value_name = "SIZE")]
    pub net_bandwidth: Option<BytesPerSecond>,
    /// The most packets that the network card carries a second, each way (Firecracker)
    #[arg(long, value_name = "COUNT")]
    pub net_packets: Option<OpsPerSecond>,
    /// What runs the machine: auto, firecracker or qemu
    #[arg(long, value_name = "VMM", default_value_t)]
    pub vmm: VmmChoice,
}

impl CreationArgs {
    /// Returns size and shape.
    fn spec(&self, disks: DiskSizes) -> VmSpec {
        VmSpec {
            vcpus: self.vcpu,
            memory_mib: self.memory,
            root_size: disks.root,
            work_size: disks.work,
            nat: self.nat,
            allow_lan: self.allow_lan,
            group: self.group.clone(),
            ports: self.publish.clone(),
            vmm: self.vmm,
            disk_limits: DiskLimits { bandwidth: self.disk_bandwidth, ops: self.disk_ops },
            net_limits: NetLimits { bandwidth: self.net_bandwidth, packets: self.net_packets },
        }
    }
}

/// Says size and shape in one line. `headroom` is what the host has for the disks, in bytes, where they
/// are smaller for want of it.
fn describe(spec: &VmSpec, headroom: Option<u64>) -> String {
    let VmSpec { vcpus, memory_mib, work_size, root_size, .. } = spec;
    let mut text = format!("spec: {vcpus} vcpu | {} MiB | {work_size} disk", memory_mib.mib());
    if let Some(headroom) = headroom {
        let room = ByteSize::from_bytes(headroom);
        text += &format!(" | {root_size} root (the host has room for {room:#} of disks)");
    }
    text
}

/// A lease: as long as this lives, so does the machine; when it is dropped, or this process dies,
/// the daemon deletes the machine.
#[derive(Debug)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    _stream: UpgradedStream,
}

impl Lease {
    /// Takes a new lease.
    pub async fn take(client: &Client) -> Result<Self, CliError> {
        let (headers, stream) = client
            .upgrade(routes::LEASES, routes::LEASE_PROTOCOL)
            .await
            .map_err(|error| client.explain(error))?;
        let id = headers
            .get(LEASE_HEADER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok())
            .ok_or_else(no_lease)?;
        Ok(Self { id, _stream: stream })
    }
}

/// Makes a machine and waits until its agent answers. On failure or a signal nothing of it is left.
pub async fn create(
    ui: &Ui,
    client: &Client,
    interrupts: &mut Interrupts,
    args: &CreationArgs,
    lease: Option<&Lease>,
    workspace: Option<Workspace>,
    main: MainOptions,
) -> Result<Vm, CliError> {
    check_request(client, args).await?;
    let image = artifacts::ensure_image(ui, client, interrupts, &args.image).await?;
    let kernel = match args.kernel.clone().or(image.default_kernel) {
        Some(kernel) => {
            artifacts::ensure_kernel(ui, client, interrupts, &kernel).await?;
            kernel
        }
        None => artifacts::ensure_default_kernel(ui, client, interrupts).await?,
    };
    // Images and kernels that were pulled for it are there now.
    let headroom = client.ping().await.map_err(|error| client.explain(error))?.disk_headroom;
    let disks = host::disk_sizes(args.root_size, args.disk_size, headroom);
    let spec = args.spec(disks);
    ui.status(describe(&spec, headroom.filter(|_| disks.reduced)));
    let request = CreateVm {
        name: args.name.clone(),
        image: image.name,
        kernel,
        spec,
        lease: lease.map(|lease| lease.id.clone()),
        workspace,
        main,
    };
    let started: OperationStarted =
        client.post(routes::VMS, &request).await.map_err(|error| client.explain(error))?;
    let (id, name) = created(&started.operation)?;
    let what = format!("VM {name}");
    let progress = Progress::new(ui, what.clone());
    let end =
        operation::follow(client, started, &|latest| progress.operation(latest), interrupts).await;
    drop(progress);
    if let Ok(Followed::Interrupted { interrupt, undone: false }) = end {
        // It was ready before the cancellation came.
        delete(client, &id).await?;
        return Err(CliError::interrupted(interrupt, format!("interrupted, {what} is deleted")));
    }
    end?.into_result(&what)?;
    let vm: Vm = client
        .get(&routes::vm(&VmReference::from(&id), ""))
        .await
        .map_err(|error| client.explain(error))?;
    warn_of_notes(ui, &vm);
    Ok(vm)
}

/// Says what who starts or changes a machine has to know at once.
pub fn warn_of_notes(ui: &Ui, vm: &Vm) {
    for note in WARNING_NOTES.iter().filter_map(|name| vm.notes.get(*name)) {
        ui.warning(format_args!("VM {}: {note}", vm.name));
    }
}

/// Refuses what cannot work before minutes are spent on a pull; the daemon decides for good.
async fn check_request(client: &Client, args: &CreationArgs) -> Result<(), CliError> {
    if args.vmm != VmmChoice::Auto {
        let ping = client.ping().await.map_err(|error| client.explain(error))?;
        let wanted = args.vmm.to_string();
        if !ping.vmms.contains(&wanted) {
            return Err(CliError::new(format!("this bangerd cannot run machines with {wanted}"))
                .hint(format!("--vmm auto, or one of: {}", ping.vmms.join(", "))));
        }
    }
    if let Some(name) = &args.name {
        let path = routes::vm(&VmReference::from(name.clone()), "");
        match client.get::<Vm>(&path).await {
            Ok(vm) if vm.name == *name => {
                return Err(CliError::new(format!("a VM named {name} exists already"))
                    .hint(format!("choose another name, or banger vm delete {name}")));
            }
            // Another VM's id may begin like that, or several do: the name is free.
            Ok(_) => {}
            Err(ClientError::Api(error))
                if matches!(error.code, ErrorCode::NotFound | ErrorCode::Ambiguous) => {}
            Err(error) => return Err(client.explain(error)),
        }
    }
    artifacts::find_image(client, &args.image).await?;
    if let Some(kernel) = &args.kernel {
        artifacts::find_kernel(client, kernel).await?;
    }
    Ok(())
}

fn created(operation: &Operation) -> Result<(VmId, VmName), CliError> {
    match &operation.kind {
        OperationKind::VmCreate { vm, name } => Ok((vm.clone(), name.clone())),
        other => {
            Err(CliError::new(format!("bangerd answered the creation of a machine by {other:?}")))
        }
    }
}

fn no_lease() -> CliError {
    CliError::new("bangerd gave no lease for the machine that --rm is to delete")
        .hint("banger daemon stop; the next command starts a bangerd of its own build")
}

/// Deletes a machine and waits until it is gone.
pub async fn delete(client: &Client, id: &VmId) -> Result<(), CliError> {
    let started: OperationStarted = client
        .delete(&routes::vm(&VmReference::from(id), ""))
        .await
        .map_err(|error| client.explain(error))?;
    // No signal cuts the clean-up short.
    let mut snapshots = client
        .stream(&routes::operation(&started.operation.id, "/events"))
        .await
        .map_err(|error| client.explain(error))?;
    let mut latest = started.operation;
    while !latest.state.is_done() {
        match snapshots.next_json().await.map_err(|error| client.explain(error))? {
            Some(snapshot) => latest = snapshot,
            None => {
                return Err(CliError::new(format!("bangerd ended while it deleted machine {id}"))
                    .hint(format!("banger vm delete {id}")));
            }
        }
    }
    match latest.error {
        None => Ok(()),
        Some(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        creation: CreationArgs,
    }

    fn parse(arguments: &[&str]) -> Result<CreationArgs, String> {
        Line::try_parse_from([&["x"], arguments].concat())
            .map(|line| line.creation)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_range() {
        for (arguments, part) in [
            (["--vcpu", "0"], "the least is 1, the most 32"),
            (["--vcpu", "33"], "the least is 1, the most 32"),
            (["--vcpu", "many"], "not a whole number from 1 to 32"),
            (["--memory", "64M"], "the least is 128M"),
            (["--memory", "lots"], "512M, 8G or 2GiB"),
            (["--disk-size", "1M"], "the least is 64M"),
            (["--disk-size", "8X"], "is not known"),
            (["--root-size", "0"], "the least is 64M"),
            (["--disk-bandwidth", "1K"], "the least is 64K"),
            (["--net-bandwidth", "1K"], "the least is 64K"),
            (["--net-packets", "1"], "the least is 10"),
            (["--disk-ops", "9"], "the least is 10"),
            (["--name", "Bad_Name"], "a-z, 0-9 and -"),
            (["--image", "../x"], "is no registry"),
            (["--image", "Debian"], "is not allowed"),
            (["--image", "a:b:c"], "is no tag"),
            (["--vmm", "xen"], "auto, firecracker, qemu"),
            (["--group", "Not_One"], "1 to 32 of a-z, 0-9 and -"),
        ] {
            let error = parse(&arguments).unwrap_err();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn the_spec_is_said_in_one_line() {
        let args = parse(&["--vcpu", "4", "--memory", "8G", "--root-size", "1G"]).unwrap();
        let line = |headroom: Option<u64>| {
            let disks = host::disk_sizes(args.root_size, args.disk_size, headroom);
            describe(&args.spec(disks), headroom.filter(|_| disks.reduced))
        };
        assert_eq!(line(None), "spec: 4 vcpu | 8192 MiB | 8G disk");
        assert_eq!(line(Some(90 << 30)), "spec: 4 vcpu | 8192 MiB | 8G disk");
        assert_eq!(
            line(Some(2 << 30)),
            "spec: 4 vcpu | 8192 MiB | 960M disk | 1G root (the host has room for 2.0G of disks)"
        );
    }
}
