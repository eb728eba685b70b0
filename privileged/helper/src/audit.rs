//! One line of JSON per call on standard error: who asked for what, and what came of it.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serializer as _;
use serde_json::{Serializer, Value};

/// Writes a line that only says something.
pub(crate) fn say(level: &str, message: String) {
    line(&[("level", level.into()), ("message", message.into())]);
}

/// Writes a line; a log that cannot be written stops nothing.
pub(crate) fn line(fields: &[(&str, Value)]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = u64::try_from(now.as_millis()).unwrap_or(0);
    let (mut text, time) = (Vec::new(), ("time_ms", time.into()));
    let fields = std::iter::once(&time).chain(fields).map(|(name, value)| (name, value));
    let _ = Serializer::new(&mut text).collect_map(fields);
    text.push(b'\n');
    let _ = std::io::stderr().lock().write_all(&text);
}
