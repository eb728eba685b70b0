//! The end of a guest's console, for error messages.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use banger_agent_api::printable_excerpt;

/// Bytes looked at: an oops of the kernel with its call trace is about 4 KiB.
const TAIL: u64 = 16 * 1024;
/// Last lines shown.
const LINES: usize = 12;
/// Lines shown before them which say what went wrong.
const REASONS: usize = 4;
/// With these a line of the kernel begins to say why it cannot go on.
const REASON_WORDS: [&str; 6] =
    ["BUG:", "Oops:", "RIP:", "Kernel panic", "general protection fault", "invalid opcode"];
/// Debian's kernels complain of this at every boot of a machine without PCI, as a microvm is, and
/// no kernel argument stops them (`pci=off` does not): it would hide what matters.
const NOISE: &str = "PCI: Fatal: No config space access function found";

/// Where a boot begins in a console log, which goes on over all boots of a VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct BootStart {
    inode: u64,
    length: u64,
}

/// Returns where the next output goes; `None` where there is no log yet.
pub(super) async fn boot_start(path: &Path) -> Option<BootStart> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some(BootStart { inode: metadata.ino(), length: metadata.len() })
}

/// Returns the last lines of the boot that began at `start`, printable, after those that tell of the
/// kernel's own end; none where the log cannot be read.
pub(super) async fn tail(path: PathBuf, start: Option<BootStart>) -> Vec<String> {
    let read = tokio::task::spawn_blocking(move || {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        // Another file means that the log was full and began anew: all of it is of this boot.
        // So is all of one that is shorter than it was: it was cut.
        let is_same =
            |start: &BootStart| start.inode == metadata.ino() && start.length <= metadata.len();
        let boot = start.filter(is_same).map_or(0, |at| at.length);
        file.seek(SeekFrom::Start(boot.max(metadata.len().saturating_sub(TAIL))))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(telling_lines(&bytes))
    });
    read.await.ok().and_then(Result::ok).unwrap_or_default()
}

fn telling_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut reasons = Vec::new();
    let mut last = VecDeque::new();
    for line in text.split(['\n', '\r']).map(str::trim_end) {
        if line.is_empty() || line.contains(NOISE) {
            continue;
        }
        last.push_back(line);
        if last.len() > LINES {
            // What is not among the last lines is kept only if it gives a reason.
            let gives_reason = |line: &&str| REASON_WORDS.iter().any(|word| line.contains(word));
            let room = REASONS - reasons.len();
            reasons.extend(last.pop_front().filter(gives_reason).into_iter().take(room));
        }
    }
    reasons.into_iter().chain(last).map(|line| printable_excerpt(line, 300)).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn the_tail_is_short_and_harmless() {
        let lines = telling_lines(b"a\r\n\x1b[2Jkernel panic\n\n\xff\n");
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| !line.contains(['\x1b', '\n', '\r'])), "{lines:?}");
        assert_eq!(telling_lines("x\n".repeat(100).as_bytes()).len(), LINES);
        assert_eq!(telling_lines(b""), Vec::<String>::new());
        assert_eq!(telling_lines("BUG:\n".repeat(100).as_bytes()).len(), LINES + REASONS);
    }

    #[test]
    fn why_the_kernel_ended_comes_before_its_last_lines() {
        let mut text = format!("[    1.3] {NOISE}\n[    2.3] Oops: int3: 0000\n");
        for line in 0..30 {
            writeln!(text, "[    2.3]  frame {line}").unwrap();
        }
        let lines = telling_lines(text.as_bytes());
        assert_eq!(lines.len(), LINES + 1);
        assert_eq!(lines[0], "[    2.3] Oops: int3: 0000");
        assert_eq!(lines[LINES], "[    2.3]  frame 29");
    }

    #[tokio::test]
    async fn earlier_boots_are_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        assert!(boot_start(&log).await.is_none());
        std::fs::write(&log, "earlier\n").unwrap();
        assert_eq!(tail(log.clone(), None).await, ["earlier"]);
        let start = boot_start(&log).await;
        assert_eq!(tail(log.clone(), start).await, Vec::<String>::new());
        std::fs::write(&log, "earlier\nnow\n").unwrap();
        assert_eq!(tail(log.clone(), start).await, ["now"]);
        // The log was full: it was renamed and another one begun.
        std::fs::rename(&log, directory.path().join("console.log.1")).unwrap();
        std::fs::write(&log, "later\n").unwrap();
        assert_eq!(tail(log.clone(), start).await, ["later"]);
    }
}
