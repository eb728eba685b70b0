//! One measured number with its peer and its limit.

use std::fmt;
use std::time::Duration;

/// What a number is measured against.
#[derive(Debug, Clone)]
pub(crate) enum Limit {
    /// At most this many times the peer.
    AtMostTimes(f64),
    /// At most one so-manyth of the peer.
    FasterBy(f64),
    /// At least this many times the peer.
    AtLeastTimes(f64),
    /// At most this much, in the number's unit.
    AtMost(f64),
    /// Shown beside the others, without a limit.
    None,
}

/// A result, as it is printed and recorded.
#[derive(Debug, Clone)]
pub(crate) struct Number {
    /// What was measured.
    pub(crate) name: String,
    /// Ours, in `unit`.
    pub(crate) ours: f64,
    /// The peer and its value, where there is one.
    pub(crate) peer: Option<(String, f64)>,
    /// `µs`, `ms`, `s`, `MiB`, `MiB/s` or `answers/s`.
    pub(crate) unit: &'static str,
    /// What it must keep to.
    pub(crate) limit: Limit,
}

impl Number {
    pub(crate) fn is_met(&self) -> bool {
        let peer = self.peer.as_ref().map_or(f64::NAN, |(_, value)| *value);
        match self.limit {
            Limit::AtMostTimes(times) => self.ours <= peer * times,
            Limit::FasterBy(times) => self.ours * times <= peer,
            Limit::AtLeastTimes(times) => self.ours >= peer * times,
            Limit::AtMost(most) => self.ours <= most,
            Limit::None => true,
        }
    }

    /// Ours to the peer's, in words.
    pub(crate) fn ratio(&self) -> String {
        match (&self.peer, &self.limit) {
            (Some((_, peer)), Limit::FasterBy(_)) => {
                format!("{:.1} times faster", peer / self.ours)
            }
            (Some((_, peer)), _) => format!("{:.2} times", self.ours / peer),
            (None, _) => String::new(),
        }
    }

    /// The limit, in words.
    pub(crate) fn limit(&self) -> String {
        match self.limit {
            Limit::AtMostTimes(times) => format!("at most {times} times"),
            Limit::FasterBy(times) => format!("at least {times} times faster"),
            Limit::AtLeastTimes(times) => format!("at least {times} times"),
            Limit::AtMost(most) => format!("at most {most} {}", self.unit),
            Limit::None => String::new(),
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (&self.limit, self.is_met()) {
            (Limit::None, _) => "    ",
            (_, true) => "PASS",
            (_, false) => "OVER",
        };
        write!(out, "{verdict} {}: {:.2} {}", self.name, self.ours, self.unit)?;
        if let Some((peer, value)) = &self.peer {
            write!(out, "; {peer}: {value:.2} {}; {}", self.unit, self.ratio())?;
        }
        if !matches!(self.limit, Limit::None) {
            write!(out, " (limit: {})", self.limit())?;
        }
        Ok(())
    }
}

/// The middle of some durations, in microseconds.
pub(crate) fn median_us(durations: &[Duration]) -> f64 {
    median_ms(durations) * 1000.0
}

/// The middle of some durations, in milliseconds.
pub(crate) fn median_ms(durations: &[Duration]) -> f64 {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    middle.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(ours: f64, peer: f64, limit: Limit) -> Number {
        Number {
            name: "x".to_owned(),
            ours,
            peer: Some(("peer".to_owned(), peer)),
            unit: "ms",
            limit,
        }
    }

    #[test]
    fn limits_decide() {
        assert!(number(12.0, 10.0, Limit::AtMostTimes(1.2)).is_met());
        assert!(!number(12.1, 10.0, Limit::AtMostTimes(1.2)).is_met());
        assert!(number(1.0, 8.0, Limit::FasterBy(8.0)).is_met());
        assert!(!number(1.1, 8.0, Limit::FasterBy(8.0)).is_met());
        assert!(!number(f64::NAN, 8.0, Limit::FasterBy(8.0)).is_met());
        assert!(number(3.0, 0.0, Limit::AtMost(3.0)).is_met());
        assert!(number(9.0, 10.0, Limit::AtLeastTimes(0.9)).is_met());
        assert!(!number(8.9, 10.0, Limit::AtLeastTimes(0.9)).is_met());
        assert!(!number(f64::NAN, 10.0, Limit::AtLeastTimes(0.9)).is_met());
    }

    #[test]
    fn the_median_is_the_middle() {
        let ms = |values: &[u64]| {
            median_ms(&values.iter().map(|v| Duration::from_millis(*v)).collect::<Vec<_>>())
        };
        assert_eq!(ms(&[9, 1, 5]), 5.0);
        assert_eq!(ms(&[]), 0.0);
    }
}
