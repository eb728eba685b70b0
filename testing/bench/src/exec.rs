//! One command in a running guest: the agent's round trip against its parts,
//! and against `ssh` to the same guest.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use banger_agent_api::{Argument, ExecCall, Frame, FrameReader, FrameWriter, SpawnBenchCall};
use banger_guest_client::{AgentClient, BoxedStream};
use banger_harness::Environment;
use bytes::Bytes;

use crate::boot::reference;
use crate::number::{Limit, Number, median_ms};
use crate::ssh::Ssh;
use crate::{environment, say};

/// Commands per round.
const COMMANDS: u32 = 60;
/// Whole command lines per round.
const WHOLES: u32 = 5;
/// Answer of an echo over an open stream, in bytes.
const ECHO: usize = 64;

fn words(command: &[&str]) -> Result<Vec<Argument>> {
    command.iter().map(|word| word.parse::<Argument>().context("an argument")).collect()
}

fn call(command: &[&str]) -> Result<ExecCall> {
    Ok(ExecCall {
        argv: words(command)?,
        env: Vec::new(),
        cwd: None,
        user: None,
        pty: None,
        stdin: false,
    })
}

pub(crate) async fn run(client: &AgentClient, command: &[&str]) -> Result<String> {
    let (out, err, status) = client.exec(call(command)?).await?.collect(1 << 20).await?;
    let text = String::from_utf8_lossy(&out).into_owned();
    ensure!(
        matches!(status, banger_agent_api::ExitStatus::Code(0)),
        "{command:?} ended with {status:?}: {text}{}",
        String::from_utf8_lossy(&err)
    );
    Ok(text)
}

/// An echo that stays open, as one frame out and one frame back.
struct Echo {
    reader: FrameReader<tokio::io::ReadHalf<BoxedStream>>,
    writer: FrameWriter<tokio::io::WriteHalf<BoxedStream>>,
}

impl Echo {
    fn over(stream: BoxedStream) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader: FrameReader::new(reader), writer: FrameWriter::new(writer) }
    }

    async fn round_trip(&mut self) -> Result<()> {
        let sent = Frame::Data(Bytes::from_static(&[7; ECHO]));
        self.writer.send(&sent).await.context("write to the echo")?;
        let back = self.reader.next().await.context("read from the echo")?;
        ensure!(back.as_ref() == Some(&sent), "the echo answered {back:?}");
        Ok(())
    }
}

/// Prepares sshd in the guest and a key for it; returns the ssh command.
async fn prepare_ssh(client: &AgentClient, folder: &Path, port: u16) -> Result<Ssh> {
    let key = folder.join("key");
    let made = Command::new("/usr/bin/ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status();
    ensure!(made.is_ok_and(|status| status.success()), "ssh-keygen (package openssh-client)");
    let public = std::fs::read_to_string(folder.join("key.pub")).context("read the key")?;
    let script = format!(
        "mkdir -p /root/.ssh /run/sshd && chmod 700 /root/.ssh && echo '{}' > /root/.ssh/authorized_keys && \
         chmod 600 /root/.ssh/authorized_keys && ssh-keygen -A >/dev/null && /usr/sbin/sshd",
        public.trim()
    );
    run(client, &["/bin/sh", "-c", &script]).await?;
    let known = folder.join("known_hosts");
    let mut ssh: Vec<String> =
        ["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new", "-o"]
            .map(str::to_owned)
            .into();
    ssh.push(format!("UserKnownHostsFile={}", known.display()));
    ssh.extend(["-i".to_owned(), key.display().to_string(), "-p".to_owned(), port.to_string()]);
    Ok(Ssh::plain(&ssh, "root@127.0.0.1"))
}

/// The first connection, which is not measured: the guest may still be setting up its network.
async fn first_ssh(ssh: &Ssh) -> Result<()> {
    for _ in 0..60 {
        if ssh.run_true().is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    ssh.run_true().map(drop)
}

fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("find a port")?;
    Ok(listener.local_addr().context("find a port")?.port())
}

pub(crate) fn measure(rounds: u32) -> Result<Vec<Number>> {
    let environment = environment();
    let (template, _) = reference(&environment)?;
    let runtime = crate::runtime()?;
    let folder = environment.home().join("bare");
    let port = free_port()?;
    let prepared = template.prepare(&folder)?.forward_ssh(port);

    let (mut execs, mut echoes, mut opened, mut spawns, mut sshs) =
        (vec![], vec![], vec![], vec![], vec![]);
    let whole = runtime.block_on(async {
        let mut qemu = prepared.start(false)?;
        let client = AgentClient::new(Arc::new(qemu.first_word().await?));
        // A guest that still boots would be measured with its boot.
        run(&client, &["/bin/sh", "-c", "systemctl is-system-running --wait >/dev/null; true"]).await?;
        let ssh = prepare_ssh(&client, &folder, port).await?;
        first_ssh(&ssh).await?;
        for round in 0..rounds {
            let mut open = Echo::over(client.echo().await?);
            for _ in 0..COMMANDS {
                let began = Instant::now();
                run(&client, &["/bin/true"]).await?;
                execs.push(began.elapsed());
                let began = Instant::now();
                open.round_trip().await?;
                echoes.push(began.elapsed());
                let began = Instant::now();
                drop(client.echo().await?);
                opened.push(began.elapsed());
            }
            let bench = SpawnBenchCall { argv: words(&["/bin/true"])?, rounds: COMMANDS };
            spawns.push(Duration::from_nanos(client.spawn_bench(bench).await?.median_nanos));
            for _ in 0..3 {
                sshs.push(ssh.run_true()?);
            }
            say(format_args!(
                "exec, round {round}: {:.2} ms, echo {:.2} ms, new stream {:.2} ms, spawn {:.2} ms, ssh {:.0} ms",
                median_ms(&execs),
                median_ms(&echoes),
                median_ms(&opened),
                median_ms(&spawns),
                median_ms(&sshs)
            ));
        }
        // The guest beside it stays for its sshd.
        whole(&environment, &ssh, rounds)
    })?;
    std::fs::remove_dir_all(&folder).context("remove the copies")?;
    environment.finish();

    let parts = median_ms(&echoes) + median_ms(&spawns);
    let ssh = ("`ssh guest true` to the same guest".to_owned(), median_ms(&sshs));
    let mut numbers = vec![
        Number {
            name: "exec: the agent's round trip of `true`".to_owned(),
            ours: median_ms(&execs),
            peer: Some((
                format!(
                    "echo of {ECHO} bytes over the same channel ({:.2} ms) and the guest's own fork, exec and wait ({:.2} ms)",
                    median_ms(&echoes),
                    median_ms(&spawns)
                ),
                parts,
            )),
            unit: "ms",
            limit: Limit::AtMostTimes(1.3),
        },
        Number {
            name: "exec: the agent's round trip of `true` against ssh".to_owned(),
            ours: median_ms(&execs),
            peer: Some(ssh),
            unit: "ms",
            limit: Limit::FasterBy(8.0),
        },
        Number {
            name: "exec: opening a stream and one answer on it".to_owned(),
            ours: median_ms(&opened),
            peer: None,
            unit: "ms",
            limit: Limit::None,
        },
    ];
    numbers.extend(whole);
    Ok(numbers)
}

/// The whole command line, daemon included, against the whole of ssh, in turns: to the same machine by
/// `ssh NAME.vm`, and to a bare guest of the same disks through QEMU's user-mode network.
fn whole(environment: &Environment, bare: &Ssh, rounds: u32) -> Result<Vec<Number>> {
    environment.banger(["vm", "start", "reference"]).ok();
    let settle = "systemctl is-system-running --wait > /dev/null; true";
    environment.exec("reference", ["sh", "-c", settle]).ok();
    let ways = [
        ("`ssh NAME.vm true`", Ssh::by_name(environment, "reference")),
        ("`ssh -p PORT guest true` by QEMU's user-mode network", bare.clone()),
    ];
    let sockets = tempfile::tempdir_in("/var/tmp").context("a folder")?;
    let mut masters = Vec::new();
    for (at, (_, way)) in ways.iter().enumerate() {
        way.run_true()?;
        masters.push(way.warm(&sockets.path().join(at.to_string()))?);
    }
    let mut ours = Vec::new();
    let mut cold = [vec![], vec![]];
    let mut warm = [vec![], vec![]];
    for round in 0..rounds {
        for _ in 0..WHOLES {
            let began = Instant::now();
            environment.exec("reference", ["true"]).ok();
            ours.push(began.elapsed());
            for (master, times) in masters.iter().zip(&mut warm) {
                times.push(master.0.run_true()?);
            }
        }
        for ((_, way), times) in ways.iter().zip(&mut cold) {
            times.push(way.run_true()?);
        }
        say(format_args!(
            "vm exec, round {round}: {:.1} ms, ssh {:.0} and {:.0} ms, warm {:.1} and {:.1} ms",
            median_ms(&ours),
            median_ms(&cold[0]),
            median_ms(&cold[1]),
            median_ms(&warm[0]),
            median_ms(&warm[1])
        ));
    }
    drop(masters);
    let name = "exec: the whole of `banger vm exec box -- true`";
    let against = |times: &[Vec<Duration>; 2], words: &str, limit: Limit| {
        // The stronger of the two is the peer.
        let medians = [median_ms(&times[0]), median_ms(&times[1])];
        let stronger = usize::from(medians[1] < medians[0]);
        let other = format!("{:.1} ms by the other way", medians[1 - stronger]);
        Number {
            name: name.to_owned(),
            ours: median_ms(&ours),
            peer: Some((format!("{}{words} ({other})", ways[stronger].0), medians[stronger])),
            unit: "ms",
            limit,
        }
    };
    Ok(vec![
        against(&cold, "", Limit::FasterBy(5.0)),
        against(&warm, " through a warm ControlMaster", Limit::AtMostTimes(1.0)),
    ])
}
