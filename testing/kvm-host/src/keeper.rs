//! The process that owns a running machine, and the socket on which others reach it.
//!
//! QEMU's serial port carries one session. The keeper holds it for the machine's life and gives
//! every connection to its socket a stream of its own, so that any number of commands run at once.
//!
//! A connection says one line and is answered one, `ok ...` or `error ...`:
//!
//! | line | then |
//! |---|---|
//! | `hold KEY` | if that is the machine's key, the rest of the answer names this one of all with it; the machine is in use until the connection ends |
//! | `check NAME` | nothing, if that is this machine's name |
//! | `stream NAME` | if it is, the bytes of a stream to the guest agent |
//! | `info` | the rest of the answer is the machine's key and how many hold it |
//! | `stop` | the answer comes when the machine is gone and its folder is removed |
//! | `stop-unused` | the same, unless somebody holds it |
//!
//! So nobody's command gets into another machine than the one it asked for, and a machine is not
//! taken away from between two commands of one who holds it.
//!
//! The keeper ends with its machine, when it is told to, and when nobody has used it for long. QEMU
//! ends with the keeper, however that ends (`setpriv --pdeathsig`).

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use banger_agent_api::{Hex, SetIdentityCall};
use banger_guest_client::{AgentClient, GuestChannel, SerialChannel};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::cache::Cache;
use crate::machine::{Machine, Place};
use crate::qemu::{Qemu, Start};
use crate::saved_state::{SavedState, last_lines};

/// The socket's name in the run folder.
pub(crate) const SOCKET: &str = "keeper.sock";
/// The answer to what it does not know; older sources' keepers have it too.
pub(crate) const UNKNOWN: &str = "no such request";
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
pub async fn keep(cache: &Cache) -> Result<()> {
    let folder = cache.run_folder();
    // Held until this process ends.
    let _lock = cache.lock_run()?;
    let result = live(cache, &folder).await;
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
    // Nobody is let in before all that was saved has been read; QEMU loads it meanwhile.
    let (state, image) = (saved.clone(), machine.image.clone());
    let checks = [
        tokio::task::spawn_blocking(move || state.check()),
        tokio::task::spawn_blocking(move || image.check()),
    ];
    let place = Place { folder: folder.to_owned(), overlay: saved.overlay() };
    let begun = begin(&machine, &saved, &place, Start::Saved).await;
    for check in checks {
        // This tells more than what QEMU says to a damaged file.
        check.await.context("read the saved state")??;
    }
    let (mut qemu, channel) = begun?;
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

/// Starts the machine from its state, and waits until its agent answers.
pub(crate) async fn begin(
    machine: &Machine,
    saved: &SavedState,
    place: &Place,
    start: Start,
) -> Result<(Qemu, Arc<SerialChannel>)> {
    let mut qemu = resume(machine, saved, place, start).await?;
    let channel = Arc::new(qemu.attach()?);
    tokio::select! {
        ready = tokio::time::timeout(RESUME_PATIENCE, greet(&channel)) => match ready {
            Ok(ready) => ready?,
            Err(_) => bail!("the agent did not answer within {} s", RESUME_PATIENCE.as_secs()),
        },
        status = qemu.ended() => bail!("QEMU ended with {}", status?),
    }
    Ok((qemu, channel))
}

async fn resume(
    machine: &Machine,
    saved: &SavedState,
    place: &Place,
    start: Start,
) -> Result<Qemu> {
    let memory = std::fs::File::open(saved.memory()).context("open the saved memory")?;
    let mut qemu = Qemu::start(&machine.parts, place, start, Some(memory)).await?;
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
    let words = last_lines(&place.folder.join("qemu.log"), 4);
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

/// What the keeper knows about its machine, for all its connections.
#[derive(Debug)]
struct Desk {
    key: String,
    /// Names this machine, unlike the next one with the same key.
    name: String,
    state: Mutex<Use>,
}

/// Who uses the machine.
#[derive(Debug)]
struct Use {
    holders: usize,
    /// When the last one left.
    since: Instant,
    /// It ends, and nobody may begin to use it.
    ending: bool,
}

impl Desk {
    fn new(key: &str) -> Self {
        let state = Use { holders: 0, since: Instant::now(), ending: false };
        let name = uuid::Uuid::new_v4().to_string();
        Self { key: key.to_owned(), name, state: Mutex::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Use> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more who holds the machine with this key, until that is dropped.
    fn hold(self: &Arc<Self>, key: &str) -> Result<Holder> {
        let mut state = self.state();
        ensure!(key == self.key, "the machine that runs has the key {}", self.key);
        ensure!(!state.ending, "the machine ends");
        state.holders += 1;
        Ok(Holder(Arc::clone(self)))
    }

    /// Refuses what is meant for another machine.
    fn check(&self, name: &str) -> Result<()> {
        ensure!(name == self.name, "that machine has ended, and another one runs");
        Ok(())
    }

    /// Lets nobody in any more, unless somebody is.
    fn close(&self, is_idle: impl FnOnce(&Use) -> bool) -> Result<()> {
        let mut state = self.state();
        ensure!(state.holders == 0 && is_idle(&state), "{} hold it", state.holders);
        state.ending = true;
        Ok(())
    }
}

/// One who holds the machine.
struct Holder(Arc<Desk>);

impl Drop for Holder {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.holders -= 1;
        state.since = Instant::now();
    }
}

async fn serve(
    qemu: &mut Qemu,
    listener: &UnixListener,
    channel: &Arc<SerialChannel>,
    key: &str,
) -> Result<Option<UnixStream>> {
    let desk = Arc::new(Desk::new(key));
    let (ask, mut asked) = mpsc::channel(1);
    let mut clock = tokio::time::interval(IDLE_LOOK);
    loop {
        tokio::select! {
            status = qemu.ended() => bail!("QEMU ended with {}", status?),
            stream = asked.recv() => return Ok(stream),
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accept a command")?;
                let (channel, desk, ask) = (Arc::clone(channel), Arc::clone(&desk), ask.clone());
                tokio::spawn(async move {
                    // A client that breaks off is its own affair.
                    let _ = answer(stream, &*channel, &desk, &ask).await;
                });
            }
            _ = clock.tick() => {
                if desk.close(|usage| usage.since.elapsed() > IDLE).is_ok() {
                    return Ok(None);
                }
            }
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    channel: &dyn GuestChannel,
    desk: &Arc<Desk>,
    ask: &mpsc::Sender<UnixStream>,
) -> Result<()> {
    let line = read_line(&mut stream).await?;
    let (verb, word) = line.split_once(' ').unwrap_or((&line, ""));
    match verb {
        "hold" => match desk.hold(word) {
            Ok(_holder) => {
                say(&mut stream, Ok(desk.name.clone())).await?;
                // It says no more; its end is what is waited for.
                let _ = stream.read_u8().await;
            }
            Err(error) => say(&mut stream, Err(error)).await?,
        },
        "check" => say(&mut stream, desk.check(word).map(|()| String::new())).await?,
        "stream" => {
            let opened = match desk.check(word) {
                Ok(()) => channel.open().await.map_err(anyhow::Error::from),
                Err(error) => Err(error),
            };
            match opened {
                Ok(mut guest) => {
                    say(&mut stream, Ok(String::new())).await?;
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut guest).await;
                }
                Err(error) => say(&mut stream, Err(error)).await?,
            }
        }
        "info" => {
            let holders = desk.state().holders;
            say(&mut stream, Ok(format!("{} {holders}", desk.key))).await?;
        }
        "stop" => {
            desk.state().ending = true;
            ask.send(stream).await?;
        }
        "stop-unused" => match desk.close(|_| true) {
            Ok(()) => ask.send(stream).await?,
            Err(error) => say(&mut stream, Err(error)).await?,
        },
        _ => say(&mut stream, Err(anyhow::anyhow!(UNKNOWN))).await?,
    }
    Ok(())
}

async fn say(stream: &mut UnixStream, answer: Result<String>) -> std::io::Result<()> {
    let line = match answer {
        Ok(words) if words.is_empty() => "ok\n".to_owned(),
        Ok(words) => format!("ok {words}\n"),
        Err(error) => format!("error {error}\n"),
    };
    stream.write_all(line.as_bytes()).await
}

/// Reads a line byte by byte: what follows it belongs to someone else.
pub(crate) async fn read_line(stream: &mut UnixStream) -> std::io::Result<String> {
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use banger_guest_client::{BoxedStream, ChannelError};
    use tokio::task::JoinHandle;

    use super::*;

    /// A guest that says `hello` on every stream.
    #[derive(Debug)]
    struct Greeter;

    #[async_trait]
    impl GuestChannel for Greeter {
        async fn open(&self) -> Result<BoxedStream, ChannelError> {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(b"hello\n").await.unwrap();
            Ok(Box::new(ours))
        }

        async fn wait_ready(&self) -> Result<(), ChannelError> {
            Ok(())
        }

        async fn closed(&self) {}
    }

    /// Says a line to the keeper; returns the connection, the answer and what serves them.
    async fn ask(
        desk: &Arc<Desk>,
        stop: &mpsc::Sender<UnixStream>,
        line: &str,
    ) -> (UnixStream, String, JoinHandle<()>) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (desk, stop) = (Arc::clone(desk), stop.clone());
        let served = tokio::spawn(async move {
            answer(theirs, &Greeter, &desk, &stop).await.unwrap();
        });
        ours.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        // Who stops it is answered when it is gone.
        let answer = match line {
            "stop" => String::new(),
            _ => read_line(&mut ours).await.unwrap(),
        };
        (ours, answer, served)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_holds_the_machine_keeps_it_until_it_lets_go() {
        let desk = Arc::new(Desk::new("1234"));
        let (stop, mut stopped) = mpsc::channel(1);
        let (_, answer, _) = ask(&desk, &stop, "hold 5678").await;
        assert!(answer.starts_with("error") && answer.contains("1234"), "{answer}");
        let (lease, answer, served) = ask(&desk, &stop, "hold 1234").await;
        assert_eq!(answer, format!("ok {}", desk.name));
        assert_eq!(ask(&desk, &stop, "info").await.1, "ok 1234 1");
        tokio::select! {
            (_, answer, _) = ask(&desk, &stop, "stop-unused") => assert_eq!(answer, "error 1 hold it"),
            _ = stopped.recv() => panic!("it is taken from who holds it"),
        }
        assert!(desk.close(|_| true).is_err(), "time does not end it either");
        assert!(stopped.try_recv().is_err());
        drop(lease);
        served.await.unwrap();
        assert_eq!(ask(&desk, &stop, "info").await.1, "ok 1234 0");
        desk.close(|_| true).unwrap();
        assert_eq!(ask(&desk, &stop, "hold 1234").await.1, "error the machine ends");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_stops_it_on_purpose_does_so_whoever_holds_it() {
        let desk = Arc::new(Desk::new("1234"));
        let (stop, mut stopped) = mpsc::channel(1);
        let (_lease, _, _) = ask(&desk, &stop, "hold 1234").await;
        let (_asker, _, _) = ask(&desk, &stop, "stop").await;
        assert!(stopped.recv().await.is_some());
        assert_eq!(ask(&desk, &stop, "hold 1234").await.1, "error the machine ends");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_stream_reaches_the_machine_that_it_names_and_no_other() {
        let (one, other) = (Arc::new(Desk::new("1234")), Arc::new(Desk::new("1234")));
        let (stop, _) = mpsc::channel(1);
        for line in ["stream", "stream 1234", &format!("stream {}", one.name)] {
            for verb in ["stream", "check"] {
                let line = line.replace("stream", verb);
                let (_, answer, _) = ask(&other, &stop, &line).await;
                assert!(answer.starts_with("error that machine has ended"), "{line}: {answer}");
            }
        }
        assert_eq!(ask(&one, &stop, &format!("check {}", one.name)).await.1, "ok");
        let (mut stream, answer, _) = ask(&one, &stop, &format!("stream {}", one.name)).await;
        assert_eq!(answer, "ok");
        assert_eq!(read_line(&mut stream).await.unwrap(), "hello");
        assert_eq!(ask(&one, &stop, "streams").await.1, format!("error {UNKNOWN}"));
    }
}
