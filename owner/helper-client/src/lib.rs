//! `bangerd`'s side of the root helper's socket: one connection per call, every answer bounded in
//! size and time.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use banger_helper_api::{HelperError, Method, PROTOCOL_VERSION, Request, Response};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// How long an act may take: the helper's own limits for its tools are shorter.
const LONGEST_CALL: Duration = Duration::from_secs(180);
/// A file of 16 MiB as base64, and what is around it.
const LONGEST_ANSWER: usize = 24 << 20;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens, or not the helper.
    #[error("reach the root helper at {}", socket.display())]
    Reach {
        /// Its socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It does not answer as it should.
    #[error("{method}: the root helper's answer")]
    Answer {
        /// What was asked.
        method: Method,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// It said no, or that it failed.
    #[error("{method}: {}", error.message)]
    Helper {
        /// What was asked.
        method: Method,
        /// Its words.
        error: HelperError,
    },
}

impl CallError {
    /// Returns what to do next, where that is known.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Reach { .. } => Some(
                "the root helper does not run: in direct mode the next banger command of root starts it, \
                 installed: sudo systemctl restart bangerd-root",
            ),
            _ => None,
        }
    }
}

/// The helper at a socket.
#[derive(Clone, Debug)]
pub struct HelperClient {
    socket: PathBuf,
}

impl HelperClient {
    /// Names the socket; nothing is opened.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Has a method done, as part of the operation `op_id`.
    ///
    /// # Errors
    /// See [`CallError`]; after [`CallError::Answer`] it may have been done all the same.
    pub async fn call<P: Serialize + Sync, R: DeserializeOwned>(
        &self,
        method: Method,
        params: &P,
        op_id: &str,
    ) -> Result<R, CallError> {
        self.call_for_descriptor(method, params, op_id).await.map(|(result, _)| result)
    }

    /// The same, with the descriptor that came along, if one did.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_for_descriptor<P: Serialize + Sync, R: DeserializeOwned>(
        &self,
        method: Method,
        params: &P,
        op_id: &str,
    ) -> Result<(R, Option<OwnedFd>), CallError> {
        let answer = |source| CallError::Answer { method, source };
        let request = Request {
            version: Some(PROTOCOL_VERSION),
            method: method.name().to_owned(),
            params: Some(said(params).map_err(|error| answer(error.into()))?),
            op_id: op_id.to_owned(),
        };
        let mut line = serde_json::to_vec(&request).map_err(|error| answer(error.into()))?;
        line.push(b'\n');
        let stream = self.connect().await?;
        let exchange = tokio::time::timeout(LONGEST_CALL, exchange(stream, &line)).await;
        let (line, descriptor) =
            exchange.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(answer)?;
        let response: Response =
            serde_json::from_slice(&line).map_err(|error| answer(error.into()))?;
        match response {
            Response { ok: true, result: Some(result), .. } => {
                let result = serde_json::from_str(result.get());
                result.map(|result| (result, descriptor)).map_err(|error| answer(error.into()))
            }
            Response { ok: false, error: Some(error), .. } => {
                Err(CallError::Helper { method, error })
            }
            _ => {
                Err(answer(io::Error::new(io::ErrorKind::InvalidData, "neither result nor error")))
            }
        }
    }

    /// Connects, and makes sure that root is at the other end.
    async fn connect(&self) -> Result<UnixStream, CallError> {
        let reach = |source| CallError::Reach { socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(reach)?;
        let uid = stream.peer_cred().map_err(reach)?.uid();
        if uid != 0 {
            let cause = format!("uid {uid} listens there, not root");
            return Err(reach(io::Error::new(io::ErrorKind::PermissionDenied, cause)));
        }
        Ok(stream)
    }
}

/// Parameters as a helper of any version takes them: what is not there is not mentioned.
fn said(params: &impl Serialize) -> serde_json::Result<Box<RawValue>> {
    let mut params = serde_json::to_value(params)?;
    leave_out_nulls(&mut params);
    to_raw_value(&params)
}

fn leave_out_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(leave_out_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(leave_out_nulls),
        _ => {}
    }
}

/// Sends a line; returns the answer without its end, and the descriptor that came with it.
async fn exchange(mut stream: UnixStream, line: &[u8]) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    stream.write_all(line).await?;
    let (mut answer, mut descriptor) = (Vec::new(), None);
    loop {
        let received = stream.async_io(Interest::READABLE, || receive(&stream, &mut descriptor));
        let bytes = received.await?;
        if bytes.is_empty() || answer.len() + bytes.len() > LONGEST_ANSWER {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&bytes);
        // One request, one line: whatever stood behind it would be nobody's.
        if let Some(end) = answer.iter().rposition(|byte| *byte == b'\n') {
            answer.truncate(end);
            return Ok((answer, descriptor));
        }
    }
}

/// Takes what there is, and keeps the first descriptor of it; others are closed.
fn receive(stream: &UnixStream, descriptor: &mut Option<OwnedFd>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for one in descriptors {
                descriptor.get_or_insert(one);
            }
        }
    }
    bytes.truncate(received.bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_helper_api::{DeleteTapParams, Empty};
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    async fn call(answer: &'static [u8]) -> Result<Empty, CallError> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let client = HelperClient::new(socket);
        let params = DeleteTapParams { tap_name: "tap-fc-a".to_owned() };
        let call = client.call(Method::DeleteTap, &params, "op-1");
        let serve = async {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut line = Vec::new();
            // A caller that found out who we are leaves without a word.
            let _ = BufReader::new(&mut stream).read_until(b'\n', &mut line).await;
            let _ = stream.write_all(answer).await;
        };
        tokio::join!(call, serve).0
    }

    #[tokio::test]
    async fn only_roots_answers_count() {
        let is_root = std::fs::metadata("/proc/self").unwrap();
        let is_root = std::os::unix::fs::MetadataExt::uid(&is_root) == 0;
        let outcome = call(b"{\"ok\":true,\"result\":{}}\n").await;
        assert_eq!(outcome.is_ok(), is_root);
        if !is_root {
            assert!(matches!(outcome, Err(CallError::Reach { .. })));
            return;
        }
        let no = b"{\"ok\":false,\"error\":{\"code\":\"bad_params\",\"message\":\"no\"}}\n";
        let Err(CallError::Helper { error, .. }) = call(no).await else { panic!() };
        assert_eq!(error.message, "no");
        for bad in [&b""[..], b"{}\n", b"{\"ok\":true}\n", b"x\n", b"{\"ok\":true,\"result\":{}}"] {
            assert!(matches!(call(bad).await, Err(CallError::Answer { .. })), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_said() {
        let client = HelperClient::new("/nothing/there".into());
        let params = DeleteTapParams { tap_name: String::new() };
        let outcome = client.call::<_, Empty>(Method::DeleteTap, &params, "").await;
        assert!(outcome.unwrap_err().to_string().contains("/nothing/there"));
    }
}
