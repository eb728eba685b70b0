//! Giving mapped pages of the program back.

/// Unmaps the pages of this program's code, which the kernel maps again, from the page cache, as
/// they are needed. A process that has done its start-up and now only waits keeps the few it uses.
pub fn release_program_pages() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some(permissions)) = (fields.next(), fields.next()) else { continue };
        let backed_by_file = line.contains(" /");
        let Some((start, end)) = range.split_once('-') else { continue };
        let address = |text| usize::from_str_radix(text, 16).ok();
        let (Some(start), Some(end)) = (address(start), address(end)) else { continue };
        if permissions != "r-xp" || !backed_by_file || end <= start {
            continue;
        }
        // SAFETY: the range is one mapping of this process as the kernel has just listed it, and
        // nothing here unmaps code. It is private, backed by a file and never writable, so every
        // page equals the file's and comes back unchanged at the next access.
        unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(start),
                end - start,
                libc::MADV_DONTNEED,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn code_still_runs_afterwards() {
        super::release_program_pages();
        assert_eq!(std::hint::black_box("still here").len(), 10);
    }
}
