//! One line of JSON per call on standard error: who asked for what, and what came of it.

use std::fs::File;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use banger_host::open_guarded;
use serde::Serializer as _;
use serde_json::{Serializer, Value};

/// How much of a word is told: it may be the peer's.
const LONGEST: usize = 1 << 10;
/// The size at which a log that is a file is put aside for a new one.
const LARGEST: i64 = 16 << 20;

/// Writes a line that only says something.
pub(crate) fn say(level: &str, message: String) {
    line(&[("level", level.into()), ("message", message.into())]);
}

/// Writes a line; a log that cannot be written stops nothing.
pub(crate) fn line(fields: &[(&str, Value)]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = u64::try_from(now.as_millis()).unwrap_or(0);
    let (mut text, time) = (Vec::new(), ("time_ms", time.into()));
    let short = |value: &Value| match value.as_str() {
        Some(text) if text.len() > LONGEST => text.chars().take(LONGEST).collect::<String>().into(),
        _ => value.clone(),
    };
    let fields = std::iter::once(&time).chain(fields).map(|(name, value)| (name, short(value)));
    let _ = Serializer::new(&mut text).collect_map(fields);
    text.push(b'\n');
    let mut log = std::io::stderr().lock();
    // A file, in direct mode; the journal has limits of its own.
    if rustix::fs::fstat(&log).is_ok_and(|stat| stat.st_size > LARGEST) {
        let _ = begin_anew();
    }
    let _ = log.write_all(&text);
}

/// Puts the log aside as `LOG.1`, in place of an older one, and goes on in a new one.
fn begin_anew() -> std::io::Result<()> {
    let path = std::fs::read_link("/proc/self/fd/2")?;
    // Where only root can swap it, or else nothing is made by a name.
    let found = open_guarded(&path, true).map_err(std::io::Error::other)?;
    found.ok_or(std::io::ErrorKind::NotFound)?;
    let mut aside = path.clone().into_os_string();
    aside.push(".1");
    std::fs::rename(&path, aside)?;
    let log = File::options().append(true).create_new(true).open(path)?;
    Ok(rustix::stdio::dup2_stderr(log)?)
}
