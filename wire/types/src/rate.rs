//! How fast something may be: bytes and operations a second.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::size::{ByteSize, SizeError, out_of_range};

/// A bandwidth: 64 KiB to 1 TiB a second. Written as a [`ByteSize`], with `/s` if you like: `50M`,
/// `1G/s`. On the wire it is a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct BytesPerSecond(ByteSize);

impl BytesPerSecond {
    /// The least, 64 KiB a second: below it a guest does not boot.
    pub const LEAST: ByteSize = ByteSize::from_bytes(64 << 10);
    /// The most, 1 TiB a second.
    pub const MOST: ByteSize = ByteSize::from_bytes(1 << 40);

    /// Returns the number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.bytes()
    }
}

impl TryFrom<u64> for BytesPerSecond {
    type Error = SizeError;

    fn try_from(bytes: u64) -> Result<Self, Self::Error> {
        let size = ByteSize::from_bytes(bytes);
        if (Self::LEAST..=Self::MOST).contains(&size) {
            return Ok(Self(size));
        }
        Err(out_of_range(size, Self::LEAST, Self::MOST))
    }
}

impl From<BytesPerSecond> for u64 {
    fn from(rate: BytesPerSecond) -> Self {
        rate.get()
    }
}

impl FromStr for BytesPerSecond {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        text.strip_suffix("/s").unwrap_or(text).parse::<ByteSize>()?.bytes().try_into()
    }
}

impl fmt::Display for BytesPerSecond {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/s", self.0)
    }
}

/// Operations a second: 10 to 10,000,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct OpsPerSecond(u32);

impl OpsPerSecond {
    /// The least, 10 a second: below it a guest does not boot.
    pub const LEAST: u32 = 10;
    /// The most, ten million a second.
    pub const MOST: u32 = 10_000_000;

    /// Returns the number of operations.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for OpsPerSecond {
    type Error = SizeError;

    fn try_from(count: u32) -> Result<Self, Self::Error> {
        if (Self::LEAST..=Self::MOST).contains(&count) {
            return Ok(Self(count));
        }
        Err(out_of_range(count, Self::LEAST, Self::MOST))
    }
}

impl From<OpsPerSecond> for u32 {
    fn from(rate: OpsPerSecond) -> Self {
        rate.get()
    }
}

impl FromStr for OpsPerSecond {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let count = text.strip_suffix("/s").unwrap_or(text).parse::<u32>();
        count.map_err(|_| out_of_range(text, Self::LEAST, Self::MOST))?.try_into()
    }
}

impl fmt::Display for OpsPerSecond {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/s", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_back() {
        for text in ["64K/s", "50M/s", "1T/s"] {
            assert_eq!(text.parse::<BytesPerSecond>().unwrap().to_string(), text);
        }
        assert_eq!("50".parse::<BytesPerSecond>().unwrap().get(), 50 << 20, "bare is MiB");
        assert_eq!("10/s".parse::<OpsPerSecond>().unwrap().to_string(), "10/s");
    }

    #[test]
    fn what_is_out_of_range_or_no_number_is_refused_also_on_the_wire() {
        for bad in ["0", "63K", "2T", "-1M", "", "/s", "5X", "none"] {
            assert!(bad.parse::<BytesPerSecond>().is_err(), "{bad}");
        }
        for bad in ["9", "10000001", "-1", "", "1K", "none", "1.5"] {
            assert!(bad.parse::<OpsPerSecond>().is_err(), "{bad}");
        }
        for bad in ["65535", "-1", "\"64K\"", "1099511627777"] {
            assert!(serde_json::from_str::<BytesPerSecond>(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<OpsPerSecond>("9").is_err());
        assert_eq!(serde_json::from_str::<BytesPerSecond>("65536").unwrap().get(), 65536);
    }
}
