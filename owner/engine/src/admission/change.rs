//! What may be changed of a VM that does not run.

use banger_daemon_api::vm::{SetVm, VmSpec};
use banger_types::{ByteSize, DiskSize};

use crate::error::EngineError;

/// What a change is judged by; all in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Size of the root disk, which may be larger than was asked for; 0 where there is none yet.
    pub root_size: u64,
    /// Size of the work disk; 0 where there is none yet.
    pub work_size: u64,
    /// The host's memory.
    pub host_memory: u64,
}

/// Returns the VM's new size and shape, or why it cannot be: nothing is asked for, a disk would
/// shrink, or the host has less memory.
pub fn change(spec: &VmSpec, wanted: &SetVm, bounds: Bounds) -> Result<VmSpec, EngineError> {
    if *wanted == SetVm::default() {
        return Err(EngineError::NothingToChange);
    }
    let mut new = spec.clone();
    new.vcpus = wanted.vcpus.unwrap_or(spec.vcpus);
    new.disk_limits.bandwidth = wanted.disk_bandwidth.unwrap_or(spec.disk_limits.bandwidth);
    new.disk_limits.ops = wanted.disk_ops.unwrap_or(spec.disk_limits.ops);
    if let Some(memory) = wanted.memory_mib {
        if memory.bytes() > bounds.host_memory {
            return Err(EngineError::BeyondHost {
                what: "memory",
                wanted: memory.bytes(),
                has: bounds.host_memory,
            });
        }
        new.memory_mib = memory;
    }
    new.root_size = grown("root disk", spec.root_size, bounds.root_size, wanted.root_size)?;
    new.work_size = grown("work disk", spec.work_size, bounds.work_size, wanted.work_size)?;
    Ok(new)
}

/// A disk only grows: from what it has, not from what was asked for once.
fn grown(
    what: &'static str,
    asked: DiskSize,
    actual: u64,
    wanted: Option<DiskSize>,
) -> Result<DiskSize, EngineError> {
    let Some(wanted) = wanted else { return Ok(asked) };
    let current = asked.bytes().max(actual);
    if wanted.bytes() < current {
        return Err(EngineError::WouldShrink {
            what,
            current: ByteSize::from_bytes(current),
            wanted,
        });
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_daemon_api::vm::{DiskLimits, NetLimits, VmmChoice};
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn spec() -> VmSpec {
        VmSpec {
            vcpus: 1.try_into().unwrap(),
            memory_mib: 512.try_into().unwrap(),
            root_size: "1G".parse().unwrap(),
            work_size: "1G".parse().unwrap(),
            nat: true,
            allow_lan: false,
            group: None,
            ports: Vec::new(),
            vmm: VmmChoice::Auto,
            disk_limits: DiskLimits::default(),
            net_limits: NetLimits::default(),
        }
    }

    const BOUNDS: Bounds = Bounds { root_size: 2 * GIB, work_size: GIB, host_memory: 8 * GIB };

    fn set(change: impl FnOnce(&mut SetVm)) -> Result<VmSpec, EngineError> {
        let mut wanted = SetVm::default();
        change(&mut wanted);
        super::change(&spec(), &wanted, BOUNDS)
    }

    #[test]
    fn only_what_is_given_changes() {
        assert!(matches!(set(|_| ()), Err(EngineError::NothingToChange)));
        let four = set(|set| set.vcpus = Some(4.try_into().unwrap())).unwrap();
        assert_eq!(four, VmSpec { vcpus: 4.try_into().unwrap(), ..spec() });
        let limits = DiskLimits { ops: Some(100.try_into().unwrap()), ..DiskLimits::default() };
        let limited = set(|set| set.disk_ops = Some(limits.ops)).unwrap();
        assert_eq!(limited, VmSpec { disk_limits: limits, ..spec() });
        let free = SetVm { disk_ops: Some(None), ..SetVm::default() };
        assert_eq!(change(&limited, &free, BOUNDS).unwrap(), spec());
    }

    #[test]
    fn a_disk_never_shrinks_below_what_it_has() {
        // Its image was larger than what was asked for.
        for bad in ["64M", "1G", "2047M"] {
            let error = set(|set| set.root_size = Some(bad.parse().unwrap())).unwrap_err();
            assert!(error.to_string().contains("root disk"), "{bad}: {error}");
            assert!(error.to_string().contains("2G"), "{bad}: {error}");
        }
        assert!(set(|set| set.root_size = Some("2G".parse().unwrap())).is_ok());
        assert!(set(|set| set.work_size = Some("1023M".parse().unwrap())).is_err());
        assert!(set(|set| set.work_size = Some("1G".parse().unwrap())).is_ok());
    }

    #[test]
    fn what_the_host_could_never_carry_is_refused_with_the_numbers() {
        let error = set(|set| set.memory_mib = Some("8193M".parse().unwrap())).unwrap_err();
        assert!(error.to_string().contains("8193M") && error.to_string().contains("8.0G"));
        assert!(set(|set| set.memory_mib = Some("8G".parse().unwrap())).is_ok());
        assert!(error.hint().is_some());
    }

    proptest! {
        #[test]
        fn what_is_taken_neither_shrinks_nor_exceeds_the_host(
            root in 16_384_u64..(1 << 32), work in 16_384_u64..(1 << 32), memory in 128_u32..(1 << 20),
            root_size in 0..(1_u64 << 44), work_size in 0..(1_u64 << 44),
            host_memory: u64,
        ) {
            let wanted = SetVm {
                memory_mib: memory.try_into().ok(),
                root_size: (root * 4096).try_into().ok(),
                work_size: (work * 4096).try_into().ok(),
                ..SetVm::default()
            };
            let bounds = Bounds { root_size, work_size, host_memory };
            if let Ok(new) = change(&spec(), &wanted, bounds) {
                prop_assert!(new.root_size.bytes() >= root_size.max(spec().root_size.bytes()));
                prop_assert!(new.work_size.bytes() >= work_size.max(spec().work_size.bytes()));
                prop_assert!(new.memory_mib.bytes() <= host_memory);
                // Asked once more, it is the same.
                prop_assert_eq!(change(&new, &wanted, bounds).unwrap(), new);
            }
        }
    }
}
