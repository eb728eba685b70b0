//! Sizes and counts that users give: memory, disks, virtual CPUs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Why a size or a count was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a whole number with an optional unit.
    #[error(
        "write a whole number with an optional unit, as 512M, 8G or 2GiB (a bare number is MiB)"
    )]
    Syntax,
    /// Not a multiple of what it must be a multiple of.
    #[error("{given} is not a multiple of {unit}")]
    Granularity {
        /// What was given.
        given: String,
        /// What it must be a multiple of.
        unit: &'static str,
    },
    /// Not a whole number.
    #[error("{given:?} is not a whole number from {least} to {most}")]
    Count {
        /// What was given.
        given: String,
        /// The least allowed.
        least: u8,
        /// The most allowed.
        most: u8,
    },
    /// More bytes than 64 bits can count.
    #[error("{given} is too large")]
    TooLarge {
        /// What was given.
        given: String,
    },
    /// The unit is not known.
    #[error("unit {unit:?} is not known; use K, M, G or T, with B or iB if you like")]
    Unit {
        /// What stood after the number.
        unit: String,
    },
    /// Outside the allowed range.
    #[error("{given} is out of range; the least is {least}, the most {most}")]
    Range {
        /// What was given.
        given: String,
        /// The least allowed.
        least: String,
        /// The most allowed.
        most: String,
    },
}

/// A number of bytes, written as a whole number and a binary unit: `512M`, `8G`, `2GiB`, `64KB`.
/// All units are powers of 1024; a bare number is MiB. On the wire it is a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(u64);

impl ByteSize {
    /// Makes a size of `bytes` bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Makes a size of `mib` MiB; `None` where that exceeds 64 bits of bytes.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Option<Self> {
        match mib.checked_mul(MIB) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        // A fraction, a sign or no number at all; what is left are numbers of any length.
        if digits == 0 || unit.starts_with(['.', ',']) {
            return Err(SizeError::Syntax);
        }
        let too_large = || SizeError::TooLarge { given: text.to_owned() };
        let number: u64 = number.parse().map_err(|_| too_large())?;
        let factor = match unit.to_ascii_uppercase().as_str() {
            "" | "M" | "MB" | "MIB" => MIB,
            "K" | "KB" | "KIB" => KIB,
            "G" | "GB" | "GIB" => GIB,
            "T" | "TB" | "TIB" => TIB,
            _ => return Err(SizeError::Unit { unit: unit.to_owned() }),
        };
        number.checked_mul(factor).map(Self).ok_or_else(too_large)
    }
}

impl fmt::Display for ByteSize {
    /// Shows the largest unit that divides the size exactly, so that the text parses back to it;
    /// a size that no unit divides is shown rounded to one decimal, and so is any with `{:#}`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [(TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")] {
            if !formatter.alternate() && self.0 >= factor && self.0.is_multiple_of(factor) {
                return formatter.pad(&format!("{}{unit}", self.0 / factor));
            }
        }
        for (factor, unit) in [(TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")] {
            if self.0 >= factor {
                let tenths = u128::from(self.0) * 10 / u128::from(factor);
                return formatter.pad(&format!("{}.{}{unit}", tenths / 10, tenths % 10));
            }
        }
        formatter.pad(&format!("{}B", self.0))
    }
}

pub(crate) fn out_of_range(
    given: impl fmt::Display,
    least: impl fmt::Display,
    most: impl fmt::Display,
) -> SizeError {
    SizeError::Range { given: given.to_string(), least: least.to_string(), most: most.to_string() }
}

/// A guest disk's size: 64 MiB to 16 TiB, a multiple of 4 KiB (one ext4 block).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct DiskSize(ByteSize);

impl DiskSize {
    /// The smallest disk, 64 MiB.
    pub const LEAST: ByteSize = ByteSize(64 * MIB);
    /// The largest disk, 16 TiB.
    pub const MOST: ByteSize = ByteSize(16 * TIB);

    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.bytes()
    }
}

impl TryFrom<ByteSize> for DiskSize {
    type Error = SizeError;

    fn try_from(size: ByteSize) -> Result<Self, Self::Error> {
        if size < Self::LEAST || size > Self::MOST {
            return Err(out_of_range(size, Self::LEAST, Self::MOST));
        }
        if !size.bytes().is_multiple_of(4096) {
            return Err(SizeError::Granularity { given: size.to_string(), unit: "4K" });
        }
        Ok(Self(size))
    }
}

impl TryFrom<u64> for DiskSize {
    type Error = SizeError;

    fn try_from(bytes: u64) -> Result<Self, Self::Error> {
        ByteSize(bytes).try_into()
    }
}

impl From<DiskSize> for u64 {
    fn from(size: DiskSize) -> Self {
        size.bytes()
    }
}

impl FromStr for DiskSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<ByteSize>()?.try_into()
    }
}

impl fmt::Display for DiskSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A guest's memory in MiB: 128 MiB to 1 TiB. Written like a [`ByteSize`], whole MiB only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct MemoryMib(u32);

impl MemoryMib {
    /// The least memory, 128 MiB.
    pub const LEAST: u32 = 128;
    /// The most memory, 1 TiB.
    pub const MOST: u32 = 1 << 20;

    /// Returns the number of MiB.
    #[must_use]
    pub const fn mib(self) -> u32 {
        self.0
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 as u64 * MIB
    }
}

impl TryFrom<u32> for MemoryMib {
    type Error = SizeError;

    fn try_from(mib: u32) -> Result<Self, Self::Error> {
        if (Self::LEAST..=Self::MOST).contains(&mib) {
            return Ok(Self(mib));
        }
        Err(out_of_range(
            ByteSize(u64::from(mib) * MIB),
            ByteSize(u64::from(Self::LEAST) * MIB),
            ByteSize(u64::from(Self::MOST) * MIB),
        ))
    }
}

impl From<MemoryMib> for u32 {
    fn from(memory: MemoryMib) -> Self {
        memory.0
    }
}

impl FromStr for MemoryMib {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let size: ByteSize = text.parse()?;
        if !size.bytes().is_multiple_of(MIB) {
            return Err(SizeError::Granularity { given: size.to_string(), unit: "1M" });
        }
        u32::try_from(size.bytes() / MIB).unwrap_or(u32::MAX).try_into()
    }
}

impl fmt::Display for MemoryMib {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        ByteSize(self.bytes()).fmt(formatter)
    }
}

/// A number of virtual CPUs: 1 to 32 (Firecracker's limit, `docs/api_requests` machine-config).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct VcpuCount(u8);

impl VcpuCount {
    /// The most virtual CPUs, 32.
    pub const MOST: u8 = 32;

    /// Returns the count.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for VcpuCount {
    type Error = SizeError;

    fn try_from(count: u8) -> Result<Self, Self::Error> {
        if (1..=Self::MOST).contains(&count) {
            Ok(Self(count))
        } else {
            Err(out_of_range(count, 1, Self::MOST))
        }
    }
}

impl From<VcpuCount> for u8 {
    fn from(count: VcpuCount) -> Self {
        count.0
    }
}

impl FromStr for VcpuCount {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let not_a_count =
            || SizeError::Count { given: text.to_owned(), least: 1, most: Self::MOST };
        let count: u64 = text.trim().parse().map_err(|_| not_a_count())?;
        u8::try_from(count).map_err(|_| out_of_range(count, 1, Self::MOST))?.try_into()
    }
}

impl fmt::Display for VcpuCount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_with_and_without_units() {
        for (text, bytes) in [
            ("1", MIB),
            ("512M", 512 * MIB),
            ("8G", 8 * GIB),
            ("2GiB", 2 * GIB),
            ("64kb", 64 * KIB),
            ("1T", TIB),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
        for bad in
            ["", "G", "-1", "1.5G", "8X", "1e3", "99999999999999999999", "18446744073709551615T"]
        {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_enforced() {
        assert!("63M".parse::<DiskSize>().is_err());
        assert!("8G".parse::<DiskSize>().is_ok());
        assert!("17T".parse::<DiskSize>().is_err());
        assert!("0".parse::<MemoryMib>().is_err());
        assert!("1G".parse::<MemoryMib>().is_ok());
        assert!("1000T".parse::<MemoryMib>().is_err());
        assert!("0".parse::<VcpuCount>().is_err());
        assert!("33".parse::<VcpuCount>().is_err());
        assert!("-1".parse::<VcpuCount>().is_err());
        assert!(serde_json::from_str::<VcpuCount>("0").is_err());
    }

    #[test]
    fn a_refusal_says_what_is_wrong() {
        for (text, part) in [
            ("1.5G", "whole number"),
            ("G", "whole number"),
            ("8X", "\"X\" is not known"),
            ("1K", "1K is not a multiple of 1M"),
            ("99999999999999999999", "too large"),
            ("99999999T", "too large"),
            ("1000T", "out of range"),
        ] {
            let error = text.parse::<MemoryMib>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!("65537K".parse::<DiskSize>().unwrap_err().to_string().contains("4K"));
        let error = "many".parse::<VcpuCount>().unwrap_err().to_string();
        assert_eq!(error, "\"many\" is not a whole number from 1 to 32");
    }

    proptest::proptest! {
        #[test]
        fn whole_mib_sizes_survive_their_own_text(mib in 0_u64..(1 << 30)) {
            let size = ByteSize::from_mib(mib).unwrap();
            if mib > 0 {
                proptest::prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
            }
        }
    }
}
