//! Commands that go on without a client: started by one call, listed and read by others.
//!
//! They belong to this process: their output is kept in its memory, so that a full disk loses none of
//! it and nothing of it is left behind. There is a most for everything, because the machine's own
//! programs start and fill them: so many are known, and so much output is kept of one and of all
//! together. What is more drops the oldest output, never holds up a command, and is counted.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::{Duration, Instant};

use banger_agent_api::{
    AgentError, Argument, DetachReply, DetachedCommand, DetachedOutputCall, DetachedReply, Empty,
    ErrorCode, ExecCall, ExitStatus, Frame, FrameKind, FrameReader, FrameWriter, WireError,
    printable_excerpt,
};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::calls::{Server, begin, refuse};
use super::command::{Attached, Command, Running, reap};
use super::detached_output::Output;
use super::output::{DRAIN_SILENCE, Sources};

/// Detached commands that are known at a time, those that have ended included.
const MOST: usize = 32;
/// Bytes of memory that the kept output of one may take.
const KEPT_OF_ONE: usize = 1 << 20;
/// Bytes of memory that the kept output of all together may take.
const KEPT_OF_ALL: usize = 8 << 20;
/// Bytes of output that are read at once.
const CHUNK: usize = 16 * 1024;
/// How long output is taken after a command's end.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// Characters of a command that the list shows.
const SHOWN: usize = 200;

/// The detached commands.
#[derive(Debug, Default)]
pub(super) struct Detached {
    commands: RefCell<Vec<Rc<One>>>,
    last: Cell<u32>,
}

/// One of them.
#[derive(Debug)]
struct One {
    id: u32,
    pid: u32,
    command: String,
    started: Instant,
    exit: Cell<Option<ExitStatus>>,
    output: RefCell<Output>,
    /// There is more output, or it has ended.
    news: Notify,
}

impl Detached {
    /// Lists them, the oldest first.
    pub(super) fn list(&self) -> DetachedReply {
        let show = |one: &Rc<One>| {
            let output = one.output.borrow();
            DetachedCommand {
                id: one.id,
                pid: one.pid,
                command: one.command.clone(),
                age_millis: u64::try_from(one.started.elapsed().as_millis()).unwrap_or(u64::MAX),
                exit_code: one.exit.get().map(ExitStatus::shell_code),
                output_bytes: output.written,
                kept_bytes: output.kept as u64,
            }
        };
        DetachedReply { commands: self.commands.borrow().iter().map(show).collect() }
    }

    fn find(&self, id: u32) -> Option<Rc<One>> {
        self.commands.borrow().iter().find(|one| one.id == id).cloned()
    }

    /// Makes room for one more: the one that ended first is forgotten.
    fn make_room(&self) -> Result<(), AgentError> {
        let mut commands = self.commands.borrow_mut();
        if commands.len() < MOST {
            return Ok(());
        }
        match commands.iter().position(|one| one.exit.get().is_some()) {
            Some(oldest) => drop(commands.remove(oldest)),
            None => {
                let words = format!("{MOST} detached commands run, the most there may be");
                return Err(AgentError::new(ErrorCode::Refused, words));
            }
        }
        Ok(())
    }

    /// Drops output until no more is kept than may be; of all together, from who has most.
    fn trim(&self, one: &One) {
        while one.output.borrow().memory() > KEPT_OF_ONE {
            one.output.borrow_mut().drop_oldest();
        }
        let commands = self.commands.borrow();
        let memory = |one: &Rc<One>| one.output.borrow().memory();
        while commands.iter().map(memory).sum::<usize>() > KEPT_OF_ALL {
            let Some(largest) = commands.iter().max_by_key(|one| memory(one)) else { return };
            largest.output.borrow_mut().drop_oldest();
        }
    }
}

/// Starts a command that nobody waits for.
pub(super) fn start(server: &Rc<Server>, call: &ExecCall) -> Result<DetachReply, AgentError> {
    if call.pty.is_some() || call.stdin {
        let words = "a detached command has no terminal and no input";
        return Err(AgentError::new(ErrorCode::BadRequest, words));
    }
    let command = Command::of_exec(call, &server.environment.borrow())?;
    server.detached.make_room()?;
    let (running, attached) = command.start(None, false, server.cgroups.take())?;
    let id = server.detached.last.get() + 1;
    server.detached.last.set(id);
    let one = Rc::new(One {
        id,
        pid: running.pid.as_raw_nonzero().get().unsigned_abs(),
        command: shown(&call.argv),
        started: Instant::now(),
        exit: Cell::new(None),
        output: RefCell::default(),
        news: Notify::new(),
    });
    server.detached.commands.borrow_mut().push(Rc::clone(&one));
    server.execs.set(server.execs.get() + 1);
    let reply = DetachReply { id, pid: one.pid };
    tokio::task::spawn_local(attend(Rc::clone(server), one, running, attached));
    Ok(reply)
}

fn shown(argv: &[Argument]) -> String {
    let words = argv.iter().map(|word| String::from_utf8_lossy(word.as_bytes()));
    printable_excerpt(&words.collect::<Vec<_>>().join(" "), SHOWN)
}

/// Keeps what a command writes until it has ended. It is never held up.
async fn attend(server: Rc<Server>, one: Rc<One>, running: Running, attached: Attached) {
    let (_, mut sources, _) = Sources::of(attached);
    let mut buffers = [vec![0; CHUNK], vec![0; CHUNK]];
    loop {
        let piece = tokio::select! {
            _ = running.exit.readable() => break,
            piece = sources.read(&mut buffers) => piece,
        };
        keep(&server, &one, &buffers, piece);
    }
    // A background process may hold the pipe for ever, and fill it.
    let end = tokio::time::Instant::now() + LAST_OUTPUT;
    while sources.are_open() && tokio::time::Instant::now() < end {
        match tokio::time::timeout(DRAIN_SILENCE, sources.read(&mut buffers)).await {
            Ok(piece) => keep(&server, &one, &buffers, piece),
            Err(_) => break,
        }
    }
    one.exit.set(Some(reap(&running.exit)));
    one.news.notify_waiters();
    server.execs.set(server.execs.get() - 1);
    if let Some(cgroup) = running.cgroup {
        server.cgroups.give_back(cgroup);
    }
    server.cgroups.prepare();
}

fn keep(
    server: &Server,
    one: &One,
    buffers: &[Vec<u8>; 2],
    piece: ControlFlow<(), (FrameKind, usize)>,
) {
    let ControlFlow::Continue((kind, count)) = piece else { return };
    let is_error = kind == FrameKind::Stderr;
    one.output.borrow_mut().push(kind, &buffers[usize::from(is_error)][..count]);
    server.detached.trim(one);
    one.news.notify_waiters();
}

/// Sends what is kept of a command's output, and what comes, if that is wanted.
pub(super) async fn output<S>(
    server: &Server,
    call: &DetachedOutputCall,
    mut stream: S,
) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(one) = server.detached.find(call.id) else {
        let words = format!("the agent knows no detached command {}", call.id);
        return refuse(&mut stream, AgentError::new(ErrorCode::NotFound, words)).await;
    };
    begin(&mut stream, Empty {}).await?;
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let mut position = if call.skip_kept { one.output.borrow().written } else { 0 };
    loop {
        // Before the look, so that no news is missed.
        let news = one.news.notified();
        let exit = one.exit.get();
        let next = one.output.borrow().after(position);
        if let Some(next) = next {
            if next.lost > 0 {
                let words = format!("[banger: {} bytes of output are not kept]\n", next.lost);
                writer.send(&Frame::Stderr(Bytes::from(words))).await?;
            }
            position = next.position;
            writer.send(&next.frame).await?;
            continue;
        }
        match exit {
            Some(exit) => writer.send(&Frame::Exit(exit)).await?,
            None if !call.follow => writer.send(&Frame::DataEnd).await?,
            None => {
                tokio::select! {
                    () = news => continue,
                    // A client sends nothing: this is its end.
                    _ = reader.next() => return Ok(()),
                }
            }
        }
        return writer.shutdown().await;
    }
}
