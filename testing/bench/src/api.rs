//! Just enough HTTP over the daemon's socket to time a request from outside.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The answer to one request, read line by line.
pub(crate) struct Answer {
    reader: BufReader<UnixStream>,
    chunked: bool,
    pending: Vec<u8>,
}

/// Sends a request; fails unless the answer is a success.
pub(crate) fn send(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Answer> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(120))).context("set a deadline")?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: banger\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body.as_bytes()))
        .context("send a request")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).context("read an answer")?;
    let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut chunked = false;
    loop {
        line.clear();
        reader.read_line(&mut line).context("read an answer's head")?;
        chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
        if line.trim().is_empty() {
            break;
        }
    }
    let mut answer = Answer { reader, chunked, pending: Vec::new() };
    if !status.starts_with('2') {
        bail!("{method} {path}: {status}: {}", answer.text().unwrap_or_default());
    }
    Ok(answer)
}

impl Answer {
    /// Reads some more of the body; `false` at its end.
    fn more(&mut self) -> Result<bool> {
        if !self.chunked {
            let part = self.reader.fill_buf().context("read a body")?;
            let count = part.len();
            self.pending.extend_from_slice(part);
            self.reader.consume(count);
            return Ok(count > 0);
        }
        let mut line = String::new();
        self.reader.read_line(&mut line).context("read a chunk's size")?;
        let size = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
        let start = self.pending.len();
        self.pending.resize(start + size, 0);
        self.reader.read_exact(&mut self.pending[start..]).context("read a chunk")?;
        line.clear();
        self.reader.read_line(&mut line).context("read a chunk's end")?;
        Ok(size > 0)
    }

    fn text(&mut self) -> Result<String> {
        while self.more()? {}
        Ok(String::from_utf8_lossy(&self.pending).into_owned())
    }

    /// The whole body as JSON.
    pub(crate) fn json(mut self) -> Result<Value> {
        let text = self.text()?;
        serde_json::from_str(&text).with_context(|| format!("JSON in {text:?}"))
    }

    /// The next line of the body as JSON; `None` at its end.
    pub(crate) fn next_line(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(serde_json::from_slice(&line).context("JSON in a line")?));
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }
}

/// Follows an operation until `reached` says so or it has ended.
pub(crate) fn follow(
    socket: &Path,
    started: &Value,
    reached: impl Fn(&Value) -> bool,
) -> Result<()> {
    let id = started["operation"]["id"].as_str().context("an operation has an id")?;
    let mut events = send(socket, "GET", &format!("/v1/operations/{id}/events"), None)?;
    while let Some(operation) = events.next_line()? {
        match operation["state"].as_str() {
            Some("failed" | "cancelled") => bail!("the operation failed: {}", operation["error"]),
            _ if reached(&operation) => return Ok(()),
            _ => {}
        }
    }
    bail!("the operation ended without what was waited for")
}
