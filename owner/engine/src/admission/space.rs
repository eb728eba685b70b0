//! Whether the host's disk can hold what a VM's disks may grow to.
//!
//! Disks take space only as they fill. What one VM alone could never be given is refused before it
//! is made, started or grown; what all of them together could not, their users are warned of: thin
//! disks are meant to be thin, and a host that is full holds its VMs without loss.

use banger_types::{ByteSize, DiskSize};

use super::DISK_FLOOR;
use crate::error::EngineError;

/// How much a VM's two disks may still take on the host, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Its root disk.
    pub root: u64,
    /// Its work disk.
    pub work: u64,
}

impl Growth {
    /// Returns how much both may take.
    #[must_use]
    pub const fn sum(self) -> u64 {
        self.root.saturating_add(self.work)
    }
}

/// What a VM wants of the file system that keeps its disks.
#[derive(Clone, Copy, Debug)]
pub struct SpaceRequest {
    /// The size of the root disk that was asked for.
    pub root_size: DiskSize,
    /// The size of the work disk that was asked for.
    pub work_size: DiskSize,
    /// What disks of these sizes may still take.
    pub asked: Growth,
    /// What the disks may still take as they are: an image can be larger than what was asked for.
    pub actual: Growth,
    /// The least that the root and the work disk can be, in bytes, of a VM that is being made or grown;
    /// `None` where the sizes are what they are.
    pub least: Option<[u64; 2]>,
}

/// What the host has, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct HostSpace<'a> {
    /// What is free.
    pub free: u64,
    /// What the disks of all other VMs may still take.
    pub others: u64,
    /// Whether one VM may have more than there is.
    pub overcommit: bool,
    /// The directory of the disks.
    pub place: &'a std::path::Path,
}

/// Returns the bytes that a VM's disks may take where `free` bytes are free.
#[must_use]
pub const fn disk_headroom(free: u64) -> u64 {
    free.saturating_sub(DISK_FLOOR)
}

/// Refuses disks whose own sizes the host could not hold once they are full; returns a warning, with
/// the numbers, of those that it cannot hold beside all others.
pub fn judge_space(
    wanted: SpaceRequest,
    host: HostSpace<'_>,
) -> Result<Option<String>, EngineError> {
    let room = disk_headroom(host.free);
    if wanted.asked.sum() > room && !host.overcommit {
        return Err(EngineError::DisksTooLarge {
            root: wanted.root_size,
            work: wanted.work_size,
            growth: wanted.asked.sum(),
            free: host.free,
            floor: DISK_FLOOR,
            place: host.place.display().to_string(),
            largest: wanted.least.and_then(|least| largest(wanted, least, room)),
        });
    }
    if wanted.actual.sum().saturating_add(host.others) <= room {
        return Ok(None);
    }
    let size = ByteSize::from_bytes;
    let others = match host.others {
        0 => String::new(),
        others => format!(", those of other VMs by {:#}", size(others)),
    };
    Ok(Some(format!(
        "the disks may still grow by {:#}{others}, and the host has {:#} free",
        size(wanted.actual.sum()),
        size(host.free)
    )))
}

/// The largest sizes that would fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Largest {
    /// This work disk beside the root disk.
    Work(ByteSize),
    /// This root disk beside the work disk.
    Root(ByteSize),
    /// Both disks together.
    Both(ByteSize),
}

fn largest(wanted: SpaceRequest, least: [u64; 2], room: u64) -> Option<Largest> {
    let possible = |bytes: u64, least: u64| {
        let whole = bytes / MIB * MIB;
        (whole >= least.max(DiskSize::LEAST.bytes())).then(|| ByteSize::from_bytes(whole))
    };
    // What a disk has taken is not free, and is there for it.
    let of = |size: DiskSize, own: u64, other: u64, least: u64| {
        let taken = size.bytes().saturating_sub(own);
        // The bookkeeping of some kinds of root disk comes to less than one part in 64.
        let overhead = own.saturating_sub(size.bytes());
        let left = room.checked_sub(other)?.saturating_add(taken).saturating_sub(overhead);
        possible(left, least)
    };
    let Growth { root, work } = wanted.asked;
    let [least_root, least_work] = least;
    let work_fits = || of(wanted.work_size, work, root, least_work).map(Largest::Work);
    let root_fits = || of(wanted.root_size, root, work, least_root).map(Largest::Root);
    let both = || possible(room - room / 64, least_root + least_work).map(Largest::Both);
    work_fits().or_else(root_fits).or_else(both)
}

const MIB: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn request(root: &str, work: &str) -> SpaceRequest {
        let (root_size, work_size): (DiskSize, DiskSize) =
            (root.parse().unwrap(), work.parse().unwrap());
        let growth = Growth { root: root_size.bytes(), work: work_size.bytes() };
        SpaceRequest { root_size, work_size, asked: growth, actual: growth, least: Some([0, 0]) }
    }

    fn host(free: u64, others: u64) -> HostSpace<'static> {
        HostSpace { free, others, overcommit: false, place: std::path::Path::new("/s") }
    }

    #[test]
    fn what_one_vm_cannot_be_given_is_refused_with_the_numbers_and_what_fits() {
        let free = 10 * GIB + DISK_FLOOR;
        assert_eq!(judge_space(request("2G", "8G"), host(free, 0)).unwrap(), None);
        for (root, work, fits) in [
            ("2G", "9G", "--disk-size 8G"),
            ("12G", "8G", "--root-size 2G"),
            ("12G", "900G", "10080M together"),
        ] {
            let error = judge_space(request(root, work), host(free, 0)).unwrap_err();
            let (said, hint) = (error.to_string(), error.hint().unwrap());
            for part in [root, work, "10.2G free", "256M", "/s"] {
                assert!(said.contains(part), "{part}: {said}");
            }
            assert!(hint.contains(fits) && hint.contains("storage.overcommit"), "{fits}: {hint}");
        }
    }

    #[test]
    fn what_is_taken_counts_as_there() {
        let mut made = request("8G", "8G");
        made.asked = Growth { root: GIB, work: 3 * GIB };
        made.actual = made.asked;
        assert_eq!(judge_space(made, host(4 * GIB + DISK_FLOOR, 0)).unwrap(), None);
        let error = judge_space(made, host(3 * GIB + DISK_FLOOR, 0)).unwrap_err();
        assert!(error.hint().unwrap().contains("--disk-size 7G"), "{:?}", error.hint());
        // No smaller than it is.
        made.least = Some([8 * GIB, 8 * GIB]);
        let error = judge_space(made, host(3 * GIB + DISK_FLOOR, 0)).unwrap_err();
        assert!(!error.hint().unwrap().contains("-size"), "{:?}", error.hint());
        // The sizes of one that is started are what they are.
        made.least = None;
        let error = judge_space(made, host(3 * GIB + DISK_FLOOR, 0)).unwrap_err();
        assert!(!error.hint().unwrap().contains("--disk-size"), "{:?}", error.hint());
    }

    #[test]
    fn all_together_are_only_warned_of_and_so_is_what_is_allowed() {
        let warning = |wanted, host| judge_space(wanted, host).unwrap();
        let beside = warning(request("2G", "2G"), host(10 * GIB, 9 * GIB)).unwrap();
        for part in ["by 4.0G", "other VMs by 9.0G", "10.0G free"] {
            assert!(beside.contains(part), "{part}: {beside}");
        }
        let allowed = HostSpace { overcommit: true, ..host(48 * GIB, 0) };
        let alone = warning(request("1G", "900G"), allowed).unwrap();
        assert!(alone.contains("901.0G") && alone.contains("48.0G free"), "{alone}");
        // An image that is larger than what was asked for is nobody's wish.
        let mut image = request("1G", "1G");
        image.actual.root = 100 * GIB;
        assert!(warning(image, host(10 * GIB, 0)).unwrap().contains("101.0G"));
    }

    proptest! {
        #[test]
        fn the_largest_that_is_named_fits_and_little_more_would(
            root in 16_384_u64..(1 << 28), work in 16_384_u64..(1 << 28), free: u64,
        ) {
            let sized = |root: u64, work: u64| {
                request(&format!("{}K", root / 1024), &format!("{}K", work / 1024))
            };
            let (root, work) = (root * 4096, work * 4096);
            let Err(error) = judge_space(sized(root, work), host(free, 0)) else {
                prop_assert!(root + work <= disk_headroom(free));
                return Ok(());
            };
            prop_assert!(root + work > disk_headroom(free));
            let EngineError::DisksTooLarge { largest: Some(largest), .. } = error else {
                prop_assert!(disk_headroom(free) < 3 * DiskSize::LEAST.bytes());
                return Ok(());
            };
            let (fits, more) = match largest {
                Largest::Work(work) => (sized(root, work.bytes()), sized(root, work.bytes() + MIB)),
                Largest::Root(root) => (sized(root.bytes(), work), sized(root.bytes() + MIB, work)),
                Largest::Both(both) => {
                    prop_assert!(both.bytes() <= disk_headroom(free));
                    return Ok(());
                }
            };
            prop_assert!(judge_space(fits, host(free, 0)).is_ok());
            prop_assert!(judge_space(more, host(free, 0)).is_err());
        }
    }
}
