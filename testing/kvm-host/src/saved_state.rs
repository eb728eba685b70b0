//! A machine that has booted, kept as its memory and its disk's overlay.
//!
//! QEMU's migration writes the memory and the devices to a file; the machine is stopped before and
//! ended afterwards, so that memory and overlay belong to the same moment. Both are only read from
//! then on: a start from them writes to an overlay of its own that has no name.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use banger_agent_api::{Argument, ExecCall};
use banger_engine::seams::RootDisk;
use banger_guest_client::{AgentClient, GuestChannel, SerialChannel};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use tokio::net::UnixListener;

use crate::cache::{Cache, CacheLock};
use crate::checksum::Checksum;
use crate::machine::{Machine, Place};
use crate::note;
use crate::qemu::{Qemu, Start};

/// How long a cold boot may take: 40 s on a loaded machine with one translator thread, and ten
/// times that is no reason to give up.
const BOOT_PATIENCE: Duration = Duration::from_secs(420);
/// How long the state may take to be written.
const SAVE_PATIENCE: Duration = Duration::from_secs(300);
/// What the folders with a state begin with.
pub(crate) const STATE: &str = "state";
/// The state's file.
const MEMORY: &str = "memory";
/// Where the checksums of both files are written down.
const CHECKSUMS: &str = "checksums.json";
/// The overlay's name without its ending.
const DISK: &str = "disk";
/// Waits until systemd answers (host/customize has the other side) and has started everything, and
/// tells what failed.
const SETTLE: &str = "mkfifo -m 600 /run/kvm-host-ready 2>/dev/null; \
    read -r _ < /run/kvm-host-ready; rm -f /run/kvm-host-ready; \
    state=$(systemctl is-system-running --wait); \
    [ \"$state\" = running ] && sync && exit 0; \
    echo \"systemd says: $state\"; systemctl --failed --no-legend --plain; exit 1";

/// What the files of a state held when they were saved.
#[derive(Debug, Serialize, Deserialize)]
struct Checksums {
    memory: Checksum,
    disk: Checksum,
}

/// A saved state in the cache.
#[derive(Clone, Debug)]
pub struct SavedState {
    folder: PathBuf,
}

impl SavedState {
    /// The file with memory and devices.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.folder.join(MEMORY)
    }

    /// The overlay over the image.
    #[must_use]
    pub fn overlay(&self) -> PathBuf {
        self.folder.join(format!("{DISK}.qcow2"))
    }

    /// Finds the machine's state in the cache, and keeps it there while this process lives; says
    /// what is wrong with one that cannot be used.
    #[must_use]
    pub fn find(cache: &Cache, machine: &Machine) -> Option<Self> {
        let state = Self { folder: cache.root().join(format!("{STATE}-{}", machine.key)) };
        if !state.folder.is_dir() {
            return None;
        }
        match state.check_lengths().and_then(|()| cache.hold(&state.folder)) {
            Ok(()) => Some(state),
            Err(error) => {
                let folder = state.folder.display();
                note(format_args!("the saved state in {folder} cannot be used: {error:#}"));
                None
            }
        }
    }

    /// What its files held when they were saved.
    fn checksums(&self) -> Result<Checksums> {
        let path = self.folder.join(CHECKSUMS);
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
    }

    /// Whether its files are as long as they were when it was saved; they are not read.
    fn check_lengths(&self) -> Result<()> {
        let known = self.checksums()?;
        known.memory.check_length(&self.memory())?;
        known.disk.check_length(&self.overlay())
    }

    /// Reads its files and refuses them if they are not what was saved.
    pub fn check(&self) -> Result<()> {
        let known = self.checksums()?;
        known.disk.check(&self.overlay())?;
        known.memory.check(&self.memory())
    }

    /// Boots the machine, waits until it has settled, and saves it.
    pub async fn make(cache: &Cache, lock: &CacheLock, machine: &Machine) -> Result<Self> {
        note("booting cold, to save the machine's state");
        let staged = cache.stage(lock)?;
        let made = boot_and_save(machine, staged.path()).await;
        if let Err(error) = made {
            let console = last_lines(&staged.path().join("console.log"), 15);
            return Err(error.context(format!("boot the KVM host; its console:\n{console}")));
        }
        for name in ["agent.sock", "qmp.sock", "state.sock"] {
            let path = staged.path().join(name);
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        let made = Self { folder: staged.path().to_owned() };
        let checksums = Checksums {
            memory: Checksum::of(&made.memory())?,
            disk: Checksum::of(&made.overlay())?,
        };
        std::fs::write(made.folder.join(CHECKSUMS), serde_json::to_vec_pretty(&checksums)?)
            .context("write its checksums down")?;
        let folder = cache.publish(staged, STATE, &machine.key)?;
        Ok(Self { folder })
    }
}

async fn boot_and_save(machine: &Machine, folder: &Path) -> Result<()> {
    let started = Instant::now();
    let size = banger_types::DiskSize::try_from(machine.image.size())
        .map_err(|_| anyhow::anyhow!("the image has {} bytes", machine.image.size()))?;
    let disk = banger_vmm::disk::Qcow2Overlay
        .create(&machine.image.root, folder, DISK, size)
        .await
        .context("make the disk's overlay")?;
    let place = Place { folder: folder.to_owned(), overlay: disk.path };
    let mut qemu = Qemu::start(&machine.parts, &place, Start::Cold, None).await?;
    let channel = settle(&mut qemu).await?;
    note(format_args!("booted in {:.0} s", started.elapsed().as_secs_f64()));
    let started = Instant::now();
    tokio::time::timeout(SAVE_PATIENCE, save(&mut qemu, folder))
        .await
        .unwrap_or_else(|_| bail!("it took longer than {} s", SAVE_PATIENCE.as_secs()))
        .context("save the machine's state")?;
    drop(channel);
    qemu.kill().await?;
    note(format_args!("saved in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Waits until a machine that boots has settled.
pub(crate) async fn settle(qemu: &mut Qemu) -> Result<Arc<SerialChannel>> {
    let channel = Arc::new(qemu.attach()?);
    let settled = async {
        channel.wait_ready().await.context("wait for the agent")?;
        let client = AgentClient::new(Arc::clone(&channel) as Arc<dyn GuestChannel>);
        let argv = ["/bin/sh", "-c", SETTLE].map(Argument::new);
        let argv = argv.into_iter().collect::<Result<_, _>>()?;
        let stream = client.exec(ExecCall { argv, ..ExecCall::default() }).await?;
        let (output, _, status) = stream.collect(1 << 20).await.context("wait for systemd")?;
        let words = String::from_utf8_lossy(&output);
        ensure!(status.shell_code() == 0, "{}", words.trim());
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        settled = tokio::time::timeout(BOOT_PATIENCE, settled) => match settled {
            Ok(settled) => settled?,
            Err(_) => bail!("it did not settle within {} s", BOOT_PATIENCE.as_secs()),
        },
        status = qemu.ended() => bail!("QEMU ended with {}", status?),
    }
    Ok(channel)
}

async fn save(qemu: &mut Qemu, folder: &Path) -> Result<()> {
    let socket = folder.join("state.sock");
    let listener = UnixListener::bind(&socket).context("listen for the state")?;
    let mut file = tokio::fs::File::create(folder.join(MEMORY)).await.context("make a file")?;
    let monitor = &mut qemu.monitor;
    monitor.execute("stop", json!({})).await?;
    monitor.announce_migration().await?;
    // The machine stands still, so there is nobody to be kind to.
    let parameters = json!({ "max-bandwidth": 1_u64 << 40 });
    monitor.execute("migrate-set-parameters", parameters).await?;
    let uri = format!("unix:{}", socket.to_str().context("the cache's path is text")?);
    let receive = async {
        let (mut stream, _) = listener.accept().await.context("accept the state")?;
        tokio::io::copy(&mut stream, &mut file).await.context("write the state")?;
        file.sync_all().await.context("write the state out")
    };
    let send = async {
        monitor.execute("migrate", json!({ "uri": uri })).await?;
        monitor.migrated().await
    };
    tokio::try_join!(receive, send).map(drop)
}

/// The end of a text file, for error messages: what would tell a terminal to do something is
/// written out.
pub(crate) fn last_lines(path: &Path, count: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    printable(&lines[lines.len().saturating_sub(count)..].join("\n"))
}

/// Writes out all control characters but tabs and ends of lines.
fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut result, character| {
        if character.is_control() && !matches!(character, '\n' | '\t') {
            result.extend(character.escape_default());
        } else {
            result.push(character);
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_not_whole_is_refused_with_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let state = SavedState { folder: folder.path().to_owned() };
        let short = || format!("{:#}", state.check_lengths().unwrap_err());
        assert!(short().contains(CHECKSUMS), "{}", short());
        std::fs::write(state.folder.join(CHECKSUMS), "6 4").unwrap();
        assert!(short().contains(CHECKSUMS), "{}", short());
        std::fs::write(state.memory(), "memory").unwrap();
        std::fs::write(state.overlay(), "disk").unwrap();
        let checksums = Checksums {
            memory: Checksum::of(&state.memory()).unwrap(),
            disk: Checksum::of(&state.overlay()).unwrap(),
        };
        std::fs::write(state.folder.join(CHECKSUMS), serde_json::to_vec(&checksums).unwrap())
            .unwrap();
        state.check_lengths().unwrap();
        state.check().unwrap();
        for (path, content) in [(state.memory(), "memoRy"), (state.overlay(), "diSk")] {
            let before = std::fs::read(&path).unwrap();
            std::fs::write(&path, content).unwrap();
            state.check_lengths().unwrap();
            let error = state.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{} is damaged", path.display())), "{error}");
            std::fs::write(&path, before).unwrap();
        }
        std::fs::write(state.memory(), "memo").unwrap();
        assert!(short().contains("has 4 bytes, and had 6"), "{}", short());
    }

    #[test]
    fn what_a_log_says_does_nothing_to_a_terminal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qemu.log");
        std::fs::write(&path, b"first\nUnknown section \x1b[2J\x07\xff\x9b\r\n\tlast\n").unwrap();
        let words = last_lines(&path, 2);
        assert_eq!(words, "Unknown section \\u{1b}[2J\\u{7}\u{fffd}\u{fffd}\n\tlast");
        std::fs::write(&path, "\u{9b}31m").unwrap();
        assert_eq!(last_lines(&path, 2), "\\u{9b}31m");
    }
}
