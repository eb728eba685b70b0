//! Drives a [`Session`] over a tokio stream and hands out its streams.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::session::{OpenError, Role, Session, SessionConfig, SessionError, StreamKey};

/// Bytes read from the pipe at a time, and gathered for one write.
const BATCH: usize = 64 * 1024;

/// Rounds of reading and writing before other tasks get their turn.
const ROUNDS_PER_POLL: usize = 16;

/// How long a guest without a session waits for the host's greeting before it announces itself.
/// Doubled up to [`MAX_ANNOUNCE_DELAY`] while no greeting comes.
const FIRST_ANNOUNCE_DELAY: Duration = Duration::from_millis(100);
const MAX_ANNOUNCE_DELAY: Duration = Duration::from_secs(5);

/// How long a host waits before it begins a new session after a broken one; doubled up to
/// [`MAX_ATTACH_DELAY`], so that a hostile guest cannot keep the host busy with sessions.
const FIRST_ATTACH_DELAY: Duration = Duration::from_millis(20);
const MAX_ATTACH_DELAY: Duration = Duration::from_secs(5);

/// How long a host waits for the answer to a greeting before it sends another; doubled up to
/// [`MAX_GREETING_PATIENCE`]. A guest that boots slowly has the greetings waiting for it.
const FIRST_GREETING_PATIENCE: Duration = Duration::from_secs(3);
const MAX_GREETING_PATIENCE: Duration = Duration::from_secs(10);

/// A session that lived this long was sound: the delay starts over.
const SOUND_SESSION: Duration = Duration::from_secs(10);

/// Whether there is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Not yet, or not now; the driver is on it.
    Detached,
    /// Streams can be opened.
    Attached,
    /// The pipe ended; there will be no other session.
    Closed,
}

struct Shared {
    session: Session,
    driver: Option<Waker>,
    observers: Vec<Waker>,
    acceptor: Option<Waker>,
    closed: bool,
    last_error: Option<SessionError>,
}

impl Shared {
    fn wake_driver(&mut self) {
        if self.session.has_output()
            && let Some(waker) = self.driver.take()
        {
            waker.wake();
        }
    }

    fn state(&self) -> SessionState {
        if self.closed {
            SessionState::Closed
        } else if self.session.is_attached() {
            SessionState::Attached
        } else {
            SessionState::Detached
        }
    }
}

/// One end of a multiplexed pipe; clones share it.
#[derive(Clone)]
pub struct Multiplexer {
    shared: Arc<Mutex<Shared>>,
}

impl fmt::Debug for Multiplexer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Multiplexer").field("state", &self.state()).finish()
    }
}

/// Locks; a panic elsewhere while holding the lock leaves a session that is still consistent
/// enough to be detached, so poisoning is not passed on.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Multiplexer {
    /// Makes the host's end. `nonce` returns unpredictable numbers, one per session. The driver
    /// must be run (spawned) for anything to happen; it ends when the pipe does.
    pub fn host<T>(
        transport: T,
        config: SessionConfig,
        nonce: impl FnMut() -> u64 + Send + 'static,
    ) -> (Self, Driver<T>) {
        let mut driver = Self::new(transport, Role::Host, config);
        driver.1.nonce = Some(Box::new(nonce));
        driver
    }

    /// Makes the guest's end. A read of zero bytes from `transport` means that the host is away:
    /// streams are reset, and the driver goes on when bytes come again; it never ends by itself.
    pub fn guest<T>(transport: T, config: SessionConfig) -> (Self, Driver<T>) {
        Self::new(transport, Role::Guest, config)
    }

    fn new<T>(transport: T, role: Role, config: SessionConfig) -> (Self, Driver<T>) {
        let shared = Arc::new(Mutex::new(Shared {
            session: Session::new(role, config),
            driver: None,
            observers: Vec::new(),
            acceptor: None,
            closed: false,
            last_error: None,
        }));
        let driver = Driver {
            shared: Arc::clone(&shared),
            transport,
            role,
            out: BytesMut::new(),
            input: vec![0; BATCH].into_boxed_slice(),
            nonce: None,
            timer: None,
            attach_delay: FIRST_ATTACH_DELAY,
            greeting_patience: FIRST_GREETING_PATIENCE,
            attached_at: None,
            announce_delay: FIRST_ANNOUNCE_DELAY,
            started: false,
        };
        (Self { shared }, driver)
    }

    /// Returns the state at this moment.
    #[must_use]
    pub fn state(&self) -> SessionState {
        lock(&self.shared).state()
    }

    /// Waits until the state is not `old` and returns it.
    pub async fn state_changed(&self, old: SessionState) -> SessionState {
        std::future::poll_fn(|context| {
            let mut shared = lock(&self.shared);
            let state = shared.state();
            if state == old {
                if !shared.observers.iter().any(|waker| waker.will_wake(context.waker())) {
                    shared.observers.push(context.waker().clone());
                }
                return Poll::Pending;
            }
            Poll::Ready(state)
        })
        .await
    }

    /// Returns what ended the last session that did not end with the pipe.
    #[must_use]
    pub fn last_error(&self) -> Option<SessionError> {
        lock(&self.shared).last_error
    }

    /// Host: opens a stream.
    pub fn open(&self) -> Result<MuxStream, OpenError> {
        let mut shared = lock(&self.shared);
        if shared.closed {
            return Err(OpenError::Detached);
        }
        // Not waking the driver yet lets the opening travel with the first bytes.
        let key = shared.session.open()?;
        Ok(MuxStream { shared: Arc::clone(&self.shared), key })
    }

    /// Guest: waits for the next stream that the host opens; `None` once the pipe is closed.
    pub async fn accept(&self) -> Option<MuxStream> {
        std::future::poll_fn(|context| {
            let mut shared = lock(&self.shared);
            if let Some(key) = shared.session.accept() {
                return Poll::Ready(Some(MuxStream { shared: Arc::clone(&self.shared), key }));
            }
            if shared.closed {
                return Poll::Ready(None);
            }
            shared.acceptor = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// The future that moves bytes between the pipe and the session.
pub struct Driver<T> {
    shared: Arc<Mutex<Shared>>,
    transport: T,
    role: Role,
    out: BytesMut,
    input: Box<[u8]>,
    nonce: Option<Box<dyn FnMut() -> u64 + Send>>,
    timer: Option<Pin<Box<Sleep>>>,
    attach_delay: Duration,
    greeting_patience: Duration,
    attached_at: Option<Instant>,
    announce_delay: Duration,
    started: bool,
}

impl<T> fmt::Debug for Driver<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Driver").field("role", &self.role).finish_non_exhaustive()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    /// Begins what is due: the host's next session, or the guest's announcement.
    fn poll_timer(&mut self, context: &mut Context<'_>) {
        let attached = lock(&self.shared).session.is_attached();
        if attached {
            self.timer = None;
            self.announce_delay = FIRST_ANNOUNCE_DELAY;
            self.greeting_patience = FIRST_GREETING_PATIENCE;
            self.attached_at.get_or_insert_with(Instant::now);
            return;
        }
        if self.attached_at.take().is_some_and(|since| since.elapsed() > SOUND_SESSION) {
            self.attach_delay = FIRST_ATTACH_DELAY;
        }
        let Some(timer) = &mut self.timer else { return };
        if timer.as_mut().poll(context).is_pending() {
            return;
        }
        self.timer = None;
        let mut shared = lock(&self.shared);
        match &mut self.nonce {
            Some(nonce) => {
                // One greeting that the pipe has not taken yet is enough.
                if self.out.is_empty() {
                    shared.session.attach(nonce());
                }
                self.timer = Some(Box::pin(tokio::time::sleep(self.greeting_patience)));
                self.greeting_patience = (self.greeting_patience * 2).min(MAX_GREETING_PATIENCE);
            }
            None => {
                // A host that is away takes nothing, and one announcement that waits is enough.
                if self.out.is_empty() {
                    shared.session.announce_boot();
                }
                drop(shared);
                self.schedule();
            }
        }
    }

    fn schedule(&mut self) {
        let delay = match self.role {
            Role::Host => {
                let delay = self.attach_delay;
                self.attach_delay = (delay * 2).min(MAX_ATTACH_DELAY);
                delay
            }
            Role::Guest => {
                let delay = self.announce_delay;
                self.announce_delay = (delay * 2).min(MAX_ANNOUNCE_DELAY);
                delay
            }
        };
        self.timer = Some(Box::pin(tokio::time::sleep(delay)));
    }

    /// Hands received bytes to the session and wakes who waits for its state.
    fn deliver(&mut self, count: usize) {
        let failed = {
            let mut shared = lock(&self.shared);
            let before = (shared.session.is_attached(), shared.session.epoch());
            let result = shared.session.receive(&self.input[..count]);
            if let Err(error) = result {
                shared.last_error = Some(error);
            }
            if before.1 != shared.session.epoch() && self.role == Role::Guest {
                // Written for an earlier host; the new one discards it until our answer anyway.
                self.out.clear();
            }
            if before.0 != shared.session.is_attached() || result.is_err() {
                shared.observers.drain(..).for_each(Waker::wake);
            }
            if let Some(waker) = shared.acceptor.take() {
                waker.wake();
            }
            result.is_err() && !shared.session.is_attached()
        };
        if failed {
            self.schedule();
        }
    }

    fn host_away(&mut self) {
        {
            let mut shared = lock(&self.shared);
            shared.session.detach();
            shared.observers.drain(..).for_each(Waker::wake);
        }
        // Bytes of the dead session are of no use to the next one; a cut frame is what the
        // next session's padding is for.
        self.out.clear();
        // A host that came back before it was seen to leave believes in its session: tell it.
        self.announce_delay = FIRST_ANNOUNCE_DELAY;
        self.schedule();
    }

    /// Reads once; `Ready(true)` if there may be more, `Ready(false)` if the pipe is over.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut buffer = ReadBuf::new(&mut self.input);
        std::task::ready!(Pin::new(&mut self.transport).poll_read(context, &mut buffer))?;
        let count = buffer.filled().len();
        if count > 0 {
            self.deliver(count);
            return Poll::Ready(Ok(true));
        }
        match self.role {
            Role::Host => Poll::Ready(Ok(false)),
            Role::Guest => {
                self.host_away();
                Poll::Ready(Ok(true))
            }
        }
    }

    /// Writes once; `Ready(true)` if something was written, `Ready(false)` if there is nothing to write.
    fn poll_transmit(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.out.is_empty() {
            let mut shared = lock(&self.shared);
            shared.session.transmit(&mut self.out, BATCH);
            if self.out.is_empty() {
                shared.driver = Some(context.waker().clone());
                return Poll::Ready(Ok(false));
            }
        }
        let count =
            std::task::ready!(Pin::new(&mut self.transport).poll_write(context, &self.out))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.out.advance(count);
        if self.out.is_empty() && self.out.capacity() > 2 * BATCH {
            self.out = BytesMut::new();
        }
        Poll::Ready(Ok(true))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.started {
            this.started = true;
            match this.role {
                // At once.
                Role::Host => this.timer = Some(Box::pin(tokio::time::sleep(Duration::ZERO))),
                Role::Guest => this.schedule(),
            }
        }
        for _ in 0..ROUNDS_PER_POLL {
            this.poll_timer(context);
            let received = match this.poll_receive(context) {
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(true)) => true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => false,
            };
            let sent = match this.poll_transmit(context) {
                Poll::Ready(result) => match result {
                    Ok(sent) => sent,
                    Err(error) => return Poll::Ready(Err(error)),
                },
                Poll::Pending => false,
            };
            if !received && !sent {
                // The timer may have been set by what was just received.
                this.poll_timer(context);
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T> Drop for Driver<T> {
    /// Without a driver nothing moves: streams and observers must learn that.
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.session.detach();
        shared.closed = true;
        shared.observers.drain(..).for_each(Waker::wake);
        if let Some(waker) = shared.acceptor.take() {
            waker.wake();
        }
    }
}

/// One stream. Shutting it down ends its sending direction; dropping it before resets it.
pub struct MuxStream {
    shared: Arc<Mutex<Shared>>,
    key: StreamKey,
}

impl fmt::Debug for MuxStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MuxStream").field("key", &self.key).finish()
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut shared = lock(&self.shared);
        let Some(count) =
            shared.session.read(self.key, buffer.initialize_unfilled(), context.waker())?
        else {
            // A reader that waits wants its request to be on its way.
            shared.wake_driver();
            return Poll::Pending;
        };
        shared.wake_driver();
        drop(shared);
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = lock(&self.shared);
        let count = shared.session.write(self.key, bytes, context.waker())?;
        shared.wake_driver();
        count.map_or(Poll::Pending, |count| Poll::Ready(Ok(count)))
    }

    /// The driver sends without being asked; there is nothing to flush that waiting would speed up.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.shared);
        shared.session.finish(self.key);
        shared.wake_driver();
        Poll::Ready(Ok(()))
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.session.release(self.key);
        shared.wake_driver();
    }
}
