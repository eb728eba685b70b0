//! The commands on the machine as a whole: build, boot, stop, clean.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::cache::{Cache, CacheLock, Seat};
use crate::emulator::Retry;
use crate::keeper::write_order;
use crate::kept::{Keeper, Kept};
use crate::machine::Machine;
use crate::note;
use crate::saved_state::{STATE, SavedState, last_lines};

/// The keeper's name for itself on this program's command line.
pub const KEEP: &str = "keep";
/// Says there that the machine is that of tests.
const OF_TESTS: &str = "--tests";
/// What is said to who uses a machine that `boot` would not have started.
const OTHER_PARTS: &str = "the machine that runs is made of other parts than this clone's; to have \
     this clone's: cargo xtask kvm-host";
/// How long the keeper may take to say that the machine is ready.
const READY_PATIENCE: Duration = Duration::from_secs(600);

/// Builds what is missing: the image, the initrd. What could not be fetched is tried at once.
pub fn build(cache: &Cache) -> Result<Machine> {
    let lock = cache.lock()?;
    Machine::prepare(cache, &lock, Retry::Now)
}

/// Returns the files that machines are made of: the kernel and the initrd serve nested guests too.
pub fn parts(cache: &Cache) -> Result<crate::qemu::Parts> {
    let lock = cache.lock()?;
    Ok(Machine::prepare(cache, &lock, Retry::AfterPause)?.parts)
}

/// Holds the machine that runs, and says so where it is not that of today's inputs; starts one if
/// none does.
pub async fn find_or_boot(cache: &Cache) -> Result<Kept> {
    let keeper = Keeper::of(cache);
    if let Some((key, _)) = keeper.info().await
        && let Some(kept) = keeper.hold(&key).await?
    {
        let verb = if cache.seat() == Seat::Tests { "test" } else { "boot" };
        match Machine::find(cache) {
            Ok(Some(machine)) if machine.key == key => {}
            Ok(_) => note(format_args!("{OTHER_PARTS} {verb}")),
            // The machine runs all the same; that verb says what to do.
            Err(error) => note(format_args!("{OTHER_PARTS} {verb}; {error:#}")),
        }
        return Ok(kept);
    }
    boot(cache).await
}

/// Makes sure that the machine of today's inputs runs, and holds it.
pub async fn boot(cache: &Cache) -> Result<Kept> {
    let lock = cache.lock()?;
    boot_locked(cache, &lock).await
}

/// Ends the machine that runs, and starts that of today's inputs before anybody else starts one.
pub async fn restart(cache: &Cache) -> Result<Kept> {
    let lock = cache.lock()?;
    stop_locked(cache, &lock).await?;
    boot_locked(cache, &lock).await
}

async fn boot_locked(cache: &Cache, lock: &CacheLock) -> Result<Kept> {
    let started = Instant::now();
    let mut machine = Machine::prepare(cache, lock, Retry::AfterPause)?;
    let keeper = Keeper::of(cache);
    match keeper.info().await {
        Some((key, users)) if key == machine.key => {
            if let Some(kept) = keeper.hold(&key).await? {
                // One that is in use may be too busy to answer soon.
                if users > 0 || kept.answers().await {
                    return Ok(kept);
                }
                drop(kept);
                keeper.stop().await?;
                note("the running KVM host did not answer and has been ended");
            }
            // Else it ends by itself.
        }
        Some(_) => {
            if !keeper.stop_unused().await? {
                let users = keeper.info().await.map_or(0, |(_, users)| users);
                bail!(
                    "the running KVM host is made of other parts, and is in use by {users} \
                     commands, such as another clone's tests; wait for them, or end it with: cargo \
                     xtask kvm-host stop"
                );
            }
            note("the running KVM host was made of other parts and has been stopped");
        }
        None => {}
    }
    clear(cache)?;
    let mut fresh = false;
    if SavedState::find(cache, &machine).is_none() {
        machine = machine.with_sound_image(cache, lock)?;
        if let Err(error) = SavedState::make(cache, lock, &machine).await {
            if is_full(&error) {
                return Err(error);
            }
            note(format_args!("the machine did not boot and is tried once more: {error:#}"));
            SavedState::make(cache, lock, &machine).await.context(
                "what the machine is made of may be damaged; to have it built and fetched anew: \
                 cargo xtask kvm-host clean, and make clean-images for what tests share",
            )?;
        }
        fresh = true;
    }
    if let Err(error) = start_keeper(cache, &machine).await {
        if fresh {
            return Err(error);
        }
        // What was saved long ago may be damaged; what is saved now is not.
        note(format_args!("{error:#}"));
        machine = machine.with_sound_image(cache, lock)?;
        note("the saved state is made anew, by a cold boot (about a minute)");
        SavedState::make(cache, lock, &machine).await?;
        start_keeper(cache, &machine).await?;
    }
    let kept = keeper.hold(&machine.key).await?.context("the KVM host ended as soon as it ran")?;
    note(format_args!("ready after {:.1} s", started.elapsed().as_secs_f64()));
    Ok(kept)
}

/// Whether the disk is full: another try would fail alike.
fn is_full(error: &anyhow::Error) -> bool {
    let is = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::StorageFull;
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(is) || cause.to_string().contains("No space left")
    })
}

async fn start_keeper(cache: &Cache, machine: &Machine) -> Result<()> {
    let folder = cache.run_folder();
    std::fs::create_dir(&folder).context("make the machine's folder")?;
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .context("close the machine's folder")?;
    let log_path = cache.keeper_log();
    let started = async {
        write_order(&folder, machine)?;
        let log = std::fs::File::create(&log_path).context("make the keeper's log")?;
        // Not its path: cargo may have built it anew since.
        let mut child = Command::new("/proc/self/exe")
            .arg(KEEP)
            .args((cache.seat() == Seat::Tests).then_some(OF_TESTS))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C at the terminal is not meant for the machine.
            .process_group(0)
            .spawn()
            .context("start the machine's keeper")?;
        let output = child.stdout.take().context("the keeper has an output")?;
        let mut lines = BufReader::new(output).lines();
        let line = tokio::time::timeout(READY_PATIENCE, lines.next_line()).await;
        match line {
            Ok(Ok(Some(line))) if line == "ready" => Ok(()),
            _ => {
                // It ends by itself when nobody hears it; there is nothing it could lose.
                let _ = child.kill().await;
                bail!("the KVM host did not start: {}", last_lines(&log_path, 10))
            }
        }
    };
    let started = started.await;
    if started.is_err() {
        drop(cache.lock_run()?);
        let _ = std::fs::remove_dir_all(&folder);
    }
    started
}

/// Ends the running machines, that of tests too, and forgets how they were when they had booted if
/// told to; false if none ran.
pub async fn stop(cache: &Cache, forget: bool) -> Result<bool> {
    let lock = cache.lock()?;
    let mut running = Vec::new();
    let mut stopped = false;
    for seat in Seat::ALL {
        let cache = cache.of(seat);
        running.extend(Keeper::of(&cache).info().await);
        stopped |= stop_locked(&cache, &lock).await?;
    }
    if forget && !cache.by_last_use(STATE)?.is_empty() {
        // That of the machine that ran may be another clone's; the next one here is of our inputs.
        let own = Machine::prepare(cache, &lock, Retry::AfterPause)?.key;
        let keys: Vec<String> = running.into_iter().map(|(key, _)| key).chain([own]).collect();
        cache.forget_states(&lock, &keys)?;
    }
    Ok(stopped)
}

async fn stop_locked(cache: &Cache, _lock: &CacheLock) -> Result<bool> {
    let stopped = Keeper::of(cache).stop().await?;
    clear(cache)?;
    Ok(stopped)
}

/// Waits until a keeper that is ending has removed its folder, and removes that of one that was
/// killed.
fn clear(cache: &Cache) -> Result<()> {
    let _lock = cache.lock_run()?;
    let folder = cache.run_folder();
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("remove what a killed machine left")?;
    }
    Ok(())
}

/// Ends the running machines and removes everything that was built for them.
pub async fn clean(cache: &Cache) -> Result<()> {
    let lock = cache.lock()?;
    for seat in Seat::ALL {
        stop_locked(&cache.of(seat), &lock).await?;
    }
    cache.clear(&lock)
}
