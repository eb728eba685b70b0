//! One peer: who it is, its requests one after another, and what it may not do with our time.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use banger_gates::Owner;
use banger_helper_api::{
    ErrorCode, HelperError, LONGEST_FRAME, LONGEST_WRITE_FRAME, Method, PROTOCOL_VERSION, Request,
    Response,
};
use banger_host::Host;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::Value;

use crate::{audit, dispatch};

/// How long a frame may take from its first byte, silence and the wait for a turn included; and how
/// long a peer may not read an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a peer may keep a connection without asking anything.
const IDLE: Duration = Duration::from_secs(600);
/// How much is read at once.
const CHUNK: usize = 16 << 10;

/// Between two looks whether it is one's turn.
const STEP: Duration = Duration::from_millis(5);

/// One long frame, or long answer, at a time, from its reading to its end, so that peers cannot
/// make the helper large.
static LARGE: Mutex<()> = Mutex::new(());
/// The turn of who is large.
type Turn = Option<MutexGuard<'static, ()>>;

/// Whom the kernel says the peer is (SO_PEERCRED, unix(7)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    uid: u32,
    pid: i32,
}

impl Peer {
    /// The peer, if it may ask: root or the owner.
    pub(crate) fn of(stream: &UnixStream, owner: Owner) -> Option<Self> {
        let credentials = rustix::net::sockopt::socket_peercred(stream).ok()?;
        let uid = credentials.uid.as_raw();
        let is_allowed = uid == 0 || uid == owner.uid();
        let peer = Self { uid, pid: credentials.pid.as_raw_nonzero().get() };
        if !is_allowed {
            let code = serde_json::to_value(ErrorCode::Unauthorized).unwrap_or_default();
            audit::line(&[
                ("level", "warn".into()),
                ("peer_uid", uid.into()),
                ("peer_pid", peer.pid.into()),
                ("code", code),
            ]);
        }
        is_allowed.then_some(peer)
    }
}

/// Says no and leaves.
pub(crate) fn refuse(stream: &UnixStream, code: ErrorCode, message: &str) {
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let error = HelperError { code, message: message.to_owned(), op_id: String::new() };
    let _ = answer(stream, &Response { ok: false, result: None, error: Some(error) }, None);
    // What the peer has sent and nobody read would turn the close into a reset that eats the answer.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.set_nonblocking(true);
    let _ = (&mut &*stream).take(64 << 10).read_to_end(&mut Vec::new());
}

/// Answers requests until the peer leaves or breaks a rule.
pub(crate) fn serve(stream: &UnixStream, peer: Peer, host: &Host) {
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let mut frames = Frames { stream, limit: None, chunk: [0; CHUNK], buffer: Vec::new() };
    loop {
        let (line, mut turn) = match frames.next() {
            Ok(Some(next)) => next,
            Ok(None) => return,
            Err(reason) => return refuse(stream, ErrorCode::BadRequest, reason),
        };
        let (response, descriptor) = respond(&line, peer, host, &mut turn);
        drop(line);
        if turn.is_some() {
            banger_host::give_memory_back();
        }
        if answer(stream, &response, descriptor).is_err() {
            return;
        }
    }
}

const TOO_LONG: &str = "a line that is too long";
const TOO_SLOW: &str = "a line that takes too long";

/// The lines of a stream.
struct Frames<'a> {
    stream: &'a UnixStream,
    /// What a read may take, as the kernel was told last.
    limit: Option<Duration>,
    chunk: [u8; CHUNK],
    /// Read and not yet taken.
    buffer: Vec<u8>,
}

impl Frames<'_> {
    /// The next line without its end; none when the peer is gone or idle for too long.
    fn next(&mut self) -> Result<Option<(Vec<u8>, Turn)>, &'static str> {
        let end = || Instant::now() + PATIENCE;
        let mut deadline: Option<Instant> = (!self.buffer.is_empty()).then(end);
        let mut searched = 0;
        let mut turn = None;
        loop {
            let found = self.buffer[searched..].iter().position(|byte| *byte == b'\n');
            if let Some(at) = found.map(|at| at + searched) {
                let rest = self.buffer.split_off(at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return if is_too_long(&line) { Err(TOO_LONG) } else { Ok(Some((line, turn))) };
            }
            searched = self.buffer.len();
            let left = |end: Instant| end.saturating_duration_since(Instant::now());
            let limit = deadline.map_or(IDLE, left);
            if limit.is_zero() {
                return Err(TOO_SLOW);
            }
            if searched > LONGEST_WRITE_FRAME || searched > LONGEST_FRAME && turn.is_none() {
                if is_too_long(&self.buffer) {
                    return Err(TOO_LONG);
                }
                turn = match LARGE.try_lock() {
                    Ok(turn) => Some(turn),
                    // Nothing is in it that a panic could have left half done.
                    Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
                    Err(TryLockError::WouldBlock) => {
                        std::thread::sleep(STEP);
                        continue;
                    }
                };
            }
            if self.limit != Some(limit) {
                self.limit = Some(limit);
                let _ = self.stream.set_read_timeout(self.limit);
            }
            match (&mut &*self.stream).read(&mut self.chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.extend_from_slice(&self.chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if deadline.is_none() => return Ok(None),
                Err(_) => return Err(TOO_SLOW),
            }
            deadline = deadline.or_else(|| Some(end()));
        }
    }
}

/// Whether a line is longer than any may be, or long and not of the one method that may have such.
/// What it really is shows when it is decoded; this bounds memory only.
fn is_too_long(line: &[u8]) -> bool {
    let name = Method::WriteExt4Files.name().as_bytes();
    let says_write = || line[..LONGEST_FRAME].windows(name.len()).any(|window| window == name);
    line.len() > LONGEST_WRITE_FRAME || line.len() > LONGEST_FRAME && !says_write()
}

/// What one line comes to.
fn respond(line: &[u8], peer: Peer, host: &Host, turn: &mut Turn) -> (Response, Option<OwnedFd>) {
    let begun = Instant::now();
    let (mut op_id, mut method) = (String::new(), None);
    let outcome = decide(line, host, turn, (&mut op_id, &mut method));
    let code = outcome.as_ref().err().map(|(code, _)| *code);
    let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut fields = vec![
        ("level", Value::from(if code.is_none() { "info" } else { "error" })),
        ("method", method.map(Method::name).into()),
        ("op_id", op_id.clone().into()),
        ("peer_uid", peer.uid.into()),
        ("peer_pid", peer.pid.into()),
        ("duration_ms", milliseconds.into()),
        ("outcome", if code.is_none() { "done" } else { "refused or failed" }.into()),
    ];
    match outcome {
        Ok(answer) => {
            fields.extend(answer.note.map(|note| ("note", note.into())));
            audit::line(&fields);
            (Response { ok: true, result: Some(answer.result), error: None }, answer.descriptor)
        }
        Err((code, message)) => {
            fields.push(("code", serde_json::to_value(code).unwrap_or_default()));
            fields.push(("message", message.clone().into()));
            audit::line(&fields);
            let error = Some(HelperError { code, message, op_id });
            (Response { ok: false, result: None, error }, None)
        }
    }
}

/// Decodes the frame, and has the method done; says whose operation and which method it is as soon
/// as that is known.
fn decide(
    line: &[u8],
    host: &Host,
    turn: &mut Turn,
    (op_id, method): (&mut String, &mut Option<Method>),
) -> Result<dispatch::Answer, dispatch::Failure> {
    let bad = |message: &str| (ErrorCode::BadRequest, message.to_owned());
    // serde takes an array for the fields of an object, in their order.
    let is_object = line.trim_ascii_start().starts_with(b"{");
    is_object.then_some(()).ok_or_else(|| bad("a request is an object"))?;
    let request: Request = serde_json::from_slice(line).map_err(|error| bad(&error.to_string()))?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if request.op_id.len() > 64 || !request.op_id.bytes().all(is_plain) {
        return Err(bad("op_id: at most 64 of A-Z a-z 0-9 -"));
    }
    *op_id = request.op_id;
    if request.version != Some(PROTOCOL_VERSION) {
        return Err((ErrorCode::BadVersion, format!("version {PROTOCOL_VERSION} is spoken here")));
    }
    let unknown = || (ErrorCode::UnknownMethod, request.method.chars().take(64).collect());
    let found = Method::named(&request.method).ok_or_else(unknown)?;
    *method = Some(found);
    if line.len() > LONGEST_FRAME && found != Method::WriteExt4Files {
        return Err(bad("a line that is too long"));
    }
    if found == Method::ReadExt4File && turn.is_none() {
        *turn = Some(LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    }
    dispatch::call(found, request.params.as_ref().map_or("{}", |params| params.get()), host)
}

/// Writes a response, and a descriptor with its first byte.
fn answer(mut stream: &UnixStream, response: &Response, file: Option<OwnedFd>) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(response)?;
    bytes.push(b'\n');
    let mut sent = 0;
    if let Some(file) = &file {
        let descriptors = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let data = [IoSlice::new(&bytes)];
        sent = rustix::net::sendmsg(stream, &data, &mut control, SendFlags::NOSIGNAL)?;
    }
    // All of it within that time: a peer that reads little by little keeps others from their turn.
    let end = Instant::now() + PATIENCE;
    while sent < bytes.len() {
        let left = end.saturating_duration_since(Instant::now());
        stream.set_write_timeout(Some(left))?;
        // Within one write the time begins anew with each piece that is taken.
        sent += stream.write(&bytes[sent..bytes.len().min(sent + CHUNK)])?;
    }
    stream.set_write_timeout(Some(PATIENCE))
}
