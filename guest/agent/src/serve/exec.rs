//! Running a command for the host.
//!
//! What happens when the client vanishes (its stream ends before the command does):
//! - on a terminal, the terminal hangs up: SIGHUP to the session, as when a modem line dropped. What
//!   survives that on purpose (nohup, tmux) lives on, as after ssh.
//! - on pipes there is nobody left to notice: SIGTERM to the exec's whole cgroup (its process group
//!   where there are no cgroups), and SIGKILL two seconds later.
//!
//! A command that ends leaves its background processes running; they end with the machine.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use banger_agent_api::{
    AgentError, ErrorCode, ExecCall, ExecStarted, MAX_RESPONSE, Outcome, Response, SpawnBenchCall,
    SpawnBenchReply, WireError, encode_message,
};
use bytes::BytesMut;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::io::{AsyncRead, AsyncWrite};

use super::calls::{Server, refuse};
use super::cgroup::Cgroup;
use super::command::{Attached, Command, Running, failed, reap};
use super::input::{Audience, Input};
use super::output::{Credit, Pump, Sources};

/// Between SIGTERM and SIGKILL for the processes of a vanished client.
const ABANDONED_GRACE: Duration = Duration::from_secs(2);

fn start(server: &Server, call: &ExecCall) -> Result<(Running, Attached), AgentError> {
    let command = Command::of_exec(call, &server.environment.borrow())?;
    command.start(call.pty.as_ref(), call.stdin, server.cgroups.take())
}

/// Runs the call to its end.
pub(super) async fn run<S>(
    server: &Rc<Server>,
    call: ExecCall,
    mut stream: S,
) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (running, attached) = match start(server, &call) {
        Ok(started) => started,
        Err(error) => return refuse(&mut stream, error).await,
    };
    let on_terminal = call.pty.is_some();
    drop(call);
    server.execs.set(server.execs.get() + 1);
    let result = attend(&running, attached, stream).await;
    if result.is_err() {
        abandon(&running, on_terminal).await;
    }
    server.execs.set(server.execs.get() - 1);
    // The exit is on its way before the next exec is prepared.
    tokio::task::yield_now().await;
    if let Some(cgroup) = running.cgroup {
        server.cgroups.give_back(cgroup);
    }
    server.cgroups.prepare();
    result
}

/// Carries bytes both ways until the command ends. An error means that the client is gone; either
/// way the command's pipes or terminal are closed on return.
async fn attend<S>(running: &Running, attached: Attached, stream: S) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let started = ExecStarted { pid: running.pid.as_raw_nonzero().get().unsigned_abs() };
    let mut answer = BytesMut::new();
    encode_message(&Response::new(Outcome::Ok(started)), MAX_RESPONSE, &mut answer)?;
    let (reader, writer) = tokio::io::split(stream);
    let credit = Credit::default();
    let (sink, sources, peer) = Sources::of(attached);
    let input = Input::new(running.pid, sink.terminal(), Audience::Group);
    let mut pump = Pump::new(writer, sources, &credit, answer);
    let exited = async {
        let _ = running.exit.readable().await;
        // Our copy kept the terminal from hanging up while the command had none open.
        drop(peer);
    };
    tokio::select! {
        result = pump.run(exited) => result?,
        error = input.receive(reader) => return Err(error),
        () = input.feed(sink, &credit) => {}
    }
    pump.finish(reap(&running.exit)).await
}

/// Ends what a vanished client left; see the module documentation. The pipes or the terminal are
/// closed already.
async fn abandon(running: &Running, on_terminal: bool) {
    let exited = || async {
        let _ = running.exit.readable().await;
    };
    let first = if on_terminal { Signal::HUP } else { Signal::TERM };
    for signal in [first, Signal::CONT] {
        signal_all(running, signal, on_terminal);
    }
    if on_terminal {
        exited().await;
    } else {
        let _ = tokio::time::timeout(ABANDONED_GRACE, exited()).await;
        // Also where the command itself is gone: others of its cgroup may not be.
        let deadline = Instant::now() + ABANDONED_GRACE;
        while Instant::now() < deadline
            && running.cgroup.as_ref().is_some_and(|cgroup| !cgroup.processes().is_empty())
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if let Some(cgroup) = &running.cgroup {
            cgroup.kill();
        }
        let _ = rustix::process::kill_process_group(running.pid, Signal::KILL);
        exited().await;
    }
    reap(&running.exit);
}

fn signal_all(running: &Running, signal: Signal, only_group: bool) {
    let _ = rustix::process::kill_process_group(running.pid, signal);
    if only_group {
        return;
    }
    for pid in running.cgroup.iter().flat_map(Cgroup::processes).filter_map(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Times the guest's own fork, exec and wait of a command, with nothing of the channel.
pub(super) async fn spawn_bench(
    server: &Server,
    call: SpawnBenchCall,
) -> Result<SpawnBenchReply, AgentError> {
    const MOST_ROUNDS: u32 = 1000;
    if !(1..=MOST_ROUNDS).contains(&call.rounds) {
        return Err(AgentError::new(ErrorCode::BadRequest, "rounds must be 1 to 1000"));
    }
    let exec = ExecCall { argv: call.argv, ..ExecCall::default() };
    let command = Command::of_exec(&exec, &[])?;
    let null: OwnedFd = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| failed("cannot open /dev/null", error))?
        .into();
    let cgroup = server.cgroups.take();
    let mut times = Vec::new();
    for _ in 0..call.rounds {
        let start = Instant::now();
        let child = command
            .spawn([&null, &null, &null], false, cgroup.as_ref())
            .map_err(|error| failed("cannot start a process", error))?;
        rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
            .map_err(|error| failed("cannot wait for a process", error))?;
        times.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        tokio::task::yield_now().await;
    }
    if let Some(cgroup) = cgroup {
        server.cgroups.give_back(cgroup);
    }
    times.sort_unstable();
    Ok(SpawnBenchReply {
        rounds: call.rounds,
        minimum_nanos: times[0],
        median_nanos: times[times.len() / 2],
        mean_nanos: times.iter().sum::<u64>() / u64::from(call.rounds),
    })
}
