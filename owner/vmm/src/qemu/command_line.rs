//! QEMU's arguments for a launch plan.
//!
//! Pure: nothing here touches the host, so that tests can read the whole command line.
//!
//! The machine is `microvm`: no PCI, no firmware tables beyond a short ACPI, virtio devices on
//! memory-mapped transports; of QEMU's machines it boots fastest (numbers in
//! `docs/benchmarks.md`). Debian's kernels find the transports through ACPI, hence `acpi=on`.
//! Devices appear in the order given here: the first disk is `vda`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use banger_engine::seams::{Acceleration, DiskFormat, DiskLimits, LaunchPlan, Nic, VmmError};
use banger_types::{BytesPerSecond, OpsPerSecond};
use serde_json::{Value, json};

use super::files::RuntimeFiles;
use super::version::QemuVersion;

/// The descriptor on which QEMU finds the monitor's listening socket: its standard input.
const MONITOR_DESCRIPTOR: u8 = 0;
/// The descriptor on which QEMU finds the tap, if there is one: its standard output.
const TAP_DESCRIPTOR: u8 = 1;

/// What the arguments depend on beside the plan.
#[derive(Debug)]
pub(crate) struct HostFacts {
    pub(crate) acceleration: Acceleration,
    /// QEMU's version, where it is known.
    pub(crate) version: Option<QemuVersion>,
    /// Frequency of the time stamp counter in kHz, where known.
    pub(crate) tsc_khz: Option<u64>,
    /// For each disk of the plan, whether it is a block device rather than a file.
    pub(crate) block_devices: Vec<bool>,
}

/// Returns QEMU's arguments.
pub(crate) fn arguments(
    plan: &LaunchPlan,
    files: &RuntimeFiles,
    host: &HostFacts,
) -> Result<Vec<OsString>, VmmError> {
    let mut arguments = Arguments::default();
    arguments.flag("-nodefaults").flag("-no-user-config").flag("-no-reboot");
    // Its CPUs are held until `cont`: who it is gets written down before the guest does anything.
    arguments.flag("-S").pair("-display", "none");
    arguments.pair("-name", format!("guest={}", plan.name));
    arguments.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    // The guest's memory belongs neither in a core dump nor in what the host's kernel merges.
    arguments.pair(
        "-machine",
        "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,dump-guest-core=off,mem-merge=off",
    );
    // Virtio 1 rather than the drafts before it, which is what QEMU's transports speak by default.
    arguments.pair("-global", "virtio-mmio.force-legacy=false");
    match host.acceleration {
        Acceleration::Kvm => arguments.pair("-accel", "kvm").pair("-cpu", "host"),
        // Without five-level paging (la57): no guest here has 128 TiB to map, and the translator walks
        // one level less at each miss.
        Acceleration::Tcg => {
            arguments.pair("-accel", translator(host)).pair("-cpu", "max,la57=off")
        }
    };
    arguments.pair("-smp", plan.vcpus.to_string());
    arguments.pair("-m", format!("{}M", plan.memory.mib()));
    arguments.pair("-kernel", plan.bzimage.as_os_str());
    arguments.pair("-initrd", plan.initrd.as_os_str());
    arguments.pair("-append", kernel_arguments(plan, host));

    for (number, disk) in plan.disks.iter().enumerate() {
        let block_device = host.block_devices.get(number).copied().unwrap_or_default();
        let node = format!("disk{number}");
        if disk.limits.is_unlimited() {
            arguments.pair("-blockdev", block_node(&node, disk, block_device)?.to_string());
        } else {
            let (inner, group) = (format!("{node}-data"), format!("{node}-limits"));
            arguments.pair("-object", throttle_group(&group, &disk.limits).to_string());
            arguments.pair("-blockdev", block_node(&inner, disk, block_device)?.to_string());
            let limited = throttled(&node, &inner, &group, disk.read_only);
            arguments.pair("-blockdev", limited.to_string());
        }
        let serial: String = disk.role.chars().filter(char::is_ascii_alphanumeric).collect();
        arguments.pair("-device", format!("virtio-blk-device,drive={node},serial={serial}"));
    }

    arguments.pair("-object", "rng-random,id=entropy,filename=/dev/urandom");
    arguments.pair("-device", "virtio-rng-device,rng=entropy");

    arguments.pair("-chardev", listening_socket("agent", &files.agent)?);
    arguments.pair("-device", "virtio-serial-device,id=serial,max_ports=2");
    arguments.pair("-device", "virtserialport,bus=serial.0,chardev=agent,name=org.banger.agent.0");
    arguments.pair("-chardev", listening_socket("console", &files.console)?);
    arguments.pair("-serial", "chardev:console");
    arguments
        .pair("-chardev", format!("socket,id=monitor,fd={MONITOR_DESCRIPTOR},server=on,wait=off"));
    arguments.pair("-mon", "chardev=monitor,mode=control");

    match &plan.nic {
        None => {}
        Some(Nic::User { outbound }) => {
            let restrict = if *outbound { "off" } else { "on" };
            arguments.pair("-netdev", format!("user,id=net,ipv6=off,restrict={restrict}"));
            arguments.pair("-device", "virtio-net-device,netdev=net");
        }
        Some(Nic::Tap { descriptor: None, name, .. }) => {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not open");
            return Err(VmmError::Io { act: format!("describing tap {name} to QEMU"), source });
        }
        Some(Nic::Tap { mac, .. }) => {
            arguments.pair("-netdev", format!("tap,id=net,fd={TAP_DESCRIPTOR}"));
            let [a, b, c, d, e, f] = mac;
            let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
            arguments.pair("-device", format!("virtio-net-device,netdev=net,mac={mac}"));
        }
    }
    Ok(arguments.0)
}

/// The translator, with its cache of translated code held to 256 MiB: QEMU would let it grow to an
/// eighth of the host's memory (at most 1 GiB) on top of the guest's own.
///
/// One thread takes the guest's CPUs in turn unless the version is known to run them in parallel
/// safely ([`QemuVersion::translates_in_parallel`]); a guest that is sometimes corrupted is worth
/// less than one that is slower.
fn translator(host: &HostFacts) -> &'static str {
    if host.version.is_some_and(QemuVersion::translates_in_parallel) {
        "tcg,thread=multi,tb-size=256"
    } else {
        "tcg,thread=single,tb-size=256"
    }
}

/// The kernel's arguments: those this machine needs, then banger's own.
fn kernel_arguments(plan: &LaunchPlan, host: &HostFacts) -> String {
    // `reboot=t` restarts by triple fault, which needs no device; `panic=-1` does so at once.
    let mut words = vec!["console=ttyS0 quiet reboot=t panic=-1".to_owned()];
    if host.acceleration == Acceleration::Tcg {
        // See `host_clock`; there is nothing to check the counter or the timer against.
        if let Some(khz) = host.tsc_khz {
            words.push(format!("tsc_early_khz={khz}"));
        }
        words.push("tsc=reliable no_timer_check".to_owned());
    }
    words.push(plan.kernel_args.clone());
    words.join(" ")
}

/// Describes a disk as a block node, with every driver named so that QEMU probes nothing: a guest
/// could otherwise write another format's header into its raw disk.
///
/// Caching is write-back through the host's page cache. What the guest has flushed is in the host's
/// kernel (so it outlives a killed QEMU) and, because QEMU passes the flush on as fdatasync(2), on
/// the host's disk (so it outlives the host's power).
fn block_node(
    node: &str,
    disk: &banger_engine::seams::PlannedDisk,
    block_device: bool,
) -> Result<Value, VmmError> {
    let path = utf8(&disk.image.path)?;
    let driver = match disk.image.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    Ok(json!({
        "driver": driver,
        "node-name": node,
        "read-only": disk.read_only,
        "auto-read-only": false,
        "discard": "unmap",
        "cache": { "direct": false, "no-flush": false },
        "file": {
            "driver": if block_device { "host_device" } else { "file" },
            "filename": path,
            "read-only": disk.read_only,
            "auto-read-only": false,
            "discard": "unmap",
            "locking": "auto",
            "cache": { "direct": false, "no-flush": false },
        },
    }))
}

/// Limits of a disk (`ThrottleGroupProperties` of QEMU's QMP reference). 0 is no limit.
fn throttle_group(id: &str, limits: &DiskLimits) -> Value {
    json!({
        "qom-type": "throttle-group",
        "id": id,
        "limits": {
            "bps-total": limits.bandwidth.map_or(0, BytesPerSecond::get),
            "iops-total": limits.ops.map_or(0, OpsPerSecond::get),
        },
    })
}

/// A block node that passes on to `inner` within the limits of `group`.
fn throttled(node: &str, inner: &str, group: &str, read_only: bool) -> Value {
    json!({
        "driver": "throttle",
        "node-name": node,
        "throttle-group": group,
        "read-only": read_only,
        "discard": "unmap",
        "cache": { "direct": false, "no-flush": false },
        "file": inner,
    })
}

fn listening_socket(id: &str, path: &Path) -> Result<String, VmmError> {
    Ok(format!("socket,id={id},path={},server=on,wait=off", option_value(utf8(path)?)))
}

/// Returns the path in an argument that [`listening_socket`] made for the agent's port.
pub(super) fn agent_socket(argument: &str) -> Option<PathBuf> {
    let path = argument.strip_prefix("socket,id=agent,path=")?;
    let path = path.strip_suffix(",server=on,wait=off")?;
    Some(PathBuf::from(path.replace(",,", ",")))
}

/// Doubles commas, which end a value in QEMU's option syntax.
fn option_value(text: &str) -> String {
    text.replace(',', ",,")
}

fn utf8(path: &Path) -> Result<&str, VmmError> {
    path.to_str().ok_or_else(|| VmmError::Io {
        act: format!("describing {} to QEMU", path.display()),
        source: std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path is not UTF-8"),
    })
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(option.into());
        self.0.push(value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use banger_engine::seams::{DiskImage, NetLimits, PlannedDisk};

    use super::*;

    fn plan() -> LaunchPlan {
        let disk = |role: &str, path: &str, format, read_only| PlannedDisk {
            role: role.to_owned(),
            image: DiskImage { path: path.into(), format, kind: "raw".to_owned(), base: None },
            read_only,
            limits: DiskLimits::default(),
        };
        LaunchPlan {
            op_id: banger_types::OperationId::random(),
            id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            name: "box".parse().unwrap(),
            vcpus: 2.try_into().unwrap(),
            memory: 512.try_into().unwrap(),
            bzimage: "/k/vmlinuz".into(),
            vmlinux: "/k/vmlinux".into(),
            initrd: "/c/initrd".into(),
            kernel_args: "banger.hostname=box".to_owned(),
            disks: vec![
                disk("root", "/s/root,\"x\".qcow2", DiskFormat::Qcow2, false),
                disk("modules", "/s/modules.ext4", DiskFormat::Raw, true),
            ],
            nic: Some(Nic::User { outbound: false }),
            runtime_dir: "/r,un".into(),
            console_log: "/s/console.log".into(),
        }
    }

    fn text(plan: &LaunchPlan, acceleration: Acceleration) -> String {
        let files = RuntimeFiles::below(&plan.runtime_dir);
        let host = HostFacts {
            acceleration,
            version: None,
            tsc_khz: Some(2_596_145),
            block_devices: vec![false, true],
        };
        let arguments = arguments(plan, &files, &host).unwrap();
        arguments.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_command_line_is_closed_and_complete() {
        let text = text(&plan(), Acceleration::Tcg);
        for part in [
            "-nodefaults\n-no-user-config",
            "-S\n",
            "spawn=deny",
            "-append\nconsole=ttyS0 quiet reboot=t panic=-1 tsc_early_khz=2596145 tsc=reliable \
             no_timer_check banger.hostname=box\n",
            "\"filename\":\"/s/root,\\\"x\\\".qcow2\"",
            "\"driver\":\"host_device\"",
            "path=/r,,un/agent.sock,server=on,wait=off",
            "user,id=net,ipv6=off,restrict=on",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
        let read_only = text.lines().find(|line| line.contains("modules.ext4")).unwrap();
        assert_eq!(read_only.matches("\"read-only\":true").count(), 2);
    }

    #[test]
    fn a_limited_disk_goes_through_its_limits() {
        let mut plan = plan();
        assert!(!text(&plan, Acceleration::Tcg).contains("throttle"));
        plan.disks[0].limits =
            DiskLimits { bandwidth: Some((50 << 20).try_into().unwrap()), ops: None };
        let text = text(&plan, Acceleration::Tcg);
        assert!(text.contains("{\"bps-total\":52428800,\"iops-total\":0}"), "{text}");
        let limited = text.lines().find(|line| line.contains("\"throttle\"")).unwrap();
        for part in ["\"node-name\":\"disk0\"", "\"file\":\"disk0-data\""] {
            assert!(limited.contains(part), "{limited}");
        }
        assert!(text.contains("virtio-blk-device,drive=disk0,serial=root"), "{text}");
        assert_eq!(text.matches("throttle").count(), 3, "only what is limited: {text}");
    }

    #[test]
    fn only_a_known_good_version_translates_in_parallel() {
        let translator = |version: Option<(u32, u32)>| {
            let version = version.map(|(major, minor)| QemuVersion { major, minor, micro: 0 });
            super::translator(&HostFacts {
                acceleration: Acceleration::Tcg,
                version,
                tsc_khz: None,
                block_devices: vec![],
            })
        };
        for single in [None, Some((7, 2)), Some((8, 0))] {
            assert!(translator(single).contains("thread=single"), "{single:?}");
        }
        for multi in [Some((8, 1)), Some((10, 0))] {
            assert!(translator(multi).contains("thread=multi"), "{multi:?}");
        }
    }

    #[test]
    fn a_guest_under_kvm_measures_its_clock_itself() {
        let text = text(&plan(), Acceleration::Kvm);
        assert!(text.contains("-accel\nkvm\n-cpu\nhost"));
        assert!(!text.contains("tsc"));
    }

    #[test]
    fn an_open_network_and_a_tap_are_said_so() {
        let mut plan = plan();
        plan.nic = Some(Nic::User { outbound: true });
        assert!(text(&plan, Acceleration::Tcg).contains("restrict=off"));
        let descriptor = std::fs::File::open("/dev/null").unwrap().into();
        let mac = [0x52, 0x54, 0, 1, 2, 0xff];
        plan.nic = Some(Nic::Tap {
            name: "t".to_owned(),
            descriptor: Some(descriptor),
            mac,
            limits: NetLimits::default(),
        });
        let text = text(&plan, Acceleration::Tcg);
        assert!(text.contains("tap,id=net,fd=1\n"));
        assert!(text.contains("mac=52:54:00:01:02:ff"));
    }

    #[test]
    fn a_path_that_is_not_text_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let mut plan = plan();
        plan.disks[0].image.path = PathBuf::from(OsString::from_vec(vec![b'/', 0xff]));
        let host = HostFacts {
            acceleration: Acceleration::Tcg,
            version: None,
            tsc_khz: None,
            block_devices: vec![],
        };
        let error = arguments(&plan, &RuntimeFiles::below(&plan.runtime_dir), &host).unwrap_err();
        assert!(error.to_string().contains("describing"));
    }
}
