//! One question and its answer, against an echo of lines of the same lengths: a process that reads a
//! line and writes one, over a connection of the same kind, asked by the same client in turns.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use banger_helper_api::Method;
use banger_privileged_tests::running::request;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use super::launch::Launched;
use super::{Echo, World, timed};
use crate::number::{Limit, Number, median_us};
use crate::say;

/// Questions to each side in turn.
const BATCH: u32 = 200;
/// Turns per round.
const TURNS: u32 = 10;

/// One connection, as fast as a client can be.
struct Line {
    reader: BufReader<UnixStream>,
    answer: Vec<u8>,
}

impl Line {
    fn new(stream: UnixStream) -> Self {
        Self { reader: BufReader::new(stream), answer: Vec::new() }
    }

    fn ask(&mut self, question: &[u8]) -> Result<()> {
        self.answer.clear();
        self.reader.get_mut().write_all(question).context("ask")?;
        self.reader.read_until(b'\n', &mut self.answer).context("read an answer")?;
        Ok(())
    }
}

/// Where client and server run, helper and echo alike. Left to itself the scheduler has one of them on
/// the client's CPU and the other on one that sleeps between any two questions, now this way, now
/// that, and waking a CPU can take longer than all the rest: the ratio would be the scheduler's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// On one CPU, where a round trip is the work of both sides and nothing else.
    Together,
    /// On a CPU each, where it is two wakings beside.
    Apart,
}

impl Placed {
    const ALL: [Self; 2] = [Self::Apart, Self::Together];
}

/// Asks about a machine that runs, where there can be one, and about one that does not.
pub(super) fn measure(world: &World, rounds: u32, has_machines: bool) -> Result<Vec<Number>> {
    let mut numbers = Vec::new();
    if has_machines {
        let machine = Launched::by_helper(world, "asked")?;
        let params = json!({"pid": machine.pid, "api_sock": machine.socket});
        for placed in Placed::ALL {
            numbers.push(against_echo(world, rounds, placed, &params, true)?);
        }
        machine.end(world)?;
    }
    let socket = world.directories().runtime.join("fc-none.sock");
    let params = json!({"pid": 4_194_304, "api_sock": socket});
    for placed in Placed::ALL {
        numbers.push(against_echo(world, rounds, placed, &params, false)?);
    }
    Ok(numbers)
}

fn against_echo(
    world: &World,
    rounds: u32,
    placed: Placed,
    params: &Value,
    is_running: bool,
) -> Result<Number> {
    let cpus = Cpus::of(placed)?;
    let what = match (is_running, placed) {
        (true, Placed::Together) => "a machine that runs, one CPU",
        (true, Placed::Apart) => "a machine that runs, two CPUs",
        (false, Placed::Together) => "a machine that does not run, one CPU",
        (false, Placed::Apart) => "a machine that does not run, two CPUs",
    };
    cpus.keep_server(world.helper.pid())?;
    let question = format!("{}\n", request(Method::ProcessRunning, params));
    let mut helper = Line::new(UnixStream::connect(world.helper.socket()).context("connect")?);
    helper.ask(question.as_bytes())?;
    let answer = String::from_utf8_lossy(&helper.answer).trim_end().to_owned();
    let told: Value = serde_json::from_str(&answer).context("JSON in the helper's answer")?;
    ensure!(told["result"]["running"] == is_running, "the helper answered {answer}");
    let echo = Echo::start(world.directories().outside.join("echo.sock"), &answer)?;
    cpus.keep_server(echo.pid())?;
    let mut peer = Line::new(echo.connect()?);
    peer.ask(question.as_bytes())?;
    ensure!(peer.answer == helper.answer, "the echo answered otherwise");

    let (mut ours, mut echoes): (Vec<Duration>, Vec<Duration>) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for _ in 0..TURNS {
            for _ in 0..BATCH {
                ours.push(timed(|| helper.ask(question.as_bytes()))?);
            }
            for _ in 0..BATCH {
                echoes.push(timed(|| peer.ask(question.as_bytes()))?);
            }
        }
        say(format_args!(
            "helper, {what}, round {round}: {:.1} µs, echo {:.1} µs",
            median_us(&ours),
            median_us(&echoes)
        ));
    }
    Ok(Number {
        name: format!("helper: round trip of `priv.process_running`, {what}"),
        ours: median_us(&ours),
        peer: Some((
            format!("echo of lines of {} and {} bytes", question.len(), answer.len() + 1),
            median_us(&echoes),
        )),
        unit: "µs",
        limit: Limit::AtMostTimes(3.0),
    })
}

/// As long as this lives, this thread and the servers, with the connections that begin meanwhile, are
/// where they are put.
struct Cpus {
    before: CpuSet,
    server: CpuSet,
    kept: RefCell<Vec<Pid>>,
}

impl Cpus {
    fn of(placed: Placed) -> Result<Self> {
        let before = sched_getaffinity(None).context("ask for this thread's CPUs")?;
        let mut all = (0..CpuSet::MAX_CPU).filter(|cpu| before.is_set(*cpu));
        let mut one = || {
            let mut one = CpuSet::new();
            one.set(all.next().context("too few CPUs")?);
            anyhow::Ok(one)
        };
        let client = one()?;
        let server = if placed == Placed::Apart { one()? } else { client };
        sched_setaffinity(None, &client).context("stay on one CPU")?;
        Ok(Self { before, server, kept: RefCell::default() })
    }

    fn keep_server(&self, pid: u32) -> Result<()> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a pid")?;
        self.kept.borrow_mut().push(pid);
        sched_setaffinity(Some(pid), &self.server).context("keep a server on one CPU")
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        let kept = self.kept.borrow().iter().copied().map(Some).collect::<Vec<_>>();
        for thread in kept.into_iter().chain([None]) {
            let _ = sched_setaffinity(thread, &self.before);
        }
    }
}
