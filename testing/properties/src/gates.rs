//! Each gate of the trust list against its rule.

use banger_gate_tables::{Kind, inputs};
use banger_gates::{
    BridgeName, ContextId, DmDevice, DmName, DriveId, GroupName, GuestPath, JailId, JailRoot,
    KernelArguments, LoopDevice, MacAddress, ManagedPath, MemoryMib, NetworkConfig, Owner, Pid,
    ResolverAddress, Runtime, Signal, SnapshotParts, State, TapName, VcpuCount, VmmKind, VmmPath,
};
use banger_helper_api::{Network, SnapshotHandles};
use serde_json::Value;

use crate::{places, policy, rules};

/// Between the texts of an input that has more than one: no byte of UTF-8.
const SEPARATOR: u8 = 0xff;

/// A gate.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// The type, as the trust list names it.
    pub name: &'static str,
    /// Whether it takes an input; none for bytes that are no input of it.
    ///
    /// # Panics
    /// It takes what its rule refuses, refuses what it takes, or makes something else of it.
    pub check: fn(&[u8]) -> Option<bool>,
    kinds: &'static [Kind],
    more: &'static [&'static [u8]],
}

impl Gate {
    /// The name of its fuzz target: `BridgeName` is fuzzed by `bridge_name`.
    #[must_use]
    pub fn target(&self) -> String {
        let mut name = String::new();
        for letter in self.name.chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }
}

/// All gates, as the trust list has them.
pub const GATES: &[Gate] = &[
    gate("BridgeName", bridge_name, &[Kind::BridgeName]),
    gate("TapName", tap_name, &[Kind::TapName]),
    Gate {
        more: &[
            b"br-fc\xff172.16.0.1\xff24\xff172.16.0.2",
            b"br-fc-a\xff10.9.8.7\xff8\xff10.255.255.255",
            b"br-fc\xff192.168.44.1\xff32\xff192.168.44.1",
            b"br-fc\xff100.64.0.1\xff31\xff100.64.0.0",
            b"br-fc\xff198.18.0.1\xff15\xff198.19.255.254",
            b"br-fc\xff172.16.0.1\xff11\xff8.8.8.8",
        ],
        ..gate("NetworkConfig", network_config, &[])
    },
    gate("MacAddress", mac_address, &[Kind::Mac]),
    gate("GroupName", group_name, &[Kind::Group]),
    gate("ResolverAddress", resolver_address, &[Kind::Resolver]),
    gate("DmName", dm_name, &[Kind::DmName]),
    gate("DmDevice", dm_device, &[Kind::DmDevice, Kind::RemoveTarget]),
    gate("LoopDevice", loop_device, &[Kind::OptionalLoop]),
    Gate {
        more: &[
            b"\xff\xff\xff",
            b"/dev/loop1\xff/dev/loop2\xfffc-rootfs-a\xff/dev/mapper/fc-rootfs-a",
            b"/dev/loop1\xff/dev/loop1\xff\xff",
            b"\xff\xfffc-rootfs-a\xff/dev/mapper/fc-rootfs-b",
            b"\xff/dev/loop9\xff\xff/dev/mapper/fc-rootfs-b",
        ],
        ..gate("SnapshotParts", snapshot_parts, &[])
    },
    gate("ManagedPath", managed_path, &[Kind::StatePath, Kind::LinkPlace]),
    gate("GuestPath", guest_path, &[Kind::GuestPath]),
    gate("JailRoot", jail_root, &[Kind::ChrootRoot]),
    Gate {
        more: &[b"/srv/own/firecracker", b"/srv/own/jailer"],
        ..gate("VmmPath", vmm_path, &[Kind::Firecracker, Kind::Jailer])
    },
    gate("JailId", jail_id, &[Kind::VmId]),
    gate("DriveId", drive_id, &[Kind::DriveId]),
    gate("KernelArguments", kernel_arguments, &[Kind::KernelArguments]),
    gate("VcpuCount", vcpu_count, &[Kind::Vcpus]),
    gate("MemoryMib", memory_mib, &[Kind::Memory]),
    gate("ContextId", context_id, &[Kind::ContextId]),
    gate("Pid", pid, &[Kind::Pid]),
    gate("Signal", signal, &[Kind::Signal]),
    Gate {
        more: &[b"\x01\0\0\0\x01\0\0\0", b"\0\0\0\0\x01\0\0\0", b"\x01\0\0\0\xff\xff\xff\xff"],
        ..gate("Owner", owner, &[])
    },
];

const fn gate(
    name: &'static str,
    check: fn(&[u8]) -> Option<bool>,
    kinds: &'static [Kind],
) -> Gate {
    Gate { name, check, kinds, more: &[] }
}

/// The inputs of its tables, and what is only here.
pub(crate) fn seeds(gate: &Gate) -> Vec<Vec<u8>> {
    let inputs = gate.kinds.iter().flat_map(|kind| inputs(*kind, &places()));
    let bytes = inputs.filter_map(|input| match input.value {
        Value::String(text) => Some(text.into_bytes()),
        // As they come, negative ones too.
        Value::Number(number) => {
            let number = number.as_i64().or_else(|| i64::try_from(number.as_u64()?).ok());
            number.map(|number| number.to_le_bytes().to_vec())
        }
        _ => None,
    });
    bytes.chain(gate.more.iter().map(|bytes| bytes.to_vec())).collect()
}

/// Fails unless the gate says what the rule says.
fn agree(input: &dyn std::fmt::Debug, is_taken: bool, is_good: bool) -> bool {
    assert_eq!(is_taken, is_good, "taken, and good by the rule: {input:?}");
    is_taken
}

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

fn texts<const N: usize>(data: &[u8]) -> Option<[&str; N]> {
    let texts: Option<Vec<&str>> = data.split(|byte| *byte == SEPARATOR).map(text).collect();
    texts?.try_into().ok()
}

/// A gate for a text that is kept as it is.
macro_rules! names {
    ($($function:ident: $name:ident;)*) => {$(
        fn $function(data: &[u8]) -> Option<bool> {
            let text = text(data)?;
            let taken = $name::parse("x", text);
            if let Ok(name) = &taken {
                assert_eq!(name.as_str(), text);
            }
            Some(agree(&text, taken.is_ok(), rules::$function(text)))
        }
    )*};
}

names! {
    bridge_name: BridgeName;
    tap_name: TapName;
    group_name: GroupName;
    dm_name: DmName;
    guest_path: GuestPath;
    jail_id: JailId;
    drive_id: DriveId;
    kernel_arguments: KernelArguments;
}

fn network_config(data: &[u8]) -> Option<bool> {
    let [bridge, address, prefix, guest] = texts::<4>(data)?;
    let network = Network {
        bridge_name: bridge.to_owned(),
        bridge_ip: address.to_owned(),
        cidr: prefix.to_owned(),
    };
    let (taken, good) = (NetworkConfig::parse(&network), rules::network(bridge, address, prefix));
    if let (Ok(taken), Some((address, length))) = (&taken, good) {
        assert_eq!(taken.bridge().as_str(), bridge);
        assert_eq!((u32::from(taken.address()), taken.prefix()), (address, length));
        let guest = rules::ipv4(guest)?;
        assert_eq!(taken.has_guest(guest.into()), rules::guest(guest, (address, length)));
        assert!(!rules::guest(u32::from(taken.network()), (address, length)) || length > 30);
    }
    Some(agree(&network, taken.is_ok(), good.is_some()))
}

fn mac_address(data: &[u8]) -> Option<bool> {
    let text = text(data)?;
    let taken = MacAddress::parse("x", text);
    if let Ok(mac) = &taken {
        assert_eq!(mac.to_string(), text.to_ascii_lowercase());
    }
    Some(agree(&text, taken.is_ok(), rules::mac_address(text)))
}

fn resolver_address(data: &[u8]) -> Option<bool> {
    let text = text(data)?;
    let taken = ResolverAddress::parse("x", text);
    if let Ok(address) = &taken {
        // It is a word on a command line.
        let shown = address.to_string();
        assert!(!shown.starts_with('-') && rules::resolver_address(&shown), "{shown}");
        assert_eq!(ResolverAddress::parse("x", &shown).as_ref(), Ok(address));
    }
    Some(agree(&text, taken.is_ok(), rules::resolver_address(text)))
}

fn dm_device(data: &[u8]) -> Option<bool> {
    let text = text(data)?;
    let taken = DmDevice::parse("x", text);
    if let Ok(device) = &taken {
        assert_eq!(device.path(), text);
        assert!(rules::dm_name(device.name().as_str()));
    }
    Some(agree(&text, taken.is_ok(), rules::dm_device(text)))
}

fn loop_device(data: &[u8]) -> Option<bool> {
    let text = text(data)?;
    let taken = LoopDevice::parse("x", text);
    if let Ok(device) = &taken {
        assert_eq!(format!("/dev/loop{}", device.number()), text);
    }
    Some(agree(&text, taken.is_ok(), rules::loop_device(text)))
}

fn snapshot_parts(data: &[u8]) -> Option<bool> {
    let [base, cow, name, device] = texts::<4>(data)?;
    let handles = SnapshotHandles {
        base_loop: base.to_owned(),
        cow_loop: cow.to_owned(),
        dm_name: name.to_owned(),
        dm_dev: device.to_owned(),
    };
    let or_blank = |text: &str, rule: fn(&str) -> bool| text.is_empty() || rule(text);
    let is_one_device =
        name.is_empty() || device.is_empty() || device == format!("/dev/mapper/{name}");
    let is_good = or_blank(base, rules::loop_device)
        && or_blank(cow, rules::loop_device)
        && or_blank(name, rules::dm_name)
        && or_blank(device, rules::dm_device)
        && is_one_device
        && (base != cow || base.is_empty());
    let taken = SnapshotParts::parse(&handles);
    if let Ok(parts) = &taken {
        let shown = |part: Option<LoopDevice>| {
            part.map(|part| format!("/dev/loop{}", part.number())).unwrap_or_default()
        };
        assert_eq!((shown(parts.base_loop), shown(parts.cow_loop)), (base.into(), cow.into()));
        let one = if name.is_empty() { device.trim_start_matches("/dev/mapper/") } else { name };
        assert_eq!(parts.dm.as_ref().map_or("", |name| name.as_str()), one);
    }
    Some(agree(&handles, taken.is_ok(), is_good))
}

fn managed_path(data: &[u8]) -> Option<bool> {
    let (text, policy) = (text(data)?, policy());
    let state = ManagedPath::<State>::parse("x", text, &policy);
    let runtime = ManagedPath::<Runtime>::parse("x", text, &policy);
    let state = state.as_ref().map(|path| path.relative().to_str().unwrap()).ok();
    let runtime = runtime.as_ref().map(|path| path.relative().to_str().unwrap()).ok();
    assert_eq!(state, rules::managed_path(text, "/var/lib/banger"), "{text:?}");
    assert_eq!(runtime, rules::managed_path(text, "/run/banger"), "{text:?}");
    Some(state.is_some() || runtime.is_some())
}

fn jail_root(data: &[u8]) -> Option<bool> {
    let (text, policy) = (text(data)?, policy());
    let taken = JailRoot::parse("x", text, &policy).ok();
    let id = taken.as_ref().map(|root| root.id().as_str());
    assert_eq!(id, rules::jail_root(text, "/var/lib/banger-root/jail"), "{text:?}");
    Some(id.is_some())
}

fn vmm_path(data: &[u8]) -> Option<bool> {
    let (text, policy) = (text(data)?, policy());
    let is_taken = [VmmKind::Firecracker, VmmKind::Jailer].map(|kind| {
        let taken = VmmPath::parse("x", text, kind, &policy);
        if let Ok(path) = &taken {
            assert_eq!(path.path(), std::path::Path::new(text));
        }
        agree(&text, taken.is_ok(), rules::vmm_path(text, kind.file_name()))
    });
    Some(is_taken.contains(&true))
}

fn number(data: &[u8]) -> Option<i64> {
    data.first_chunk().map(|bytes| i64::from_le_bytes(*bytes))
}

fn vcpu_count(data: &[u8]) -> Option<bool> {
    let count = u32::try_from(number(data)?).ok()?;
    let taken = VcpuCount::parse("x", count);
    assert!(taken.as_ref().map_or(true, |taken| taken.get() == count));
    Some(agree(&count, taken.is_ok(), count > 0 && count < 33))
}

fn memory_mib(data: &[u8]) -> Option<bool> {
    let mib = u64::try_from(number(data)?).ok()?;
    let taken = MemoryMib::parse("x", mib, policy().host_memory_mib);
    assert!(taken.as_ref().map_or(true, |taken| taken.get() == mib));
    Some(agree(&mib, taken.is_ok(), mib > 127 && mib < 4097))
}

fn context_id(data: &[u8]) -> Option<bool> {
    let id = u32::try_from(number(data)?).ok()?;
    let taken = ContextId::parse("x", id);
    assert!(taken.as_ref().map_or(true, |taken| taken.get() == id));
    Some(agree(&id, taken.is_ok(), id > 2 && id != u32::MAX))
}

fn pid(data: &[u8]) -> Option<bool> {
    let number = number(data)?;
    let taken = Pid::parse("x", number, &policy());
    assert!(taken.as_ref().map_or(true, |taken| i64::from(taken.get()) == number));
    let is_good = number > 1 && number < 4_194_305 && number != 77;
    Some(agree(&number, taken.is_ok(), is_good))
}

fn signal(data: &[u8]) -> Option<bool> {
    let text = text(data)?;
    let taken = Signal::parse("x", text);
    if let Ok(signal) = &taken {
        let (name, _) = Signal::ALL.iter().find(|(_, known)| known == signal).unwrap();
        assert!(text.is_empty() || text.to_ascii_uppercase().ends_with(name), "{text}: {name}");
    }
    Some(agree(&text, taken.is_ok(), rules::signal(text)))
}

fn owner(data: &[u8]) -> Option<bool> {
    let (uid, rest) = data.split_first_chunk()?;
    let (uid, gid) = (u32::from_le_bytes(*uid), u32::from_le_bytes(*rest.first_chunk()?));
    let taken = Owner::new(uid, gid);
    assert!(taken.map_or(true, |owner| (owner.uid(), owner.gid()) == (uid, gid)));
    let is_somebody = |id: u32| id != 0 && id != u32::MAX;
    Some(agree(&(uid, gid), taken.is_ok(), is_somebody(uid) && is_somebody(gid)))
}
