//! Why a Firecracker ended, by what it wrote to its log. The guest writes there as well: what is
//! found is shown to people and decides nothing but how its end is called.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use banger_agent_api::printable_excerpt;

/// How much of the log's end is looked at.
const TAIL: u64 = 8 << 10;
/// The longest reason, in characters.
const REASON_LIMIT: usize = 400;
/// What Firecracker says first, and at a good end (its src/firecracker/src/main.rs).
const BEGUN: &str = "Running Firecracker v";
const GOOD_END: &str = "Firecracker exiting successfully";
/// How it says why it cannot go on.
const BAD_END: [&str; 3] = ["Firecracker exiting with error", "RunWithApiError error", "Error:"];

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The guest switched itself off.
    Good,
    /// It said why it could not go on.
    Explained(String),
    /// It said nothing: somebody killed it.
    Silent,
}

/// Reads a log's end.
pub(super) fn read(log: &Path) -> End {
    let tail = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    tail().map_or(End::Silent, |bytes| understand(&String::from_utf8_lossy(&bytes)))
}

fn understand(text: &str) -> End {
    // An earlier boot's end is not this one's.
    let text = text.rfind(BEGUN).map_or(text, |at| &text[at..]);
    if text.contains(GOOD_END) {
        return End::Good;
    }
    let is_bad = |line: &&str| BAD_END.iter().any(|words| line.contains(words));
    match text.lines().rev().find(is_bad) {
        Some(line) => End::Explained(printable_excerpt(line.trim(), REASON_LIMIT)),
        None => End::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_and_earlier_boots_forgotten() {
        let begun = "2026-01-01T00:00:00 [a:main] Running Firecracker v1.12.1\n";
        let good = "[a:main] Firecracker exiting successfully. exit_code=0\n";
        let bad = "Error: RunWithApiError error: no \u{1b}[2Jkernel\n";
        assert_eq!(understand(&format!("{begun}hello\n{good}")), End::Good);
        assert_eq!(understand(&format!("{begun}{good}{begun}hello\n")), End::Silent);
        let End::Explained(words) = understand(&format!("{begun}{good}{begun}{bad}")) else {
            panic!("it said why");
        };
        assert!(words.contains("kernel") && !words.contains('\u{1b}'), "{words}");
        assert_eq!(understand(""), End::Silent);
        assert_eq!(read(Path::new("/nothing/there")), End::Silent);
    }
}
