//! The frequency of the host's time stamp counter, which QEMU's translator passes to the guest as it
//! is.
//!
//! The `microvm` machine has no timer that a guest could measure its counter against, so without
//! `tsc_early_khz` (Linux `Documentation/admin-guide/kernel-parameters.txt`) a guest under TCG never
//! gets past its clock set-up. The frequency is taken from `bogomips` in `/proc/cpuinfo`: on x86 that
//! is twice the counter's frequency in MHz, as the host's kernel knows it (`lpj_fine` in
//! `arch/x86/kernel/tsc.c`), printed to 5 kHz and the same for the whole boot, which `cpu MHz` (the
//! momentary clock where there is frequency scaling) is not.

use std::io;

/// What no real counter is below or above, in kHz.
const PLAUSIBLE: std::ops::RangeInclusive<u64> = 100_000..=20_000_000;

/// Returns the frequency of the host's time stamp counter in kHz; `None` where the host does not
/// tell.
pub(crate) fn tsc_khz() -> io::Result<Option<u64>> {
    Ok(parse_tsc_khz(&std::fs::read_to_string("/proc/cpuinfo")?))
}

fn parse_tsc_khz(cpuinfo: &str) -> Option<u64> {
    let first_field = |wanted: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == wanted).then(|| value.trim())
        })
    };
    let from_bogomips = first_field("bogomips").and_then(thousandths).map(|value| value / 2);
    let from_clock = || first_field("cpu MHz").and_then(thousandths);
    from_bogomips
        .filter(|khz| PLAUSIBLE.contains(khz))
        .or_else(|| from_clock().filter(|khz| PLAUSIBLE.contains(khz)))
}

/// Parses a decimal number into thousandths: `5192.29` is 5192290.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bogomips_is_twice_the_frequency() {
        let cpuinfo = "processor\t: 0\ncpu MHz\t\t: 800.123\nbogomips\t: 5192.29\n\n\
                       processor\t: 1\nbogomips\t: 9.99\n";
        assert_eq!(parse_tsc_khz(cpuinfo), Some(2_596_145));
        assert_eq!(parse_tsc_khz("cpu MHz : 2596.148\n"), Some(2_596_148));
        assert_eq!(parse_tsc_khz("bogomips : 2.00\ncpu MHz : 2400\n"), Some(2_400_000));
        for bad in ["", "bogomips : x", "bogomips : -1.0", "bogomips : 1.é", "cpu MHz : 0"] {
            assert_eq!(parse_tsc_khz(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_host_tells() {
        assert!(tsc_khz().unwrap().is_some());
    }
}
