//! The multiplexer's state machine: bytes in, bytes out, streams between; no I/O, no clock.
//!
//! Memory is bounded by `max_streams * (window + SEND_BUFFER)` whatever the peer does.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;

use bytes::{Buf, BytesMut};

use super::codec::{
    Deframer, Found, FrameType, Greeting, GreetingKind, MAX_PAYLOAD, put_frame, put_greeting,
    put_padding,
};

/// Bytes a stream takes from its writer before the peer's credit lets them go.
const SEND_BUFFER: usize = 64 * 1024;

/// Largest window a peer may announce, and most credit it may pile up.
const MAX_WINDOW: u32 = 16 * 1024 * 1024;

/// Which end of the pipe this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Chooses the session and opens streams.
    Host,
    /// Accepts both.
    Guest,
}

/// Limits of one end.
#[derive(Clone, Copy, Debug)]
pub struct SessionConfig {
    /// Bytes accepted per stream before the peer must wait for credit, 1 to 16 MiB.
    pub window: u32,
    /// Most streams at once, those still flushing included.
    pub max_streams: usize,
}

/// One stream of one session; never reused, so a late call on a dead stream cannot hit another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    epoch: u32,
    id: u32,
}

/// Why a stream cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no session yet, or not any more.
    #[error("the guest agent is not attached")]
    Detached,
    /// Too many streams are open.
    #[error("too many streams are open to the guest agent")]
    TooMany,
}

/// What a peer did that ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Bytes that are no frame of this session.
    #[error("the byte stream lost its framing")]
    Desynchronised,
    /// The guest's agent was restarted.
    #[error("the guest agent was restarted")]
    Restarted,
    /// More bytes than the window allows.
    #[error("the peer ignored the credit window of a stream")]
    Window,
    /// A stream number that cannot be.
    #[error("the peer named a stream that was never opened")]
    Stream,
    /// A frame or greeting that makes no sense here.
    #[error("the peer sent a frame that is not allowed")]
    Protocol,
}

#[derive(Debug, Default)]
struct Stream {
    received: BytesMut,
    /// Bytes the peer may still send.
    receive_window: u32,
    /// Bytes the application took that the peer has no credit for yet.
    unacknowledged: u32,
    receive_end: bool,
    sending: BytesMut,
    send_window: u32,
    open_pending: bool,
    credit_pending: bool,
    end_requested: bool,
    end_sent: bool,
    reset_pending: bool,
    /// The stream is dead: reset by the peer, or its session is gone.
    dead: bool,
    /// The peer takes no more bytes.
    send_refused: bool,
    /// The application dropped its handle.
    released: bool,
    /// The stream is in the queue of those with something to send.
    queued: bool,
    read_waker: Option<Waker>,
    write_waker: Option<Waker>,
}

impl Stream {
    fn wake(&mut self) {
        for waker in [self.read_waker.take(), self.write_waker.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn wants_to_send(&self) -> bool {
        if self.dead {
            return false;
        }
        let data = !self.sending.is_empty() && self.send_window > 0;
        let end = self.end_requested && !self.end_sent && self.sending.is_empty();
        // A reset waits for what a finish has promised to send before it.
        let reset = self.reset_pending && (self.end_sent || !self.end_requested);
        self.open_pending || self.credit_pending || reset || data || end
    }
}

/// Both directions of one pipe. See the module documentation.
#[derive(Debug)]
pub struct Session {
    role: Role,
    config: SessionConfig,
    deframer: Deframer,
    /// The nonce of the session that is up.
    attached: Option<u64>,
    /// Host: the nonce whose ACK is awaited.
    attaching: Option<u64>,
    peer_window: u32,
    /// Greeting to send before anything else, and whether padding goes before it.
    greeting: Option<(Greeting, bool)>,
    epoch: u32,
    /// Highest stream number opened in this session.
    last_id: u32,
    streams: BTreeMap<StreamKey, Stream>,
    ready: VecDeque<StreamKey>,
    accepted: VecDeque<StreamKey>,
}

impl Session {
    /// Makes one end of a pipe that is not attached yet.
    #[must_use]
    pub fn new(role: Role, config: SessionConfig) -> Self {
        let window = config.window.clamp(1, MAX_WINDOW);
        Self {
            role,
            config: SessionConfig { window, ..config },
            deframer: Deframer::default(),
            attached: None,
            attaching: None,
            peer_window: 0,
            greeting: None,
            epoch: 0,
            last_id: 0,
            streams: BTreeMap::new(),
            ready: VecDeque::new(),
            accepted: VecDeque::new(),
        }
    }

    /// Host: begins a new session named `nonce` (unpredictable, never used before), ending the old one.
    pub fn attach(&mut self, nonce: u64) {
        self.detach();
        // Zero would make the padding look like a valid trailer.
        let nonce = nonce.max(1);
        self.attaching = Some(nonce);
        let hello = Greeting { kind: GreetingKind::Hello, nonce, window: self.config.window };
        self.greeting = Some((hello, true));
    }

    /// Guest: tells a host that may believe in an old session that the agent has just started.
    pub fn announce_boot(&mut self) {
        if self.attached.is_none() {
            let boot = Greeting { kind: GreetingKind::Boot, nonce: 0, window: self.config.window };
            self.greeting = Some((boot, true));
        }
    }

    /// Ends the session: every stream fails, and only a greeting begins another.
    pub fn detach(&mut self) {
        self.attached = None;
        self.attaching = None;
        self.greeting = None;
        self.deframer.scan();
        self.ready.clear();
        self.accepted.clear();
        self.streams.retain(|_, stream| {
            stream.dead = true;
            stream.sending = BytesMut::new();
            stream.wake();
            !stream.released
        });
    }

    /// Whether a session is up.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// Returns a number that changes with every session that begins.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Takes bytes from the pipe. After an error the session was detached. The host begins another;
    /// for the guest the greeting of the next one may already have followed in the same bytes.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.deframer.push(bytes);
        self.drain()
    }

    fn drain(&mut self) -> Result<(), SessionError> {
        // The deframer is taken out while its payload is borrowed.
        let mut deframer = std::mem::take(&mut self.deframer);
        let mut result = Ok(());
        while let Some(found) = deframer.next() {
            let step = match found {
                Found::Greeting(greeting) => match self.on_greeting(greeting) {
                    Ok(Some(nonce)) => {
                        deframer.accept(nonce);
                        Ok(())
                    }
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                },
                Found::Frame { kind, id, payload } => self.on_frame(kind, id, payload),
                Found::Desynchronised => Err(SessionError::Desynchronised),
            };
            if step.is_err() {
                result = step;
                self.detach();
                deframer.scan();
            }
        }
        self.deframer = deframer;
        result
    }

    /// Returns the nonce of the session that this greeting begins.
    fn on_greeting(&mut self, greeting: Greeting) -> Result<Option<u64>, SessionError> {
        match (self.role, greeting.kind) {
            (Role::Guest, GreetingKind::Hello) => {
                self.detach();
                self.begin(greeting)?;
                let ack = Greeting { kind: GreetingKind::Ack, ..greeting };
                self.greeting = Some((Greeting { window: self.config.window, ..ack }, false));
                Ok(Some(greeting.nonce))
            }
            (Role::Host, GreetingKind::Ack) if self.attaching == Some(greeting.nonce) => {
                self.begin(greeting)?;
                Ok(Some(greeting.nonce))
            }
            // Answers to greetings of a daemon that is gone, or that we replaced.
            (Role::Host, GreetingKind::Ack) if self.attached.is_none() => Ok(None),
            (Role::Host, GreetingKind::Boot) => {
                // Whatever was said to the old agent is lost, a greeting on its way included.
                let nothing = self.attached.is_none() && self.attaching.is_none();
                if nothing { Ok(None) } else { Err(SessionError::Restarted) }
            }
            _ => Err(SessionError::Protocol),
        }
    }

    fn begin(&mut self, greeting: Greeting) -> Result<(), SessionError> {
        if greeting.nonce == 0 || !(1..=MAX_WINDOW).contains(&greeting.window) {
            return Err(SessionError::Protocol);
        }
        self.attaching = None;
        self.attached = Some(greeting.nonce);
        self.peer_window = greeting.window;
        self.epoch = self.epoch.wrapping_add(1);
        self.last_id = 0;
        Ok(())
    }

    fn on_frame(&mut self, kind: FrameType, id: u32, payload: &[u8]) -> Result<(), SessionError> {
        let key = StreamKey { epoch: self.epoch, id };
        if kind == FrameType::Open {
            return self.on_open(key, payload);
        }
        if id == 0 || id > self.last_id {
            return Err(SessionError::Stream);
        }
        // A frame for a stream that was closed here crossed our reset on its way: ignore it.
        let Some(stream) = self.streams.get_mut(&key).filter(|stream| !stream.dead) else {
            return Ok(());
        };
        match kind {
            FrameType::Open => {}
            FrameType::Data => {
                let length = u32::try_from(payload.len()).map_err(|_| SessionError::Window)?;
                if stream.receive_end {
                    return Err(SessionError::Protocol);
                }
                stream.receive_window =
                    stream.receive_window.checked_sub(length).ok_or(SessionError::Window)?;
                if !stream.released {
                    // Copied, so that a small unread piece cannot pin a large chunk.
                    stream.received.extend_from_slice(payload);
                    if let Some(waker) = stream.read_waker.take() {
                        waker.wake();
                    }
                }
            }
            FrameType::End => {
                stream.receive_end = true;
                stream.credit_pending = false;
                if let Some(waker) = stream.read_waker.take() {
                    waker.wake();
                }
            }
            FrameType::Reset => {
                // After its end, a reset only says that the peer reads no more.
                stream.send_refused = true;
                stream.sending = BytesMut::new();
                stream.dead = true;
                stream.open_pending = false;
                stream.credit_pending = false;
                stream.reset_pending = false;
                stream.wake();
            }
            FrameType::Credit => {
                let credit: [u8; 4] = payload.try_into().map_err(|_| SessionError::Protocol)?;
                stream.send_window = stream
                    .send_window
                    .checked_add(u32::from_be_bytes(credit))
                    .filter(|&window| window <= MAX_WINDOW)
                    .ok_or(SessionError::Window)?;
            }
        }
        self.settle(key);
        Ok(())
    }

    fn on_open(&mut self, key: StreamKey, payload: &[u8]) -> Result<(), SessionError> {
        if self.role == Role::Host || !payload.is_empty() || key.id <= self.last_id {
            return Err(SessionError::Protocol);
        }
        self.last_id = key.id;
        let refused = self.streams.len() >= self.config.max_streams;
        if self.streams.len() >= self.config.max_streams * 2 {
            // Refusals that nobody reads would pile up.
            return Err(SessionError::Protocol);
        }
        let stream = Stream { reset_pending: refused, released: refused, ..self.new_stream() };
        self.streams.insert(key, stream);
        if !refused {
            self.accepted.push_back(key);
        }
        self.settle(key);
        Ok(())
    }

    fn new_stream(&self) -> Stream {
        Stream {
            receive_window: self.config.window,
            send_window: self.peer_window,
            ..Stream::default()
        }
    }

    /// Queues the stream if it has something to send, forgets it if nothing is left of it.
    fn settle(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if stream.wants_to_send() {
            if !stream.queued {
                stream.queued = true;
                self.ready.push_back(key);
            }
            return;
        }
        let finished = stream.dead || (stream.end_sent && stream.receive_end);
        if stream.released && finished {
            self.streams.remove(&key);
        }
    }

    /// Appends bytes for the pipe until `out` holds `limit`; frames are not cut, so it may exceed
    /// the limit by one frame.
    pub fn transmit(&mut self, out: &mut BytesMut, limit: usize) {
        if let Some((greeting, padded)) = self.greeting.take() {
            if padded {
                put_padding(out);
            }
            put_greeting(greeting, out);
        }
        let Some(nonce) = self.attached else { return };
        while out.len() < limit {
            let Some(key) = self.ready.pop_front() else { return };
            if let Some(stream) = self.streams.get_mut(&key) {
                stream.queued = false;
                Self::transmit_stream(stream, key.id, nonce, out);
            }
            self.settle(key);
        }
    }

    /// One turn of one stream: its control frames and at most one data frame.
    fn transmit_stream(stream: &mut Stream, id: u32, nonce: u64, out: &mut BytesMut) {
        if stream.dead {
            return;
        }
        if std::mem::take(&mut stream.open_pending) {
            put_frame(FrameType::Open, id, &[], nonce, out);
        }
        if std::mem::take(&mut stream.credit_pending) {
            let credit = std::mem::take(&mut stream.unacknowledged);
            stream.receive_window += credit;
            put_frame(FrameType::Credit, id, &credit.to_be_bytes(), nonce, out);
        }
        let window = usize::try_from(stream.send_window).unwrap_or(usize::MAX);
        let count = stream.sending.len().min(window).min(MAX_PAYLOAD);
        if count > 0 {
            put_frame(FrameType::Data, id, &stream.sending[..count], nonce, out);
            stream.sending.advance(count);
            stream.send_window -= u32::try_from(count).unwrap_or(u32::MAX);
            if stream.sending.is_empty() && stream.sending.capacity() > MAX_PAYLOAD {
                stream.sending = BytesMut::new();
            }
            if let Some(waker) = stream.write_waker.take() {
                waker.wake();
            }
        }
        if stream.end_requested && !stream.end_sent && stream.sending.is_empty() {
            stream.end_sent = true;
            put_frame(FrameType::End, id, &[], nonce, out);
            if let Some(waker) = stream.write_waker.take() {
                waker.wake();
            }
        }
        if stream.reset_pending && (stream.end_sent || !stream.end_requested) {
            stream.reset_pending = false;
            stream.dead = true;
            put_frame(FrameType::Reset, id, &[], nonce, out);
        }
    }

    /// Whether [`Session::transmit`] would append anything.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.greeting.is_some() || (self.attached.is_some() && !self.ready.is_empty())
    }

    /// Host: opens a stream; nothing waits for the guest.
    pub fn open(&mut self) -> Result<StreamKey, OpenError> {
        if self.role != Role::Host || self.attached.is_none() {
            return Err(OpenError::Detached);
        }
        if self.streams.len() >= self.config.max_streams || self.last_id == u32::MAX {
            return Err(OpenError::TooMany);
        }
        self.last_id += 1;
        let key = StreamKey { epoch: self.epoch, id: self.last_id };
        let stream = Stream { open_pending: true, ..self.new_stream() };
        self.streams.insert(key, stream);
        self.settle(key);
        Ok(key)
    }

    /// Guest: returns the next stream that the host opened.
    pub fn accept(&mut self) -> Option<StreamKey> {
        self.accepted.pop_front()
    }

    /// Takes received bytes: `Some(0)` at the end, `None` (the waker is kept) until there are some.
    pub fn read(
        &mut self,
        key: StreamKey,
        buffer: &mut [u8],
        waker: &Waker,
    ) -> std::io::Result<Option<usize>> {
        let stream = self.streams.get_mut(&key).ok_or(std::io::ErrorKind::NotConnected)?;
        if stream.received.is_empty() {
            if stream.receive_end {
                return Ok(Some(0));
            }
            if stream.dead {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            stream.read_waker = Some(waker.clone());
            return Ok(None);
        }
        let count = stream.received.len().min(buffer.len());
        buffer[..count].copy_from_slice(&stream.received[..count]);
        stream.received.advance(count);
        if stream.received.is_empty() && stream.received.capacity() > MAX_PAYLOAD {
            stream.received = BytesMut::new();
        }
        stream.unacknowledged += u32::try_from(count).unwrap_or(0);
        // Credit in large pieces: half a window keeps the peer busy and costs few frames.
        if stream.unacknowledged >= self.config.window.div_ceil(2) && !stream.receive_end {
            stream.credit_pending = true;
        }
        self.settle(key);
        Ok(Some(count))
    }

    /// Takes bytes to send: `None` (the waker is kept) while the stream's buffer is full.
    pub fn write(
        &mut self,
        key: StreamKey,
        bytes: &[u8],
        waker: &Waker,
    ) -> std::io::Result<Option<usize>> {
        let stream = self.streams.get_mut(&key).ok_or(std::io::ErrorKind::NotConnected)?;
        if stream.dead || stream.released || stream.send_refused || stream.end_requested {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(SEND_BUFFER.saturating_sub(stream.sending.len()));
        if count == 0 && !bytes.is_empty() {
            stream.write_waker = Some(waker.clone());
            return Ok(None);
        }
        stream.sending.extend_from_slice(&bytes[..count]);
        self.settle(key);
        Ok(Some(count))
    }

    /// Whether everything written has left for the pipe; otherwise the waker is kept.
    pub fn flushed(&mut self, key: StreamKey, waker: &Waker) -> std::io::Result<bool> {
        let stream = self.streams.get_mut(&key).ok_or(std::io::ErrorKind::NotConnected)?;
        let end_due = stream.end_requested && !stream.end_sent;
        if stream.sending.is_empty() && !end_due {
            return Ok(true);
        }
        if stream.dead {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        stream.write_waker = Some(waker.clone());
        Ok(false)
    }

    /// Ends the sending direction after what was written.
    pub fn finish(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.end_requested = true;
        }
        self.settle(key);
    }

    /// Gives the stream up. What was written before [`Session::finish`] still goes out; without
    /// a finish the peer sees a reset, and nothing more is read either way.
    pub fn release(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.released = true;
            stream.received = BytesMut::new();
            stream.read_waker = None;
            stream.write_waker = None;
            if !stream.end_requested {
                stream.sending = BytesMut::new();
            }
            let complete = stream.end_requested && stream.receive_end;
            stream.reset_pending = !stream.dead && !complete;
            if stream.reset_pending && stream.open_pending && !stream.end_requested {
                // The peer never heard of it; the number is simply skipped.
                stream.dead = true;
            }
        }
        self.settle(key);
    }

    /// Streams that exist, those still flushing included.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }
}
