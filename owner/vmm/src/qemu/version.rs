//! Which QEMU is installed, where that must be known before it is started for a guest.

use serde::Deserialize;

/// QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct QemuVersion {
    /// The first number: 7 of 7.2.22.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub micro: u32,
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl QemuVersion {
    /// Reads the first line of `--version`: `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
    pub(crate) fn parse(output: &str) -> Option<Self> {
        let words = output.lines().next()?.strip_prefix("QEMU emulator version ")?;
        let mut numbers = words.split(' ').next()?.split('.').map(|number| number.parse().ok());
        let version =
            Self { major: numbers.next()??, minor: numbers.next()??, micro: numbers.next()?? };
        numbers.next().is_none().then_some(version)
    }

    /// Whether two threads of the translator may run one guest without corrupting it.
    ///
    /// Before 8.1 QEMU reads guest code first and begins to watch its page for writes afterwards.
    /// A guest that changes code while another CPU comes upon it (the kernel's `text_poke`, for
    /// static keys, ftrace and modules; just-in-time compilers) can leave a translation of the old
    /// bytes behind. Linux then meets an `int3` that nobody has set, and panics, or hangs. QEMU's
    /// commit deba78709ae8 "accel/tcg: Always lock pages before translation" closed the gap.
    pub(crate) fn translates_in_parallel(self) -> bool {
        (self.major, self.minor) >= (8, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let version = |text: &str| {
            QemuVersion::parse(&format!("QEMU emulator version {text}\nCopyright (c) 2003-2022"))
        };
        let debian = version("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)").unwrap();
        assert_eq!(debian, QemuVersion { major: 7, minor: 2, micro: 22 });
        assert!(!debian.translates_in_parallel());
        assert!(!version("8.0.5").unwrap().translates_in_parallel());
        assert!(version("8.1.0").unwrap().translates_in_parallel());
        assert!(version("10.0.2").unwrap().translates_in_parallel());
        for bad in ["", "8", "8.1", "8.1.x", "8.1.0.1", "-8.1.0", "99999999999.1.0"] {
            assert_eq!(version(bad), None, "{bad:?}");
        }
        assert_eq!(QemuVersion::parse(""), None);
        assert_eq!(QemuVersion::parse("qemu-img version 8.1.0"), None);
    }
}
