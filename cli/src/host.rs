//! What the host has, and the sizes of a VM that follow from it.

use std::fs;

use banger_types::{DiskSize, MemoryMib, VcpuCount};

/// The image of a VM unless told otherwise.
pub const DEFAULT_IMAGE: &str = "debian-bookworm";
/// The kernel of a VM unless told otherwise, or the image has one of its own.
pub const DEFAULT_KERNEL: &str = "debian-6.12-cloud";

const DEFAULT_DISK: u64 = 8 << 30;
const DISK_STEP: u64 = 64 << 20;
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

/// The sizes of a new machine's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSizes {
    /// The root disk's.
    pub root: DiskSize,
    /// The work disk's.
    pub work: DiskSize,
    /// Whether one of them is less than usual, because the host has no more.
    pub reduced: bool,
}

/// Returns the sizes of a machine's disks: those that are given, 8 GiB for others, and less where no more
/// than `headroom` bytes may be taken.
pub fn disk_sizes(
    root: Option<DiskSize>,
    work: Option<DiskSize>,
    headroom: Option<u64>,
) -> DiskSizes {
    // Some kinds of disk take a little more than they hold.
    let headroom = headroom.map_or(u64::MAX, |bytes| bytes - bytes / 64);
    let given = [root, work].into_iter().flatten().map(DiskSize::bytes).sum();
    let others = if root.is_none() && work.is_none() { 2 } else { 1 };
    let share = headroom.saturating_sub(given) / others / DISK_STEP * DISK_STEP;
    let bytes = match share.clamp(DiskSize::LEAST.bytes(), DEFAULT_DISK) {
        // What is given leaves no room: that is refused, and told of beside the usual size.
        least if given > 0 && share < least => DEFAULT_DISK,
        bytes => bytes,
    };
    let size = DiskSize::try_from(bytes)
        .unwrap_or_else(|_| unreachable!("64 MiB to 8 GiB in steps of 64 MiB is a disk's size"));
    DiskSizes {
        root: root.unwrap_or(size),
        work: work.unwrap_or(size),
        reduced: bytes < DEFAULT_DISK && (root.is_none() || work.is_none()),
    }
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
    fn disks_are_of_8g_or_of_what_fits() {
        let gib = 1_u64 << 30;
        for (given, headroom, sizes, reduced) in [
            ([None, None], None, ["8G", "8G"], false),
            ([None, None], Some(40 * gib), ["8G", "8G"], false),
            ([None, None], Some(10 * gib), ["4992M", "4992M"], true),
            ([None, None], Some(0), ["64M", "64M"], true),
            ([None, Some("4G")], Some(8 * gib), ["3968M", "4G"], true),
            ([Some("1G"), None], Some(40 * gib), ["1G", "8G"], false),
            ([Some("1G"), None], Some(gib), ["1G", "8G"], false),
            // What is asked for is for the daemon to refuse.
            ([Some("90G"), Some("9G")], Some(gib), ["90G", "9G"], false),
        ] {
            let [root, work] = given.map(|size| size.map(|size| size.parse().unwrap()));
            let found = disk_sizes(root, work, headroom);
            assert_eq!([found.root, found.work], sizes.map(|size| size.parse().unwrap()));
            assert_eq!(found.reduced, reduced, "{given:?} {headroom:?}");
            if let (None, None, Some(room)) = (root, work, headroom.filter(|room| *room > gib)) {
                assert!(found.root.bytes() + found.work.bytes() <= room);
            }
        }
    }

    #[test]
    fn this_host_says_how_much_memory_it_has() {
        assert!(memory_total_kib().unwrap() > 0);
    }
}
