//! The helper's log, which is read here and not written.

use serde_json::{Map, Value};

/// Holds a line to what a log is: an object on one line.
pub(crate) fn line(fields: &[(&str, Value)]) {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let text = Value::Object(Map::from_iter(fields)).to_string();
    assert!(!text.bytes().any(|byte| byte < b' '), "{text:?}");
}
