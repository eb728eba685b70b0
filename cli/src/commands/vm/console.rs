//! `banger vm console`: a machine's serial console, to read and to type at.

use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::time::Duration;

use banger_agent_api::{Call, ConsoleCall, ConsoleReply};
use banger_daemon_api::routes;
use banger_daemon_api::vm::{Vm, VmState};
use bytes::{Buf, Bytes, BytesMut};
use clap::Args;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::OneVm;
use crate::client::Client;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::streams::{read_stdin, write_all, write_stream};
use crate::terminal::RawMode;
use crate::terminal_text::TerminalText;
use crate::ui::Ui;
use crate::{agent, daemon, exec};

/// Bytes that are read of the console at once.
const CHUNK: usize = 16 * 1024;
/// How long a slow terminal has for what is still queued when the console is left.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Arguments of `banger vm console`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  banger vm console box                   Ctrl-] leaves
  banger vm console --escape ctrl-a box
  echo poweroff | banger vm console box   types that; goes on until the machine's end or Ctrl-C

What the machine prints from now on is shown; banger vm logs has what came before. Where no program
of the machine has the console as its terminal, a login shell of root's answers, which stays when
you leave. Several may be attached at once, and type at the same machine.

On a terminal what the machine prints may draw, and nothing else: sequences that make a terminal
answer, or change its keys, title or clipboard, are taken out, unless --raw is given. Modes that it
switched are switched back when the console is left, with --raw by a reset of all that xterm knows;
only a banger that is killed (SIGKILL) leaves them: reset(1). A pipe or file gets every byte.")]
pub struct ConsoleArgs {
    #[command(flatten)]
    vm: OneVm,
    /// The key that leaves the console, such as ctrl-a or ^A; or none
    #[arg(long, value_name = "KEY", default_value = "ctrl-]")]
    escape: Escape,
    /// Let through to the terminal all that the machine prints
    #[arg(long)]
    raw: bool,
}

/// The key that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Escape(Option<u8>);

impl FromStr for Escape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let prefix = ["ctrl-", "Ctrl-", "^"].into_iter().find_map(|start| text.strip_prefix(start));
        match prefix.map(str::as_bytes) {
            // Ctrl takes the three upper bits away (ascii(7)); Ctrl-@ is what a broken line sends.
            Some([key @ (b'A'..=b'_' | b'a'..=b'z')]) => Ok(Self(Some(key & 0x1f))),
            _ => Err("a key is ctrl- and a letter or one of [ \\ ] ^ _, or 'none'".to_owned()),
        }
    }
}

impl std::fmt::Display for Escape {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None => formatter.write_str("none"),
            Some(key) => write!(formatter, "Ctrl-{}", char::from(key | 0x40)),
        }
    }
}

/// Why a console was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// By the key.
    Escaped,
    /// The other side closed it.
    Ended,
}

/// Attaches until the key, the machine's end or a signal.
pub async fn run(ui: &Ui, args: &ConsoleArgs) -> Result<(), CliError> {
    let mut interrupts = Interrupts::install()?;
    let client = daemon::connect(ui).await?;
    let vm = super::get(&client, &args.vm.vm).await?;
    if matches!(vm.state, VmState::Created | VmState::Stopped | VmState::Failed) {
        let error = CliError::new(format!("VM {} is {}", vm.name, vm.state));
        return Err(error.hint(format!("banger vm start {}", vm.name)));
    }
    let path = routes::vm(&(&vm.id).into(), "/console");
    let upgraded = client.upgrade(&path, routes::CONSOLE_PROTOCOL).await;
    let (_, stream) = upgraded.map_err(|error| client.explain(error))?;
    let (output, input) = tokio::io::split(stream);
    let is_typed = io::stdin().is_terminal();
    let escape = args.escape.0.filter(|_| is_typed);
    match escape {
        Some(_) => ui.status(format_args!("console of VM {}; {} leaves", vm.name, args.escape)),
        None => ui.status(format_args!("console of VM {}", vm.name)),
    }
    // Raw from here on; the guard restores the terminal however this function ends.
    let raw = if is_typed { Some(RawMode::enter()?) } else { None };
    // Dropped before that one, so that the terminal's own modes are back first.
    let mut screen = Screen { text: TerminalText::default(), cleans: !args.raw };
    let mut writer = Writer::new();
    let left = tokio::select! {
        left = show(output, &mut screen, &mut writer) => left,
        left = type_in(read_stdin(), input, escape) => Ok(left),
        // Only after the console is attached to, so that the first prompt is seen.
        never = answer(ui, &client, &vm) => match never {},
        interrupt = interrupts.next() => {
            Err(CliError::interrupted(interrupt, format!("left the console of VM {}", vm.name)))
        }
    };
    writer.finish().await;
    drop(screen);
    drop(raw);
    if is_typed {
        // The machine's last line has no end, as a rule.
        let _ = write_all(io::stderr(), b"\n");
    }
    match left? {
        Left::Escaped => ui.status(format_args!("left the console of VM {}", vm.name)),
        Left::Ended => return explain_end(ui, &client, &vm).await,
    }
    Ok(())
}

/// What is shown where standard output is a terminal, which is put back as it was when this is dropped,
/// also by a panic.
struct Screen {
    text: TerminalText,
    cleans: bool,
}

impl Screen {
    fn piece(&mut self, bytes: &[u8]) -> Bytes {
        if !io::stdout().is_terminal() {
            return Bytes::copy_from_slice(bytes);
        }
        let clean = self.text.clean(bytes);
        if self.cleans { clean.into() } else { Bytes::copy_from_slice(bytes) }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if io::stdout().is_terminal() {
            let text = if self.cleans { self.text.restoring() } else { self.text.resetting() };
            // A terminal that is gone has no modes.
            let _ = write_all(io::stdout(), text.as_bytes());
        }
    }
}

/// The thread that writes to standard output.
struct Writer {
    /// None once nothing more comes.
    queue: Option<mpsc::Sender<Bytes>>,
    end: oneshot::Receiver<io::Result<()>>,
}

impl Writer {
    fn new() -> Self {
        let (queue, end) = write_stream(io::stdout());
        Self { queue: Some(queue), end }
    }

    /// Waits a little for what is queued: after it the terminal is put back as it was.
    async fn finish(&mut self) {
        if self.queue.take().is_some() {
            let _ = tokio::time::timeout(LAST_WORDS, &mut self.end).await;
        }
    }
}

/// Shows what the machine prints, until the console ends.
async fn show(
    mut output: impl AsyncRead + Unpin,
    screen: &mut Screen,
    writer: &mut Writer,
) -> Result<Left, CliError> {
    let mut chunk = vec![0; CHUNK];
    while let Some(queue) = &writer.queue
        && let Ok(count @ 1..) = output.read(&mut chunk).await
    {
        if queue.send(screen.piece(&chunk[..count])).await.is_err() {
            break;
        }
    }
    writer.queue = None;
    match (&mut writer.end).await {
        Ok(Err(error)) => Err(CliError::output(&error)),
        _ => Ok(Left::Ended),
    }
}

/// Types what comes from standard input, until the escape key. The end of the input leaves the console
/// attached.
async fn type_in(
    mut keys: mpsc::Receiver<Bytes>,
    mut input: impl AsyncWrite + Unpin,
    escape: Option<u8>,
) -> Left {
    let mut waiting = BytesMut::new();
    let mut is_open = true;
    while is_open || !waiting.is_empty() {
        tokio::select! {
            biased;
            // The key leaves also where nothing typed is taken; without one the machine sets the pace.
            more = keys.recv(), if is_open && (escape.is_some() || waiting.is_empty()) => {
                let Some(bytes) = more else {
                    is_open = false;
                    continue;
                };
                let end = escape.and_then(|key| bytes.iter().position(|byte| *byte == key));
                waiting.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
                if end.is_some() {
                    // What is taken at once.
                    tokio::select! {
                        biased;
                        _ = input.write_all(&waiting) => {}
                        () = tokio::task::yield_now() => {}
                    }
                    return Left::Escaped;
                }
            }
            taken = input.write(&waiting), if !waiting.is_empty() => match taken {
                Ok(count @ 1..) => waiting.advance(count),
                _ => break,
            }
        }
    }
    std::future::pending().await
}

/// Has somebody answer on the console, at the size of this terminal, each time that changes.
async fn answer(ui: &Ui, client: &Client, vm: &Vm) -> std::convert::Infallible {
    let mut resized = signal(SignalKind::window_change()).ok();
    loop {
        if vm.state == VmState::Running {
            let pty = io::stdout().is_terminal().then(exec::pty);
            let call = Call::Console(ConsoleCall { pty });
            let answered = agent::call::<ConsoleReply>(client, &vm.id, call).await;
            if let Err(error) = answered {
                ui.warning(format_args!("nobody may answer on the console: {}", error.message));
            }
        }
        let changed = match &mut resized {
            Some(resized) => resized.recv().await,
            None => None,
        };
        if changed.is_none() {
            return std::future::pending().await;
        }
    }
}

async fn explain_end(ui: &Ui, client: &Client, vm: &Vm) -> Result<(), CliError> {
    let path = routes::vm(&(&vm.id).into(), "");
    match exec::settled(client, &path).await {
        Ok(now) if now.state == VmState::Running => {
            Err(CliError::new("the connection to the console broke off")
                .hint(format!("banger vm console {}", vm.name)))
        }
        Ok(_) | Err(crate::client::ClientError::Api(_)) => {
            ui.status(format_args!("VM {} has ended", vm.name));
            Ok(())
        }
        Err(error) => Err(client.explain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_people_name_them() {
        for (text, key, shown) in [
            ("ctrl-]", Some(0x1d), "Ctrl-]"),
            ("Ctrl-a", Some(1), "Ctrl-A"),
            ("^A", Some(1), "Ctrl-A"),
            ("^\\", Some(0x1c), "Ctrl-\\"),
            ("none", None, "none"),
        ] {
            let escape: Escape = text.parse().unwrap();
            assert_eq!((escape.0, escape.to_string().as_str()), (key, shown), "{text}");
        }
        for bad in ["", "a", "ctrl-", "^", "ctrl-ab", "^1", "^@", "ctrl-\u{e9}", "^{"] {
            assert!(bad.parse::<Escape>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn keys_are_typed_up_to_the_one_that_leaves() {
        for (escape, left) in [(Some(0x1d), Some(Left::Escaped)), (None, None)] {
            let (queue, keys) = mpsc::channel(4);
            let (ours, mut theirs) = tokio::io::duplex(64);
            queue.send(Bytes::from_static(b"one")).await.unwrap();
            queue.send(Bytes::from_static(b"two\x1dthree")).await.unwrap();
            drop(queue);
            let typing = tokio::spawn(type_in(keys, ours, escape));
            let mut typed = [0; 6];
            theirs.read_exact(&mut typed).await.unwrap();
            assert_eq!(&typed, b"onetwo");
            match left {
                Some(left) => {
                    assert_eq!(typing.await.unwrap(), left);
                    let mut rest = Vec::new();
                    theirs.read_to_end(&mut rest).await.unwrap();
                    assert!(rest.is_empty());
                }
                None => {
                    let mut rest = [0; 6];
                    theirs.read_exact(&mut rest).await.unwrap();
                    assert_eq!(&rest, b"\x1dthree");
                    assert!(!typing.is_finished(), "the end of the input leaves it attached");
                    typing.abort();
                }
            }
        }
    }

    #[tokio::test]
    async fn a_machine_that_takes_no_keys_is_left_all_the_same() {
        let (queue, keys) = mpsc::channel(4);
        let (ours, _theirs) = tokio::io::duplex(1);
        queue.send(Bytes::from_static(b"more than it takes\x1d")).await.unwrap();
        assert_eq!(type_in(keys, ours, Some(0x1d)).await, Left::Escaped);
    }

    #[tokio::test]
    async fn the_key_is_seen_behind_what_nobody_takes() {
        let (queue, keys) = mpsc::channel(4);
        let (ours, _theirs) = tokio::io::duplex(1);
        let typing = tokio::spawn(type_in(keys, ours, Some(0x1d)));
        for bytes in [&b"a long paste"[..], b"more of it", b"\x1d"] {
            queue.send(Bytes::from_static(bytes)).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(typing.await.unwrap(), Left::Escaped);
    }
}
