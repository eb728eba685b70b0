//! Whether the host has room for one more VM.

use crate::error::EngineError;
use crate::seams::HostMemory;

/// Bytes that stay free on the file system of the disks: room for the store, for logs and for the
/// user to delete something.
pub const DISK_FLOOR: u64 = 256 << 20;

/// Judges whether a VM of `needed` bytes of memory fits.
///
/// `running` has for each VM that runs or is being started the bytes it was promised and the bytes
/// its VMM has in use: what it has not taken yet counts as taken.
pub fn memory_room(
    memory: HostMemory,
    needed: u64,
    running: impl IntoIterator<Item = (u64, u64)>,
) -> Result<(), EngineError> {
    let promised = running
        .into_iter()
        .fold(0_u64, |sum, (bytes, in_use)| sum.saturating_add(bytes.saturating_sub(in_use)));
    let left = memory.available.saturating_sub(promised);
    if needed <= left {
        Ok(())
    } else {
        Err(EngineError::NotEnoughMemory { needed, left, promised })
    }
}

/// Judges whether `needed` bytes may be written at once below `place`, where `free` bytes are free and
/// others are about to write those of `promised`. Disks that take space only as they fill are not
/// counted: their users say how large they may become, not how large they will.
pub fn disk_room(
    free: u64,
    needed: u64,
    promised: impl IntoIterator<Item = u64>,
    place: &std::path::Path,
) -> Result<(), EngineError> {
    let promised = promised.into_iter().fold(0, u64::saturating_add);
    let left = free.checked_sub(DISK_FLOOR).and_then(|left| left.checked_sub(promised));
    if left.is_some_and(|left| needed <= left) {
        Ok(())
    } else {
        Err(EngineError::NotEnoughDisk {
            needed,
            promised,
            free,
            floor: DISK_FLOOR,
            place: place.display().to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_refusal_has_the_numbers() {
        let memory = HostMemory { total: 8 << 30, available: 3 << 30 };
        let running = [(2 << 30, 1 << 30)];
        assert!(memory_room(memory, 2 << 30, running).is_ok());
        let error = memory_room(memory, (2 << 30) + 1, running).unwrap_err();
        assert!(matches!(
            error,
            EngineError::NotEnoughMemory { left, promised, .. }
                if left == 2 << 30 && promised == 1 << 30
        ));
        assert!(error.hint().is_some_and(|hint| hint.contains("1G")), "{error:?}");
    }

    #[test]
    fn a_refusal_for_want_of_disk_has_the_numbers() {
        let place = std::path::Path::new("/s");
        let room = |free, needed, promised: &[u64]| {
            disk_room(free, needed, promised.iter().copied(), place).map_err(|it| it.to_string())
        };
        assert_eq!(room(DISK_FLOOR, 0, &[]), Ok(()));
        let error = room(DISK_FLOOR - 1, 0, &[]).unwrap_err();
        assert!(error.contains("255.9M free") && error.contains("256M"), "{error}");
        assert_eq!(room(1 << 30, 512 << 20, &[256 << 20]), Ok(()));
        let error = room(1 << 30, (512 << 20) + 1, &[128 << 20, 128 << 20]).unwrap_err();
        for part in ["512.0M", "1.0G free", "256M", "/s"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_admitted_to_a_disk_leaves_its_floor(
            free: u64, wanted in proptest::collection::vec(any::<u64>(), 0..20),
        ) {
            let mut admitted: Vec<u64> = Vec::new();
            for needed in wanted {
                if disk_room(free, needed, admitted.iter().copied(), "/".as_ref()).is_ok() {
                    admitted.push(needed);
                }
            }
            let sum: u128 = admitted.iter().map(|bytes| u128::from(*bytes)).sum();
            prop_assert!(admitted.is_empty() || sum + u128::from(DISK_FLOOR) <= u128::from(free));
        }

        #[test]
        fn admitted_vms_never_exceed_what_is_available(
            available: u64, wanted in proptest::collection::vec(any::<u64>(), 0..20),
        ) {
            let memory = HostMemory { total: available, available };
            let mut admitted: Vec<(u64, u64)> = Vec::new();
            for needed in wanted {
                if memory_room(memory, needed, admitted.iter().copied()).is_ok() {
                    admitted.push((needed, 0));
                }
            }
            let sum: u128 = admitted.iter().map(|(bytes, _)| u128::from(*bytes)).sum();
            prop_assert!(sum <= u128::from(available));
        }
    }
}
