//! Which Firecracker there is, and what is known against it.

use std::fmt;

/// A Firecracker's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FirecrackerVersion {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
    /// The third number.
    pub patch: u16,
}

/// The oldest that the driver is written for: its configuration file has all we write since then.
pub const OLDEST: FirecrackerVersion = FirecrackerVersion::new(1, 10, 0);

/// A flaw that is known of some versions.
#[derive(Clone, Copy, Debug)]
pub struct KnownFlaw {
    /// Its number.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Why a machine of banger's is not exposed, or that it is.
    pub exposure: Exposure,
    /// The versions that have it: from the first, up to but not the second, each a range.
    ranges: &'static [(FirecrackerVersion, FirecrackerVersion)],
}

/// What a flaw means for our configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// It is not reached, and why.
    NotReached(&'static str),
    /// It is reached: the version is refused.
    Reached,
}

const fn v(major: u16, minor: u16, patch: u16) -> FirecrackerVersion {
    FirecrackerVersion::new(major, minor, patch)
}

/// Firecracker's security advisories since the oldest version
/// (<https://github.com/firecracker-microvm/firecracker/security/advisories>).
pub const KNOWN_FLAWS: &[KnownFlaw] = &[
    KnownFlaw {
        name: "CVE-2026-1386",
        what: "the jailer follows links where its directories can be written by others",
        exposure: Exposure::NotReached("the jails' directory is root's alone"),
        ranges: &[(v(0, 0, 0), v(1, 13, 2)), (v(1, 14, 0), v(1, 14, 1))],
    },
    KnownFlaw {
        name: "CVE-2026-5747",
        what: "the virtio PCI transport writes out of bounds",
        exposure: Exposure::NotReached("machines have no PCI"),
        ranges: &[(v(1, 13, 0), v(1, 14, 4)), (v(1, 15, 0), v(1, 15, 1))],
    },
];

impl FirecrackerVersion {
    /// Makes one of its numbers.
    #[must_use]
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }

    /// Reads what `firecracker --version` prints first: `Firecracker v1.12.1`.
    #[must_use]
    pub fn parse(output: &str) -> Option<Self> {
        let text = output.lines().next()?.trim().strip_prefix("Firecracker v")?;
        // A build between releases says more: `1.13.0-dev`.
        let numbers = text.split(['-', '+', ' ']).next()?;
        let mut numbers = numbers.split('.').map(str::parse::<u16>);
        let mut next = || numbers.next()?.ok();
        Some(Self::new(next()?, next()?, next()?))
    }

    /// Returns the flaws that it has.
    pub fn flaws(self) -> impl Iterator<Item = &'static KnownFlaw> {
        KNOWN_FLAWS
            .iter()
            .filter(move |flaw| flaw.ranges.iter().any(|(a, b)| *a <= self && self < *b))
    }

    /// Returns why it is not run, if so.
    #[must_use]
    pub fn refusal(self) -> Option<String> {
        if self < OLDEST {
            return Some(format!("version {self} is older than {OLDEST}"));
        }
        let reached = self.flaws().find(|flaw| flaw.exposure == Exposure::Reached)?;
        Some(format!("version {self} has {}: {}", reached.name, reached.what))
    }
}

impl fmt::Display for FirecrackerVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_firecracker_prints_them() {
        let parse = FirecrackerVersion::parse;
        assert_eq!(
            parse("Firecracker v1.12.1\n\nSupported snapshot data format"),
            Some(v(1, 12, 1))
        );
        assert_eq!(parse("Firecracker v1.14.0-dev\n"), Some(v(1, 14, 0)));
        for bad in ["", "Firecracker v1.12", "firecracker 1.2.3", "Firecracker v1.x.3", "QEMU"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn flaws_are_those_of_the_version() {
        let names = |version: FirecrackerVersion| -> Vec<&str> {
            version.flaws().map(|flaw| flaw.name).collect()
        };
        assert_eq!(names(v(1, 12, 1)), ["CVE-2026-1386"]);
        assert_eq!(names(v(1, 13, 1)), ["CVE-2026-1386", "CVE-2026-5747"]);
        assert_eq!(names(v(1, 13, 2)), ["CVE-2026-5747"]);
        assert_eq!(names(v(1, 14, 0)), ["CVE-2026-1386", "CVE-2026-5747"]);
        assert_eq!(names(v(1, 14, 4)), [""; 0]);
        assert_eq!(names(v(1, 15, 0)), ["CVE-2026-5747"]);
        assert_eq!(names(v(1, 15, 1)), [""; 0]);
    }

    #[test]
    fn only_what_is_too_old_or_exposed_is_refused() {
        assert!(v(1, 9, 9).refusal().is_some_and(|why| why.contains("1.9.9 is older than 1.10.0")));
        for good in [v(1, 10, 0), v(1, 12, 1), v(1, 14, 0), v(2, 0, 0)] {
            assert_eq!(good.refusal(), None, "{good}");
        }
    }
}
