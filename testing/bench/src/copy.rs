//! `vm cp` of one large file, each way, against a bare virtio port: a program at each end and nothing
//! between them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use banger_guest_client::AgentClient;

use crate::bare::RAW_PORT;
use crate::boot::reference;
use crate::exec::run;
use crate::number::{Limit, Number, median_ms};
use crate::{environment, say};

const MIB: usize = 1 << 20;
const SIZE: usize = 128 * MIB;
const MACHINE: &str = "reference";

/// Writes a file that nothing can make smaller.
fn make_file(path: &Path) -> Result<Vec<u8>> {
    let random = std::fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    let mut bytes = Vec::with_capacity(SIZE);
    random.take(SIZE as u64).read_to_end(&mut bytes).context("read /dev/urandom")?;
    std::fs::write(path, &bytes).with_context(|| format!("write {}", path.display()))?;
    Ok(bytes)
}

/// Runs the guest's end of the bare port, which is a `dd`, until it has moved all, and then the host's.
async fn raw(
    client: &AgentClient,
    words: &str,
    host: impl FnOnce() -> Result<JoinHandle<std::io::Result<()>>>,
) -> Result<Duration> {
    let script = format!(
        "for p in /sys/class/virtio-ports/*; do [ \"$(cat $p/name)\" = {RAW_PORT} ] && d=/dev/${{p##*/}}; \
         done; dd {words} bs=1M count={SIZE} iflag=count_bytes,fullblock status=none"
    );
    let began = Instant::now();
    let host = host()?;
    run(client, &["/bin/sh", "-c", &script]).await?;
    let moved = host.join().map_err(|_| anyhow::anyhow!("the host's end panicked"))?;
    moved.context("the host's end of the bare port")?;
    Ok(began.elapsed())
}

async fn raw_in(client: &AgentClient, socket: &Path, bytes: &Arc<Vec<u8>>) -> Result<Duration> {
    let bytes = Arc::clone(bytes);
    raw(client, "if=$d of=/dev/null", || {
        let mut stream = UnixStream::connect(socket).context("connect to the bare port")?;
        Ok(std::thread::spawn(move || stream.write_all(&bytes)))
    })
    .await
}

async fn raw_out(client: &AgentClient, socket: &Path) -> Result<Duration> {
    raw(client, "if=/dev/zero of=$d", || {
        let mut stream = UnixStream::connect(socket).context("connect to the bare port")?;
        Ok(std::thread::spawn(move || {
            let mut buffer = vec![0; MIB];
            let mut left = SIZE;
            while left > 0 {
                match stream.read(&mut buffer)? {
                    0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                    count => left = left.saturating_sub(count),
                }
            }
            Ok(())
        }))
    })
    .await
}

pub(crate) fn measure(rounds: u32) -> Result<Vec<Number>> {
    let environment = environment();
    let (template, _) = reference(&environment)?;
    let folder = environment.home().join("bare");
    let prepared = template.prepare(&folder)?.with_raw_port();
    let file = environment.home().join("file");
    let bytes = Arc::new(make_file(&file)?);
    let (from, back) = (file.display().to_string(), environment.home().join("back"));
    let inside = format!("{MACHINE}:file");
    let settle = "systemctl is-system-running --wait > /dev/null; true";
    let (mut ours, mut bare) = ([vec![], vec![]], [vec![], vec![]]);
    crate::runtime()?.block_on(async {
        let mut qemu = prepared.start(false)?;
        let client = banger_guest_client::AgentClient::new(Arc::new(qemu.first_word().await?));
        run(&client, &["/bin/sh", "-c", settle]).await?;
        environment.banger(["vm", "start", MACHINE]).ok();
        environment.exec(MACHINE, ["sh", "-c", settle]).ok();
        let socket = folder.join("raw.sock");
        for round in 0..rounds {
            let began = Instant::now();
            environment.banger(["vm", "cp", &from, &inside]).ok();
            ours[0].push(began.elapsed());
            bare[0].push(raw_in(&client, &socket, &bytes).await?);
            environment.exec(MACHINE, ["sync"]).ok();
            let began = Instant::now();
            environment.banger(["vm", "cp", &inside, &back.display().to_string()]).ok();
            ours[1].push(began.elapsed());
            bare[1].push(raw_out(&client, &socket).await?);
            let whole = std::fs::read(&back).context("read what came back")?;
            ensure!(whole == *bytes, "what came back is something else");
            std::fs::remove_file(&back).context("remove what came back")?;
            environment.exec(MACHINE, ["sh", "-c", "rm file; sync"]).ok();
            let rate = |times: &[Duration]| mib_a_second(times);
            say(format_args!(
                "copy, round {round}: in {:.0} against {:.0} MiB/s, out {:.0} against {:.0} MiB/s",
                rate(&ours[0]),
                rate(&bare[0]),
                rate(&ours[1]),
                rate(&bare[1])
            ));
        }
        anyhow::Ok(())
    })?;
    std::fs::remove_dir_all(&folder).context("remove the copies")?;
    environment.finish();
    let number = |way: usize, name: &str| Number {
        name: format!("copy: `vm cp` of {} MiB {name}", SIZE / MIB),
        ours: mib_a_second(&ours[way]),
        peer: Some((
            "`dd` at the guest's end of a bare virtio port".to_owned(),
            mib_a_second(&bare[way]),
        )),
        unit: "MiB/s",
        limit: Limit::AtLeastTimes(0.7),
    };
    Ok(vec![number(0, "into a guest"), number(1, "out of a guest")])
}

fn mib_a_second(times: &[Duration]) -> f64 {
    (SIZE / MIB) as f64 * 1000.0 / median_ms(times)
}
