//! What the host has, and the sizes of a VM that follow from it.

use std::fs;

use banger_types::{ByteSize, DiskSize, MemoryMib, VcpuCount};

/// The image of a VM unless told otherwise.
pub const DEFAULT_IMAGE: &str = "debian-bookworm";
/// The kernel of a VM unless told otherwise, or the image has one of its own.
pub const DEFAULT_KERNEL: &str = "debian-6.12-cloud";

const DEFAULT_DISK: u64 = 8 << 30;
const MOST_MEMORY_MIB: u64 = 8 << 10;
const LEAST_MEMORY_MIB: u64 = 512;
const MEMORY_STEP_MIB: u64 = 256;
const MOST_VCPUS: usize = 4;
const LEAST_VCPUS: usize = 2;

/// Returns a quarter of the host's CPUs, 2 to 4, never more than it has.
pub fn default_vcpus() -> VcpuCount {
    vcpus_for(std::thread::available_parallelism().map_or(1, usize::from))
}

fn vcpus_for(cpus: usize) -> VcpuCount {
    let count = (cpus / 4).clamp(LEAST_VCPUS, MOST_VCPUS).min(cpus.max(1));
    u8::try_from(count)
        .ok()
        .and_then(|count| VcpuCount::try_from(count).ok())
        .unwrap_or_else(|| unreachable!("1 to 4 is a number of vCPUs"))
}

/// Returns an eighth of the host's memory in steps of 256 MiB, 512 MiB to 8 GiB.
pub fn default_memory() -> MemoryMib {
    memory_for(memory_total_kib().unwrap_or(0) / 1024)
}

fn memory_for(host_mib: u64) -> MemoryMib {
    let share = host_mib / 8 / MEMORY_STEP_MIB * MEMORY_STEP_MIB;
    u32::try_from(share.clamp(LEAST_MEMORY_MIB, MOST_MEMORY_MIB))
        .ok()
        .and_then(|mib| MemoryMib::try_from(mib).ok())
        .unwrap_or_else(|| unreachable!("512 MiB to 8 GiB is a VM's memory"))
}

/// Returns the size of a disk unless told otherwise, 8 GiB.
pub fn default_disk() -> DiskSize {
    DiskSize::try_from(ByteSize::from_bytes(DEFAULT_DISK))
        .unwrap_or_else(|_| unreachable!("8 GiB is a disk size"))
}

/// Returns the host's memory in KiB (proc(5), `MemTotal`).
pub fn memory_total_kib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_a_quarter_within_bounds() {
        for (cpus, vcpus) in [(0, 1), (1, 1), (2, 2), (4, 2), (8, 2), (12, 3), (16, 4), (256, 4)] {
            assert_eq!(vcpus_for(cpus).get(), vcpus, "{cpus}");
        }
    }

    #[test]
    fn memory_is_an_eighth_within_bounds() {
        for (host, guest) in
            [(0, 512), (2048, 512), (16_384, 2048), (24_107, 2816), (1 << 20, 8192)]
        {
            assert_eq!(memory_for(host).mib(), guest, "{host}");
        }
    }

    #[test]
    fn this_host_says_how_much_memory_it_has() {
        assert!(memory_total_kib().unwrap() > 0);
    }
}
