//! Commands in the machine: with pipes or on a terminal, with files sent before and fetched after.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use banger_agent_api::{
    Argument, EnvironmentEntry, ExecCall, ExitStatus, GetTreeCall, GuestPath, PtyCall, PutTreeCall,
    UserSpec, WindowSize,
};
use banger_guest_client::{AgentClient, ExecEvent, ExecEvents, ExecStdin};
use rustix::termios::{OptionalActions, Termios};
use tokio::sync::mpsc;

/// A variable of the processes of `run` and `shell`: tests that run beside them did not start them.
pub const MARK: &str = "BANGER_KVM_HOST_COMMAND";
/// Most bytes that are fetched at once.
const MOST_FETCHED: u64 = 4 << 30;

/// A file or folder here and a folder there: `LOCAL[:REMOTE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// What is sent.
    pub local: PathBuf,
    /// The folder it is put into.
    pub remote: String,
}

impl std::str::FromStr for Put {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (local, remote) = text.rsplit_once(':').unwrap_or((text, "/data"));
        ensure!(!local.is_empty(), "name a file to send: LOCAL[:FOLDER]");
        ensure!(remote.starts_with('/'), "the folder in the KVM host is absolute: LOCAL[:/FOLDER]");
        Ok(Self { local: local.into(), remote: remote.to_owned() })
    }
}

/// A file or folder there and a folder here: `REMOTE[:LOCAL]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    /// What is fetched.
    pub remote: String,
    /// The folder it is put into.
    pub local: PathBuf,
}

impl std::str::FromStr for Get {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        // A path there may hold a colon: /A:B is sent for with /A:B:.
        let (remote, local) = text.rsplit_once(':').unwrap_or((text, "."));
        ensure!(remote.starts_with('/'), "the path in the KVM host is absolute: /REMOTE[:LOCAL]");
        ensure!(!local.is_empty(), "name a folder to fetch into: /REMOTE[:LOCAL]");
        Ok(Self { remote: remote.to_owned(), local: local.into() })
    }
}

/// A command for the machine.
#[derive(Clone, Debug, Default)]
pub struct Command {
    call: ExecCall,
}

impl Command {
    /// Makes a command of its words.
    pub fn new<S: AsRef<std::ffi::OsStr>>(words: impl IntoIterator<Item = S>) -> Result<Self> {
        let words = words.into_iter().map(|word| {
            Argument::new(word.as_ref().as_encoded_bytes()).context("a word of the command")
        });
        let call = ExecCall { argv: words.collect::<Result<_>>()?, ..ExecCall::default() };
        Ok(Self { call })
    }

    /// Runs it as this user rather than root.
    pub fn user(mut self, user: Option<&str>) -> Result<Self> {
        self.call.user = user.map(str::parse::<UserSpec>).transpose().context("the user")?;
        Ok(self)
    }

    /// Runs it in this folder rather than the user's home.
    pub fn folder(mut self, folder: &str) -> Result<Self> {
        self.call.cwd = Some(GuestPath::new(folder).context("the folder")?);
        Ok(self)
    }

    /// Sets a variable.
    pub fn variable(mut self, name: &str, value: &str) -> Result<Self> {
        let entry = EnvironmentEntry::new(format!("{name}={value}")).context("a variable")?;
        self.call.env.push(entry);
        Ok(self)
    }

    /// Runs it with this process's input and output, until its end.
    pub async fn run(self, client: &AgentClient) -> Result<ExitStatus> {
        let mut marked = self.variable(MARK, "1")?;
        // At a terminal there is nobody who would end the input; `shell` is for people.
        let input = !std::io::stdin().is_terminal();
        marked.call.stdin = input;
        let (stdin, mut events, _control) = client.exec(marked.call).await?.split();
        let sender = input.then(|| tokio::spawn(send_input(stdin)));
        let status = relay(&mut events).await;
        if let Some(sender) = sender {
            sender.abort();
        }
        status
    }

    /// Runs it without input and returns what it wrote to both outputs, in order of arrival, and
    /// how it ended; `None` if it took longer than `patience`, after which it is ended.
    pub async fn collect(
        self,
        client: &AgentClient,
        patience: Duration,
    ) -> Result<(Vec<u8>, Option<ExitStatus>)> {
        const MOST: usize = 4 << 20;
        let (_stdin, mut events, _control) = client.exec(self.call).await?.split();
        let mut output = Vec::new();
        let reading = async {
            loop {
                match events.next().await.context("read a command's output")? {
                    Some(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes)) => {
                        let room = MOST.saturating_sub(output.len());
                        output.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    }
                    Some(ExecEvent::Exited(status)) => return Ok(status),
                    Some(ExecEvent::Failed(error)) => return Err(error).context("a command"),
                    None => bail!("a command ended without a word"),
                }
            }
        };
        let ended = tokio::time::timeout(patience, reading).await;
        ended.ok().transpose().map(|status| (output, status))
    }

    /// Runs it on a terminal of the machine, joined to this process's own.
    pub async fn terminal(self, client: &AgentClient) -> Result<ExitStatus> {
        let mut marked = self.variable(MARK, "1")?;
        let own = std::io::stdin();
        ensure!(own.is_terminal(), "a shell needs a terminal; `run` does not");
        let size = || -> WindowSize {
            let size = rustix::termios::tcgetwinsize(std::io::stdin());
            size.map_or(WindowSize { columns: 80, rows: 24 }, |size| WindowSize {
                columns: size.ws_col,
                rows: size.ws_row,
            })
        };
        let term = std::env::var("TERM").ok().and_then(|term| Argument::new(term).ok());
        marked.call.pty = Some(PtyCall { size: size(), term });
        marked.call.stdin = true;
        let (stdin, mut events, control) = client.exec(marked.call).await?.split();
        let raw = RawTerminal::enter()?;
        let sender = tokio::spawn(send_input(stdin));
        let mut resized =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())
                .context("watch the terminal's size")?;
        let resizer = tokio::spawn(async move {
            while resized.recv().await.is_some() {
                if control.resize(size()).await.is_err() {
                    break;
                }
            }
        });
        let status = relay(&mut events).await;
        sender.abort();
        resizer.abort();
        drop(raw);
        status
    }
}

/// Writes a command's output to this process's, until it ends.
async fn relay(events: &mut ExecEvents) -> Result<ExitStatus> {
    while let Some(event) = events.next().await.context("lost the command")? {
        match event {
            ExecEvent::Stdout(bytes) => write(std::io::stdout().lock(), &bytes)?,
            ExecEvent::Stderr(bytes) => write(std::io::stderr().lock(), &bytes)?,
            ExecEvent::Exited(status) => return Ok(status),
            ExecEvent::Failed(error) => return Err(error).context("run the command"),
        }
    }
    bail!("the command ended without a word")
}

fn write(mut out: impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).and_then(|()| out.flush()).context("write the command's output")
}

/// Sends this process's input. A thread reads it, which ends with the process if nothing comes.
async fn send_input(mut stdin: ExecStdin) {
    let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(4);
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = std::io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    while let Some(piece) = pieces.recv().await {
        if stdin.write(&piece).await.is_err() {
            return;
        }
    }
    // The command may have ended before its input.
    let _ = stdin.close().await;
}

/// The terminal without line editing; as it was when dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let before = rustix::termios::tcgetattr(std::io::stdin()).context("ask the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw)
            .context("set the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Sends files and folders into the machine.
pub async fn put(client: &AgentClient, files: &[Put]) -> Result<()> {
    let mut remotes: Vec<&str> = files.iter().map(|file| file.remote.as_str()).collect();
    remotes.sort_unstable();
    remotes.dedup();
    for remote in remotes {
        let mut archive = tar::Builder::new(tempfile::tempfile().context("make a file")?);
        archive.follow_symlinks(false);
        for file in files.iter().filter(|file| file.remote == remote) {
            let path = file.local.canonicalize();
            let path = path.with_context(|| format!("find {}", file.local.display()))?;
            // What is sent is what a link leads to, under the link's name.
            let name = file.local.file_name().or(path.file_name());
            let name = name.context("the root cannot be sent")?;
            let added = if path.is_dir() {
                archive.append_dir_all(name, &path)
            } else {
                archive.append_path_with_name(&path, name)
            };
            added.with_context(|| format!("read {}", path.display()))?;
        }
        let mut archive = archive.into_inner().context("pack the files")?;
        std::io::Seek::rewind(&mut archive).context("read what was packed")?;
        let path = GuestPath::new(remote).context("the folder in the KVM host")?;
        let owner = Some("root".parse().context("the user root")?);
        client
            .put_tree(PutTreeCall { path, owner }, tokio::fs::File::from_std(archive))
            .await
            .with_context(|| format!("send files to {remote}"))?;
    }
    Ok(())
}

/// Fetches a file or a folder from the machine.
pub async fn get(client: &AgentClient, file: &Get) -> Result<()> {
    let archive = tempfile::tempfile().context("make a file")?;
    let mut writer = tokio::fs::File::from_std(archive.try_clone().context("share a file")?);
    let path = GuestPath::new(file.remote.as_str()).context("the path in the KVM host")?;
    client
        .get_tree(GetTreeCall { path }, MOST_FETCHED, &mut writer)
        .await
        .with_context(|| format!("fetch {}", file.remote))?;
    tokio::io::AsyncWriteExt::flush(&mut writer).await.context("write what was fetched")?;
    unpack(archive, &file.local)
}

fn unpack(mut archive: std::fs::File, folder: &Path) -> Result<()> {
    std::io::Seek::rewind(&mut archive).context("read what was fetched")?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    tar::Archive::new(archive)
        .unpack(folder)
        .with_context(|| format!("unpack into {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_names_a_file_and_an_absolute_folder() {
        assert!("".parse::<Put>().is_err());
        assert!(":/x".parse::<Put>().is_err());
        assert!("a:b".parse::<Put>().is_err());
        let put = |local: &str, remote: &str| Put { local: local.into(), remote: remote.into() };
        assert_eq!("a/b".parse::<Put>().unwrap(), put("a/b", "/data"));
        assert_eq!("a:b:/x".parse::<Put>().unwrap(), put("a:b", "/x"));
    }

    #[test]
    fn what_is_fetched_names_an_absolute_path_and_a_folder() {
        for bad in ["", "x", "x:/y", "/x:"] {
            assert!(bad.parse::<Get>().is_err(), "{bad}");
        }
        let get = Get { remote: "/x".into(), local: ".".into() };
        assert_eq!("/x".parse::<Get>().unwrap(), get);
    }
}
