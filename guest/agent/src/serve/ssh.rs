//! The image's sshd, for one connection that comes from the host.
//!
//! ```text
//!   ssh ──ProxyCommand── host ──stream── agent ──socket── sshd -i
//! ```
//! Nothing listens and no network is needed. The sshd is told everything here and reads none of the
//! image's configuration, so that every image behaves the same. Its host key is made at the first
//! connection and stays on the machine's disk; the host learns it over this stream, which nobody
//! else can be at the end of. Only the key that the host names may log in, and only here.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use banger_agent_api::{
    AgentError, Argument, ErrorCode, ExecCall, ExitStatus, PublicKey, SshCall, SshReply, WireError,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use super::calls::{Server, begin, refuse};
use super::command::{Command, Running, failed, reap};
use super::connect::carry;
use crate::console;

/// sshd wants to be called by its full path (sshd(8)).
const SSHD: [&str; 4] = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd", "/usr/bin/sshd"];
const KEYGEN: [&str; 3] = ["/usr/bin/ssh-keygen", "/usr/local/bin/ssh-keygen", "/bin/ssh-keygen"];
/// The host key, on the machine's own disk.
const KEYS: &str = "/var/lib/banger/ssh";
const HOST_KEY: &str = "ssh_host_ed25519_key";
/// What exists for one connection.
const RUNTIME: &str = "/run/banger/ssh";
/// Where OpenSSH's sshd wants an empty directory for its unprivileged half.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";
/// How long sshd may take to greet: software emulation on a loaded host is slow.
const GREETING_PATIENCE: Duration = Duration::from_secs(60);
const GREETING_LIMIT: usize = 4096;
/// How long sshd may take to end after its connection has.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// Most of what sshd says before it gives up.
const LAST_WORDS_LIMIT: u64 = 2000;

/// What every machine's sshd is told. No password, no other key, no network of its own.
const OPTIONS: [&str; 16] = [
    "PubkeyAuthentication=yes",
    "PasswordAuthentication=no",
    "KbdInteractiveAuthentication=no",
    "PermitRootLogin=prohibit-password",
    "UsePAM=yes",
    // The file of keys is the agent's.
    "StrictModes=no",
    "AllowAgentForwarding=yes",
    "AllowTcpForwarding=yes",
    "AllowStreamLocalForwarding=yes",
    "X11Forwarding=no",
    "UseDNS=no",
    "PrintMotd=no",
    "MaxSessions=100",
    "LogLevel=ERROR",
    "AcceptEnv=LANG LC_* COLORTERM",
    "Subsystem=sftp internal-sftp",
];

/// Runs the call.
pub(super) async fn run<S>(
    server: &Rc<Server>,
    call: SshCall,
    mut stream: S,
) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connection = match Connection::open(server, &call).await {
        Ok(connection) => connection,
        Err(error) => return refuse(&mut stream, error).await,
    };
    let Connection { running, mut socket, greeting, mut words, host_key, place } = connection;
    server.execs.set(server.execs.get() + 1);
    let result = async {
        begin(&mut stream, SshReply { host_key }).await?;
        let (from_guest, to_guest) = socket.split();
        tokio::select! {
            result = carry(greeting.chain(from_guest), to_guest, stream) => result,
            // Whoever says something must find a reader.
            never = log(&mut words) => match never {},
        }
    }
    .await;
    // What the connection was for is over: sshd reads the end, and ends its sessions.
    drop((socket, place));
    tokio::select! {
        _ = running.exit.readable() => {}
        never = log(&mut words) => match never {},
        () = tokio::time::sleep(END_PATIENCE) => {
            let _ = rustix::process::kill_process(running.pid, rustix::process::Signal::KILL);
            let _ = running.exit.readable().await;
        }
    }
    reap(&running.exit);
    server.execs.set(server.execs.get() - 1);
    if let Some(cgroup) = running.cgroup {
        server.cgroups.give_back(cgroup);
    }
    result
}

/// An sshd that has greeted.
struct Connection {
    running: Running,
    socket: UnixStream,
    greeting: io::Cursor<Vec<u8>>,
    words: pipe::Receiver,
    host_key: PublicKey,
    place: Place,
}

impl Connection {
    async fn open(server: &Rc<Server>, call: &SshCall) -> Result<Self, AgentError> {
        let program = find(&SSHD).ok_or_else(missing)?;
        let host_key = host_key(server).await?;
        let place = Place::make(server.ssh_connections.replace(server.ssh_connections.get() + 1))
            .and_then(|place| place.authorize(&call.key).map(|()| place))
            .map_err(|error| failed("cannot prepare for sshd", error))?;
        let mut words = vec![program.to_owned(), "-i".into(), "-e".into(), "-f".into()];
        words.extend(["/dev/null".to_owned(), "-o".into(), format!("HostKey={KEYS}/{HOST_KEY}")]);
        words.extend(["-o".into(), format!("AuthorizedKeysFile={}", place.keys().display())]);
        words.extend(OPTIONS.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]));
        let (running, socket, mut said) = start(server, &words)?;
        let mut socket = socket;
        let greeting =
            tokio::time::timeout(GREETING_PATIENCE, read_some(&mut socket)).await.ok().flatten();
        let Some(greeting) = greeting else {
            drop(socket);
            let mut last_words = Vec::new();
            let _ = tokio::time::timeout(
                Duration::from_secs(1),
                (&mut said).take(LAST_WORDS_LIMIT).read_to_end(&mut last_words),
            )
            .await;
            let _ = rustix::process::kill_process(running.pid, rustix::process::Signal::KILL);
            let _ = running.exit.readable().await;
            reap(&running.exit);
            let text = String::from_utf8_lossy(&last_words).trim().replace('\n', "; ");
            return Err(failed("the machine's sshd does not answer", text));
        };
        Ok(Self {
            running,
            socket,
            greeting: io::Cursor::new(greeting),
            words: said,
            host_key,
            place,
        })
    }
}

/// Reads what comes first; `None` at the end.
async fn read_some(socket: &mut UnixStream) -> Option<Vec<u8>> {
    let mut greeting = vec![0; GREETING_LIMIT];
    match socket.read(&mut greeting).await {
        Ok(count) if count > 0 => {
            greeting.truncate(count);
            Some(greeting)
        }
        _ => None,
    }
}

/// Puts what sshd says on the console.
async fn log(words: &mut pipe::Receiver) -> std::convert::Infallible {
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = words.read(&mut buffer).await {
        for line in String::from_utf8_lossy(&buffer[..count]).lines() {
            console::info(&format!("sshd: {line}"));
        }
    }
    std::future::pending().await
}

fn find(programs: &[&'static str]) -> Option<&'static str> {
    programs.iter().find(|program| Path::new(program).is_file()).copied()
}

fn missing() -> AgentError {
    AgentError::new(
        ErrorCode::NoSuchProgram,
        "the machine has no sshd; the package is called openssh-server, or openssh",
    )
}

fn start(
    server: &Server,
    words: &[String],
) -> Result<(Running, UnixStream, pipe::Receiver), AgentError> {
    let cannot = |error: io::Error| failed("cannot start sshd", error);
    let (near, far) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| cannot(error.into()))?;
    let (said, errors) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| cannot(error.into()))?;
    let command = Command::of_exec(&exec(words)?, &[])?;
    let cgroup = server.cgroups.take();
    let child = command.spawn([&far, &far, &errors], false, cgroup.as_ref()).map_err(cannot)?;
    let near = std::os::unix::net::UnixStream::from(near);
    near.set_nonblocking(true).map_err(cannot)?;
    let socket = UnixStream::from_std(near).map_err(cannot)?;
    let said = pipe::Receiver::from_owned_fd(said).map_err(cannot)?;
    let exit =
        banger_guest_sys::watch(child.pidfd, tokio::io::Interest::READABLE).map_err(cannot)?;
    let pid = Pid::from_raw(child.pid).ok_or_else(|| failed("cannot start sshd", "no pid"))?;
    Ok((Running { pid, exit, cgroup }, socket, said))
}

fn exec(words: &[String]) -> Result<ExecCall, AgentError> {
    let argv = words.iter().map(|word| Argument::new(word.as_str())).collect::<Result<_, _>>();
    let argv = argv.map_err(|error| failed("cannot run a program", error))?;
    Ok(ExecCall { argv, ..ExecCall::default() })
}

/// Returns the machine's own key, which is made where there is none yet.
async fn host_key(server: &Server) -> Result<PublicKey, AgentError> {
    // One at a time: two first connections make one key.
    let _guard = server.ssh_key.lock().await;
    let public = Path::new(KEYS).join(format!("{HOST_KEY}.pub"));
    if !public.exists() {
        make_host_key(server).await?;
    }
    let text = std::fs::read_to_string(&public)
        .map_err(|error| failed("cannot read the machine's host key", error))?;
    text.parse().map_err(|error| failed("cannot read the machine's host key", error))
}

/// Makes a key in a directory beside its place and moves that there once it is on the disk, so that
/// no crash leaves half a key.
async fn make_host_key(server: &Server) -> Result<(), AgentError> {
    let program = find(&KEYGEN).ok_or_else(missing)?;
    let cannot = |error: io::Error| failed("cannot make the machine's host key", error);
    let new = PathBuf::from(format!("{KEYS}.new"));
    for old in [&new, Path::new(KEYS)] {
        match std::fs::remove_dir_all(old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
            _ => {}
        }
    }
    std::fs::create_dir_all(&new).map_err(cannot)?;
    std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .map_err(cannot)?;
    let key = new.join(HOST_KEY);
    let words = [program, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &key.to_string_lossy()]
        .map(str::to_owned);
    let status = run_to_end(server, &words).await?;
    if status != ExitStatus::Code(0) {
        return Err(failed("cannot make the machine's host key", format!("{program} failed")));
    }
    let settle = || {
        for path in [&key, &key.with_extension("pub"), &new] {
            File::open(path)?.sync_all()?;
        }
        std::fs::rename(&new, KEYS)?;
        File::open(Path::new(KEYS).parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    settle().map_err(cannot)
}

async fn run_to_end(server: &Server, words: &[String]) -> Result<ExitStatus, AgentError> {
    let cannot = |error: io::Error| failed("cannot start a program", error);
    let null: OwnedFd =
        File::options().read(true).write(true).open("/dev/null").map_err(cannot)?.into();
    let command = Command::of_exec(&exec(words)?, &[])?;
    let cgroup = server.cgroups.take();
    let child = command.spawn([&null, &null, &null], false, cgroup.as_ref()).map_err(cannot)?;
    let exit =
        banger_guest_sys::watch(child.pidfd, tokio::io::Interest::READABLE).map_err(cannot)?;
    let _ = exit.readable().await;
    if let Some(cgroup) = cgroup {
        server.cgroups.give_back(cgroup);
    }
    Ok(reap(&exit))
}

/// A directory for one connection; it goes with it.
struct Place(PathBuf);

impl Place {
    fn make(number: u64) -> io::Result<Self> {
        std::fs::create_dir_all(PRIVILEGE_SEPARATION)?;
        let path = Path::new(RUNTIME).join(number.to_string());
        // Left by an agent that was restarted.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn keys(&self) -> PathBuf {
        self.0.join("authorized_keys")
    }

    /// Lets one key in. sshd reads it as the user who logs in, so everybody may read it.
    fn authorize(&self, key: &PublicKey) -> io::Result<()> {
        let mut file = File::create(self.keys())?;
        std::fs::set_permissions(self.keys(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        writeln!(file, "{key}")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
