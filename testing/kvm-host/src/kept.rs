//! The other side of the keeper's socket: asking for a machine, holding it, talking to its agent.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use banger_guest_client::{AgentClient, BoxedStream, ChannelError, Deadlines, GuestChannel};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::cache::Cache;
use crate::keeper::{SOCKET, UNKNOWN, read_line};
use crate::saved_state::last_lines;

/// The keeper of a cache's machine, running or not.
#[derive(Clone, Debug)]
pub struct Keeper {
    cache: Cache,
    socket: PathBuf,
}

impl Keeper {
    /// Names the keeper of this cache's machine.
    #[must_use]
    pub fn of(cache: &Cache) -> Self {
        Self { cache: cache.clone(), socket: cache.run_folder().join(SOCKET) }
    }

    /// What the keeper of the machine that ended last had to say, once it has ended too; nothing where
    /// it was asked to end.
    async fn last_words(&self) -> String {
        let cache = self.cache.clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        // It holds the lock as long as it lives, and so does the next one: a thread that nobody waits
        // for, unlike a runtime's.
        std::thread::spawn(move || tell.send(cache.lock_run().map(drop)));
        let _ = tokio::time::timeout(NEWS, told).await;
        last_lines(&self.cache.keeper_log(), LAST_LINES)
    }

    async fn request(&self, line: &str) -> std::io::Result<(UnixStream, String)> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let answer = read_line(&mut stream).await?;
        match answer.strip_prefix("ok") {
            Some(rest) => Ok((stream, rest.trim_start().to_owned())),
            None => Err(std::io::Error::other(
                answer.strip_prefix("error ").unwrap_or(&answer).to_owned(),
            )),
        }
    }

    /// Returns the running machine's key and how many commands hold it; `None` if none runs.
    pub async fn info(&self) -> Option<(String, usize)> {
        let (_, words) = self.request("info").await.ok()?;
        let (key, users) = words.split_once(' ')?;
        Some((key.to_owned(), users.parse().ok()?))
    }

    /// Holds the running machine, if it has this key: until what is returned is dropped, and all
    /// that is made of it, only who stops it on purpose ends it. `None` if there is none such.
    ///
    /// # Errors
    /// Where the keeper is that of other sources, which cannot be asked for it.
    pub async fn hold(&self, key: &str) -> Result<Option<Kept>> {
        match self.request(&format!("hold {key}")).await {
            Ok((lease, instance)) => {
                Ok(Some(Kept { keeper: self.clone(), instance, lease: Arc::new(lease) }))
            }
            Err(error) if is_unknown(&error) => Err(error).context(
                "the running KVM host was started by other sources of banger; end it with: cargo \
                 xtask kvm-host stop",
            ),
            // It is another one, or it ends.
            Err(_) => Ok(None),
        }
    }

    /// Ends the machine, whoever holds it; false if none ran.
    pub async fn stop(&self) -> Result<bool> {
        if self.info().await.is_none() {
            return Ok(false);
        }
        match self.request("stop").await {
            Ok(_) => Ok(true),
            // It ended by itself, or another asked first.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(true),
            Err(error) => Err(error).context("stop the KVM host"),
        }
    }

    /// Ends the machine if nobody holds it; false if somebody does.
    pub async fn stop_unused(&self) -> Result<bool> {
        match self.request("stop-unused").await {
            Ok(_) => Ok(true),
            // That of other sources, which only tells how many use it.
            Err(error) if is_unknown(&error) => match self.info().await {
                Some((_, 0)) => self.stop().await.map(|_| true),
                Some(_) => Ok(false),
                None => Ok(true),
            },
            Err(error) if error.kind() == std::io::ErrorKind::Other => Ok(false),
            // It ended by itself.
            Err(_) => Ok(true),
        }
    }
}

fn is_unknown(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::Other && error.to_string() == UNKNOWN
}

/// So much of a keeper's last words is told; most of it is the console's end.
const LAST_LINES: usize = 45;
/// How long the agent of a machine that nobody uses may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// How long the keeper may take to hear that QEMU has ended.
const NEWS: Duration = Duration::from_secs(1);

/// A running machine that is held: this one, and no other that comes after it.
#[derive(Clone, Debug)]
pub struct Kept {
    keeper: Keeper,
    instance: String,
    /// Open for as long as it is held; the keeper says no more on it.
    lease: Arc<UnixStream>,
}

impl Kept {
    async fn is_there(&self) -> bool {
        // Who is about to end it answers no more, and another machine's keeper refuses.
        self.keeper.request(&format!("check {}", self.instance)).await.is_ok()
    }

    /// Does work in the machine; its failure says so where that has ended meanwhile.
    pub async fn during<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let error = match work.await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        // A stream breaks off before the keeper has heard of QEMU's end.
        let _ = tokio::time::timeout(NEWS, self.closed()).await;
        if self.is_there().await {
            return Err(error);
        }
        let told = self.keeper.last_words().await;
        let why = match told.trim() {
            "" => "another command stopped it, or it was killed",
            told => told,
        };
        Err(error.context(format!("the KVM host ended meanwhile: {why}")))
    }

    /// Returns whether the machine's agent answers soon.
    pub async fn answers(&self) -> bool {
        tokio::time::timeout(ANSWER, self.client().health()).await.is_ok_and(|reply| reply.is_ok())
    }

    /// Makes calls to the machine's agent.
    #[must_use]
    pub fn client(&self) -> AgentClient {
        let patient = Deadlines {
            // A nested guest may keep the machine from answering for long.
            answer: Duration::from_secs(120),
            ..Deadlines::default()
        };
        AgentClient::with_deadlines(Arc::new(self.clone()), patient)
    }
}

#[async_trait]
impl GuestChannel for Kept {
    async fn open(&self) -> Result<BoxedStream, ChannelError> {
        match self.keeper.request(&format!("stream {}", self.instance)).await {
            Ok((stream, _)) => Ok(Box::new(stream)),
            Err(source) => Err(ChannelError::Connect { path: self.keeper.socket.clone(), source }),
        }
    }

    async fn wait_ready(&self) -> Result<(), ChannelError> {
        // The socket is there once the agent has answered.
        self.open().await.map(drop)
    }

    async fn closed(&self) {
        let mut byte = [0];
        while self.lease.readable().await.is_ok() {
            match self.lease.try_read(&mut byte) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    }
}
