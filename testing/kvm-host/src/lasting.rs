//! A machine of one test's own, whose disk outlives its end: for what a reboot takes and what it
//! leaves.
//!
//! It begins as all of them do, from the saved state, but writes to a copy of that state's overlay.
//! Its next life begins with the boot of that disk: another QEMU, another kernel, another boot id.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use banger_guest_client::{AgentClient, GuestChannel, SerialChannel};
use serde_json::json;

use crate::cache::Cache;
use crate::emulator::Retry;
use crate::keeper::begin;
use crate::machine::{Machine, Place};
use crate::qemu::{Qemu, Start};
use crate::saved_state::{SavedState, last_lines, settle};
use crate::session::Command;

/// How long a machine may take to end, from the word to QEMU's end.
const END_PATIENCE: Duration = Duration::from_secs(240);

/// A running machine, and the folder with its disk; both go when it is dropped.
#[derive(Debug)]
pub struct Lasting {
    machine: Machine,
    lives: u32,
    channel: Arc<SerialChannel>,
    // It ends before its folder goes.
    qemu: Qemu,
    folder: tempfile::TempDir,
}

impl Lasting {
    /// Starts one from the saved state, which is made where there is none.
    pub async fn begin(cache: &Cache) -> Result<Self> {
        let (machine, saved) = {
            let lock = cache.lock()?;
            let machine = Machine::prepare(cache, &lock, Retry::AfterPause)?;
            let saved = match SavedState::find(cache, &machine) {
                Some(saved) => saved,
                None => SavedState::make(cache, &lock, &machine).await?,
            };
            machine.hold(cache)?;
            (machine, saved)
        };
        let folder = tempfile::tempdir_in("/var/tmp").context("make the machine's folder")?;
        let place = place(&folder, 0)?;
        tokio::fs::copy(saved.overlay(), &place.overlay).await.context("copy the disk")?;
        saved.check()?;
        let (qemu, channel) = begin(&machine, &saved, &place, Start::SavedLasting).await?;
        Ok(Self { machine, folder, lives: 1, qemu, channel })
    }

    /// Makes calls to the agent of the machine as it lives now.
    #[must_use]
    pub fn client(&self) -> AgentClient {
        AgentClient::new(Arc::clone(&self.channel) as Arc<dyn GuestChannel>)
    }

    /// Takes the power away and boots from the disk: what the machine had not written there is lost.
    pub async fn cut_power(&mut self) -> Result<()> {
        // Its answer may be lost with the monitor. QEMU writes its own notes of the disk's overlay.
        let _ = self.qemu.monitor.execute("quit", json!({})).await;
        self.boot().await
    }

    /// Has systemd reboot it.
    pub async fn reboot(&mut self) -> Result<()> {
        let command = Command::new(["/bin/systemctl", "reboot"])?;
        // The command may end with the agent that runs it.
        let _ = command.collect(&self.client(), END_PATIENCE).await;
        self.boot().await
    }

    /// Waits for the end of this life, and begins the next one.
    async fn boot(&mut self) -> Result<()> {
        // QEMU runs with `-no-reboot`.
        let ended = tokio::time::timeout(END_PATIENCE, self.qemu.ended()).await;
        let Ok(status) = ended else { bail!("it did not end: {}", self.console()) };
        let status = status?;
        ensure!(status.success(), "QEMU ended with {status}");
        let place = place(&self.folder, self.lives)?;
        let before = self.folder.path().join((self.lives - 1).to_string());
        self.lives += 1;
        // The same disk, in the place where this life has it.
        std::fs::rename(before.join("disk.qcow2"), &place.overlay).context("move the disk")?;
        self.qemu = Qemu::start(&self.machine.parts, &place, Start::Cold, None).await?;
        match settle(&mut self.qemu).await {
            Ok(channel) => self.channel = channel,
            Err(error) => return Err(error.context(format!("boot again: {}", self.console()))),
        }
        Ok(())
    }

    /// The end of what the machine has said at its console.
    #[must_use]
    pub fn console(&self) -> String {
        let life = self.folder.path().join((self.lives - 1).to_string());
        last_lines(&life.join("console.log"), 30)
    }
}

/// The place of one life: sockets are a life's own.
fn place(folder: &tempfile::TempDir, life: u32) -> Result<Place> {
    let path: PathBuf = folder.path().join(life.to_string());
    std::fs::create_dir(&path).context("make a folder")?;
    Ok(Place { overlay: path.join("disk.qcow2"), folder: path })
}
