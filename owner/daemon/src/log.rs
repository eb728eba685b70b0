//! The daemon's log: one JSON object a line, in a file that never grows beyond its cap.
//!
//! At the cap the file becomes `<file>.1`, replacing the one before. The level is that of
//! `BANGER_LOG_LEVEL` (`error`, `warn`, `info`, `debug`, `trace`), `info` by default.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use crate::start_error::StartError;

/// The most bytes of one log file.
const CAP: u64 = 8 << 20;

/// Variable with the level.
const LEVEL_VARIABLE: &str = "BANGER_LOG_LEVEL";

/// Sends all events to `path` from here on, panics included.
pub fn start(path: &Path) -> Result<(), StartError> {
    let file = CappedFile::open(path.to_owned(), CAP)
        .map_err(|source| StartError::Io { act: format!("opening {}", path.display()), source })?;
    let wanted = std::env::var_os(LEVEL_VARIABLE);
    let level = match wanted.as_deref().map(|text| text.to_string_lossy().parse()) {
        Some(Ok(level)) => level,
        Some(Err(_)) | None => LevelFilter::INFO,
    };
    let subscriber = tracing_subscriber::registry().with(level).with(
        tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_writer(Log(Mutex::new(file))),
    );
    // Only a second call could fail.
    let _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, message = panic_message(panic), "panic: a defect of banger");
    }));
    if wanted.is_some_and(|text| text.to_string_lossy().parse::<LevelFilter>().is_err()) {
        tracing::warn!("{LEVEL_VARIABLE} is none of error, warn, info, debug, trace; info is used");
    }
    Ok(())
}

fn panic_message<'a>(panic: &'a std::panic::PanicHookInfo<'_>) -> &'a str {
    panic.payload_as_str().unwrap_or("(no message)")
}

#[derive(Debug)]
struct Log(Mutex<CappedFile>);

impl<'a> MakeWriter<'a> for Log {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LogLine(&self.0)
    }
}

#[derive(Debug)]
struct LogLine<'a>(&'a Mutex<CappedFile>);

impl Write for LogLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct CappedFile {
    path: PathBuf,
    file: File,
    size: u64,
    cap: u64,
}

impl CappedFile {
    fn open(path: PathBuf, cap: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, cap })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&self.path, old)?;
        *self = Self::open(self.path.clone(), self.cap)?;
        Ok(())
    }
}

impl Write for CappedFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let length = line.len() as u64;
        if self.size > 0 && self.size.saturating_add(length) > self.cap {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.size = self.size.saturating_add(length);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_two_files_of_at_most_its_cap() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = CappedFile::open(path.clone(), 100).unwrap();
        for number in 0..50 {
            log.write_all(format!("line number {number:04}\n").as_bytes()).unwrap();
        }
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("line number 0049\n"));
        assert!(text.len() <= 100);
        let old = std::fs::read_to_string(directory.path().join("log.1")).unwrap();
        assert!(old.len() <= 100 && old.starts_with("line number"));
        // Size is counted across restarts.
        let log = CappedFile::open(path, 100).unwrap();
        assert_eq!(log.size, text.len() as u64);
    }

    #[test]
    fn a_link_is_no_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(CappedFile::open(path, 100).is_err());
    }
}
