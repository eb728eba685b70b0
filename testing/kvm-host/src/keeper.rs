//! The process that owns a running machine, and the socket on which others reach it.
//!
//! QEMU's serial port carries one session. The keeper holds it for the machine's life and gives
//! every connection to its socket a stream of its own, so that any number of commands run at once.
//!
//! A connection says one line and is answered one, `ok ...` or `error ...`:
//!
//! | line | then |
//! |---|---|
//! | `stream` | the bytes of a stream to the guest agent |
//! | `info` | the rest of the answer is the machine's key and how many streams are open |
//! | `stop` | the answer comes when the machine is gone and its folder is removed |
//!
//! The keeper ends with its machine, when it is told to, and when nobody has used it for long. QEMU
//! ends with the keeper, however that ends (`setpriv --pdeathsig`).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use banger_agent_api::{Hex, SetIdentityCall};
use banger_guest_client::{
    AgentClient, BoxedStream, ChannelError, Deadlines, GuestChannel, SerialChannel,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

use crate::cache::Cache;
use crate::machine::{Machine, Place};
use crate::qemu::{Qemu, Start};
use crate::saved_state::{SavedState, last_lines};

/// The socket's name in the run folder.
const SOCKET: &str = "keeper.sock";
/// What the keeper starts; the client writes it into the run folder.
const MACHINE: &str = "machine.json";
/// How long a start from the saved state may take.
const RESUME_PATIENCE: Duration = Duration::from_secs(240);
/// How long a QEMU that could not be started from it may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// A machine that nobody has used for this long is forgotten rather than waited for.
const IDLE: Duration = Duration::from_secs(2 * 3600);
/// Between two looks at the clock for that.
const IDLE_LOOK: Duration = Duration::from_secs(60);
/// Longer lines are not the protocol.
const LINE_LIMIT: usize = 256;

/// Writes down what the keeper will start.
pub(crate) fn write_order(folder: &Path, machine: &Machine) -> Result<()> {
    let text = serde_json::to_vec_pretty(machine)?;
    std::fs::write(folder.join(MACHINE), text).context("write what the keeper starts")
}

/// Runs as the keeper of the machine that the run folder describes; says `ready` on standard output
/// when commands can run in it.
pub async fn keep() -> Result<()> {
    let cache = Cache::open()?;
    let folder = cache.run_folder();
    // Held until this process ends.
    let _lock = cache.lock_run()?;
    let result = live(&cache, &folder).await;
    let _ = std::fs::remove_dir_all(&folder);
    match result {
        Ok(Some(mut asker)) => {
            // Who asked may have gone.
            let _ = asker.write_all(b"ok\n").await;
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lives with the machine; returns the connection that asked for its end, if one did.
async fn live(cache: &Cache, folder: &Path) -> Result<Option<UnixStream>> {
    let order = std::fs::read(folder.join(MACHINE)).context("read what to start")?;
    let machine: Machine = serde_json::from_slice(&order).context("read what to start")?;
    // Whoever started this holds the cache's lock.
    machine.hold(cache)?;
    let saved = SavedState::find(cache, &machine).context("the saved state is gone")?;
    let mut qemu = resume(&machine, &saved, folder).await?;
    let channel = Arc::new(qemu.attach()?);
    tokio::select! {
        ready = tokio::time::timeout(RESUME_PATIENCE, greet(&channel)) => match ready {
            Ok(ready) => ready?,
            Err(_) => bail!("the agent did not answer within {} s", RESUME_PATIENCE.as_secs()),
        },
        status = qemu.ended() => bail!("QEMU ended with {}", status?),
    }
    let socket = folder.join(SOCKET);
    let listener = UnixListener::bind(&socket).context("listen for commands")?;
    {
        // Who waits for this line may have been killed; then nobody wants the machine.
        let mut out = std::io::stdout().lock();
        writeln!(out, "ready").and_then(|()| out.flush()).context("tell that it is ready")?;
    }
    let ended = serve(&mut qemu, &listener, &channel, &machine.key).await;
    let killed = qemu.kill().await;
    // The console goes with the folder; the keeper's log stays.
    let console =
        || format!("the console ended so:\n{}", last_lines(&folder.join("console.log"), 40));
    let asker = ended.with_context(console)?;
    killed?;
    Ok(asker)
}

async fn resume(machine: &Machine, saved: &SavedState, folder: &Path) -> Result<Qemu> {
    let place = Place { folder: folder.to_owned(), overlay: saved.overlay() };
    let memory = std::fs::File::open(saved.memory()).context("open the saved memory")?;
    let mut qemu = Qemu::start(&machine.parts, &place, Start::Saved, Some(memory)).await?;
    let load = async {
        let monitor = &mut qemu.monitor;
        monitor.announce_migration().await?;
        monitor.execute("migrate-incoming", json!({ "uri": "fd:0" })).await?;
        monitor.migrated().await?;
        monitor.execute("cont", json!({})).await.map(drop)
    };
    let loaded = tokio::time::timeout(RESUME_PATIENCE, load).await;
    let Err(error) = loaded.context("it took too long").flatten() else { return Ok(qemu) };
    // It says why on its standard error, and ends or not, as its version goes.
    let _ = tokio::time::timeout(LAST_WORDS, qemu.ended()).await;
    let words = last_lines(&folder.join("qemu.log"), 4);
    let words = if words.is_empty() { "nothing" } else { words.trim() };
    let memory = saved.memory();
    Err(error.context(format!(
        "the saved state cannot be loaded: {} is damaged, or not what this QEMU wrote (it says: \
         {words})",
        memory.display()
    )))
}

/// Waits for the agent and tells it the time: its clock stands where the state was saved.
async fn greet(channel: &Arc<SerialChannel>) -> Result<()> {
    channel.wait_ready().await.context("wait for the agent")?;
    let client = AgentClient::new(Arc::clone(channel) as Arc<dyn GuestChannel>);
    let mut seed = vec![0; 64];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| std::io::Read::read_exact(&mut random, &mut seed))
        .context("read random bytes")?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the time")?;
    let identity = SetIdentityCall {
        hostname: None,
        time_nanos: u64::try_from(now.as_nanos()).ok(),
        entropy: Some(Hex::new(seed).context("random bytes")?),
    };
    client.set_identity(identity).await.context("set the clock")
}

/// Counts those who use the machine, and when the last one left.
#[derive(Debug)]
struct Use {
    users: usize,
    since: Instant,
}

async fn serve(
    qemu: &mut Qemu,
    listener: &UnixListener,
    channel: &Arc<SerialChannel>,
    key: &str,
) -> Result<Option<UnixStream>> {
    let (usage, used) = watch::channel(Use { users: 0, since: Instant::now() });
    let usage = Arc::new(usage);
    let (ask, mut asked) = mpsc::channel(1);
    let mut clock = tokio::time::interval(IDLE_LOOK);
    loop {
        tokio::select! {
            status = qemu.ended() => bail!("QEMU ended with {}", status?),
            stream = asked.recv() => return Ok(stream),
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accept a command")?;
                let (channel, key) = (Arc::clone(channel), key.to_owned());
                let (usage, ask) = (Arc::clone(&usage), ask.clone());
                tokio::spawn(async move {
                    // A client that breaks off is its own affair.
                    let _ = answer(stream, &channel, &key, &usage, &ask).await;
                });
            }
            _ = clock.tick() => {
                let usage = used.borrow();
                if usage.users == 0 && usage.since.elapsed() > IDLE {
                    return Ok(None);
                }
            }
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    channel: &SerialChannel,
    key: &str,
    usage: &watch::Sender<Use>,
    ask: &mpsc::Sender<UnixStream>,
) -> Result<()> {
    let line = read_line(&mut stream).await?;
    match line.as_str() {
        "stream" => match channel.open().await {
            Ok(mut guest) => {
                usage.send_modify(|usage| usage.users += 1);
                let _ = stream.write_all(b"ok\n").await;
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut guest).await;
                usage.send_modify(|usage| {
                    usage.users -= 1;
                    usage.since = Instant::now();
                });
            }
            Err(error) => stream.write_all(format!("error {error}\n").as_bytes()).await?,
        },
        "info" => {
            let users = usage.borrow().users;
            stream.write_all(format!("ok {key} {users}\n").as_bytes()).await?;
        }
        "stop" => ask.send(stream).await?,
        _ => stream.write_all(b"error no such request\n").await?,
    }
    Ok(())
}

/// Reads a line byte by byte: what follows it belongs to someone else.
async fn read_line(stream: &mut UnixStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            _ if line.len() == LINE_LIMIT => {
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a long line"));
            }
            byte => line.push(byte),
        }
    }
}

/// A running machine, reached through its keeper.
#[derive(Clone, Debug)]
pub struct Kept {
    socket: PathBuf,
}

impl Kept {
    /// Names the machine of this cache, running or not.
    #[must_use]
    pub fn of(cache: &Cache) -> Self {
        Self { socket: cache.run_folder().join(SOCKET) }
    }

    async fn request(&self, line: &str) -> std::io::Result<(UnixStream, String)> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let answer = read_line(&mut stream).await?;
        match answer.strip_prefix("ok") {
            Some(rest) => Ok((stream, rest.trim_start().to_owned())),
            None => Err(std::io::Error::other(answer)),
        }
    }

    /// Returns the running machine's key and how many streams are open; `None` if none runs.
    pub async fn info(&self) -> Option<(String, usize)> {
        let (_, words) = self.request("info").await.ok()?;
        let (key, users) = words.split_once(' ')?;
        Some((key.to_owned(), users.parse().ok()?))
    }

    /// Ends the machine; false if none ran.
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

    /// Does work in the machine; its failure says so where that has ended meanwhile.
    pub async fn during<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match work.await {
            // Who is about to end it answers no more, or not any more with a key.
            Err(error) if self.info().await.is_none() => Err(error.context(
                "the KVM host ended meanwhile: another command stopped it, or it was killed",
            )),
            result => result,
        }
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
        match self.request("stream").await {
            Ok((stream, _)) => Ok(Box::new(stream)),
            Err(source) => Err(ChannelError::Connect { path: self.socket.clone(), source }),
        }
    }

    async fn wait_ready(&self) -> Result<(), ChannelError> {
        // The socket is there once the agent has answered.
        self.open().await.map(drop)
    }

    async fn closed(&self) {
        // The keeper never answers a connection that says nothing, and closes it at its end.
        if let Ok(mut stream) = UnixStream::connect(&self.socket).await {
            let _ = stream.read_u8().await;
        }
    }
}
