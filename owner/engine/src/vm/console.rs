//! The end of a guest's console, for error messages.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use banger_agent_api::printable_excerpt;

/// Bytes looked at.
const TAIL: u64 = 4096;
/// Lines shown.
const LINES: usize = 12;

/// Returns the last lines of the log, printable; none where it cannot be read.
pub(super) async fn tail(path: &Path) -> Vec<String> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path).and_then(|mut file| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
            file.take(TAIL).read_to_end(&mut bytes)
        });
        if read.is_err() { Vec::new() } else { last_lines(&bytes) }
    })
    .await
    .unwrap_or_default()
}

fn last_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> =
        text.split(['\n', '\r']).map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..]
        .iter()
        .map(|line| printable_excerpt(line, 300))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_short_and_harmless() {
        let lines = last_lines(b"a\r\n\x1b[2Jkernel panic\n\n\xff\n");
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| !line.contains(['\x1b', '\n', '\r'])), "{lines:?}");
        assert_eq!(last_lines("x\n".repeat(100).as_bytes()).len(), LINES);
        assert_eq!(last_lines(b""), Vec::<String>::new());
    }
}
