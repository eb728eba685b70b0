//! Tables and lists of facts as text: two spaces between columns, nothing drawn.

use banger_agent_api::printable_excerpt;
use jiff::Timestamp;

const CELL_LIMIT: usize = 200;

/// Makes a text from the daemon or a guest harmless to show.
pub fn printable(text: &str) -> String {
    printable_excerpt(text, 10 * CELL_LIMIT)
}

/// Says a number of bytes with one decimal at most.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let mut scaled = u128::from(bytes) * 10;
    let mut unit = 0;
    while scaled >= 10_240 && unit + 1 < UNITS.len() {
        scaled /= 1024;
        unit += 1;
    }
    match scaled % 10 {
        0 => format!("{}{}", scaled / 10, UNITS[unit]),
        tenth => format!("{}.{tenth}{}", scaled / 10, UNITS[unit]),
    }
}

/// Lays out a heading and rows; the last column is not padded.
pub fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| printable_excerpt(cell, CELL_LIMIT)))
        .collect();
    let mut widths = heading.map(|cell| cell.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        line.truncate(line.trim_end().len());
        line
    };
    std::iter::once(line(heading))
        .chain(rows.iter().map(|row| line(row.each_ref().map(String::as_str))))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Lays out `name: value` lines with the values below each other.
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count() + 1).max().unwrap_or(0);
    facts
        .iter()
        .map(|(name, value)| {
            let value = printable(value);
            format!("{:width$}  {value}", format!("{name}:"))
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Says how long ago `then` was.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    let (count, unit) = match seconds {
        0..=59 => (seconds, "second"),
        60..=3599 => (seconds / 60, "minute"),
        3600..=86_399 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_two_spaces_apart_without_trailing_blanks() {
        let rows =
            [["box".to_owned(), "running".to_owned()], ["a-long-name".to_owned(), "-".to_owned()]];
        insta::assert_snapshot!(table(["NAME", "STATE"], &rows), @r"
        NAME         STATE
        box          running
        a-long-name  -
        ");
    }

    #[test]
    fn cells_cannot_steer_the_terminal() {
        assert!(!table(["A"], &[["x\x1b[2J\n".to_owned()]]).contains('\x1b'));
        assert!(!facts(&[("a", "\x1b".to_owned())]).contains('\x1b'));
    }

    #[test]
    fn sizes_have_one_decimal_at_most() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5K"),
            (8 << 30, "8G"),
            (74_303_536 << 10, "70.8G"),
            (u64::MAX, "16777215.9T"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn ages_use_one_unit_and_never_run_backwards() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(ago(at(100), at(101)), "1 second ago");
        assert_eq!(ago(at(200), at(100)), "0 seconds ago");
        assert_eq!(ago(at(0), at(7200)), "2 hours ago");
        assert_eq!(ago(at(0), at(86_400 * 3)), "3 days ago");
    }
}
