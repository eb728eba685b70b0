//! QEMU's command line, and the process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use banger_guest_client::SerialChannel;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};

use crate::emulator::Emulator;
use crate::machine::Place;
use crate::monitor::Monitor;
use crate::saved_state::last_lines;

/// How long QEMU may take to open its sockets, which it does before anything else.
const PATIENCE: Duration = Duration::from_secs(60);

/// The files and words that a start is made of, the same for every start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Parts {
    /// The uncompressed kernel: nothing has to be unpacked by the translator.
    pub vmlinux: PathBuf,
    /// The initrd with the agent.
    pub initrd: PathBuf,
    /// The read-only disk with the kernel's modules.
    pub modules: PathBuf,
    /// banger's own kernel arguments.
    pub boot: String,
    /// The QEMU to run.
    pub emulator: Emulator,
}

/// How a machine comes to life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// By booting; what it writes goes to the overlay.
    Cold,
    /// From the saved state on standard input; what it writes is dropped at its end.
    Saved,
    /// From the saved state, too; what it writes goes to the overlay, a copy of that state's.
    SavedLasting,
}

/// The command line with the same places for every machine.
pub(crate) fn fingerprint(parts: &Parts) -> Vec<u8> {
    let place = Place { folder: "/folder".into(), overlay: "/overlay".into() };
    let words = arguments(parts, &place, Start::Saved);
    words.iter().flat_map(|word| [word.as_encoded_bytes(), b"\0"].concat()).collect()
}

/// Everything behind the program's name.
pub(crate) fn arguments(parts: &Parts, place: &Place, start: Start) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let mut pair = |option: &str, value: OsString| words.extend([option.into(), value]);
    pair("-name", "guest=kvm-host".into());
    // A PC without what tests have no use for. `savevm`'s machinery works for it, unlike microvm.
    pair("-machine", "q35,usb=off,smbus=off,sata=off,vmport=off,mem-merge=off".into());
    // What goes wrong while the kernel patches itself would be in the saved state for good; so an old
    // QEMU has a thread for each CPU only afterwards (crate::emulator).
    let is_safe = start != Start::Cold || parts.emulator.translates_safely();
    let threads = if is_safe { "multi" } else { "single" };
    pair("-accel", format!("tcg,thread={threads},tb-size=512").into());
    // `max` has emulated SVM with nested paging. Five-level paging only makes every walk longer.
    pair("-cpu", "max,la57=off".into());
    pair("-smp", "2".into());
    pair("-m", "4096".into());
    pair("-rtc", "base=utc".into());
    pair("-kernel", parts.vmlinux.clone().into());
    pair("-initrd", parts.initrd.clone().into());
    // No mitigations: nobody is attacked here, and each costs translated code.
    let kernel = "console=ttyS0 quiet mitigations=off nokaslr audit=0 apparmor=0 tsc=reliable \
                  no_timer_check panic=-1 reboot=t";
    pair("-append", format!("{kernel} {}", parts.boot).into());
    let snapshot = match start {
        Start::Cold | Start::SavedLasting => "off",
        Start::Saved => "on",
    };
    pair("-drive", {
        let mut value = OsString::from("if=none,id=root,format=qcow2,cache=unsafe,discard=unmap,");
        value.push(format!("snapshot={snapshot},file="));
        value.push(option_value(&place.overlay));
        value
    });
    pair("-device", "virtio-blk-pci,drive=root".into());
    pair("-drive", {
        let mut value = OsString::from("if=none,id=modules,format=raw,readonly=on,file=");
        value.push(option_value(&parts.modules));
        value
    });
    pair("-device", "virtio-blk-pci,drive=modules".into());
    pair("-device", "virtio-rng-pci".into());
    pair("-netdev", "user,id=net,ipv6=off".into());
    pair("-device", "virtio-net-pci,netdev=net,romfile=".into());
    // QEMU connects to us: both ends are there before the guest does anything.
    for (id, name) in [("agent", "agent.sock"), ("monitor", "qmp.sock")] {
        let mut value = OsString::from(format!("socket,id={id},server=off,path="));
        value.push(option_value(&place.folder.join(name)));
        pair("-chardev", value);
    }
    pair("-device", "virtio-serial-pci".into());
    let port = banger_agent_api::SERIAL_PORT_NAME;
    pair("-device", format!("virtserialport,chardev=agent,name={port}").into());
    pair("-mon", "chardev=monitor,mode=control".into());
    let mut console = OsString::from("file:");
    console.push(option_value(&place.folder.join("console.log")));
    pair("-serial", console);
    if start != Start::Cold {
        pair("-incoming", "defer".into());
    }
    words.extend(
        ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(Into::into),
    );
    words
}

/// Doubles commas, which end a value in QEMU's option syntax.
fn option_value(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = path.as_os_str().as_bytes().split(|byte| *byte == b',');
    OsString::from_vec(bytes.collect::<Vec<_>>().join(&b",,"[..]))
}

/// A running QEMU; killed when dropped, and when this process ends in whatever way.
#[derive(Debug)]
pub(crate) struct Qemu {
    child: Child,
    pub(crate) monitor: Monitor,
    agent: Option<UnixStream>,
}

impl Qemu {
    /// Starts QEMU and waits for its two connections.
    pub(crate) async fn start(
        parts: &Parts,
        place: &Place,
        start: Start,
        input: Option<std::fs::File>,
    ) -> Result<Self> {
        let (agent, monitor) = (listen(place, "agent.sock")?, listen(place, "qmp.sock")?);
        let log = std::fs::File::create(place.folder.join("qemu.log")).context("make a log")?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(parts.emulator.words());
        command.args(arguments(parts, place, start));
        // Where `snapshot=on` has its file, which has no name.
        command.env("TMPDIR", &place.folder).current_dir("/");
        command.stdin(input.map_or_else(Stdio::null, Stdio::from));
        command.stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().context("start QEMU")?;
        let connect = async {
            let (agent, _) = agent.accept().await.context("accept QEMU's agent port")?;
            let (monitor, _) = monitor.accept().await.context("accept QEMU's monitor")?;
            Ok::<_, anyhow::Error>((agent, Monitor::negotiate(monitor).await?))
        };
        let connected = tokio::select! {
            connected = connect => connected,
            status = child.wait() => status.context("wait for QEMU").and_then(|status| {
                bail!("it ended with {status}")
            }),
            () = tokio::time::sleep(PATIENCE) => Err(anyhow::anyhow!("it said nothing")),
        };
        match connected {
            Ok((agent, monitor)) => Ok(Self { child, monitor, agent: Some(agent) }),
            Err(error) => {
                let words = last_lines(&place.folder.join("qemu.log"), 10);
                Err(error.context(format!("QEMU: {}", words.trim())))
            }
        }
    }

    /// Begins to talk to the guest's agent; once.
    pub(crate) fn attach(&mut self) -> Result<SerialChannel> {
        Ok(SerialChannel::over(self.agent.take().context("the agent's port is taken")?))
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Result<std::process::ExitStatus> {
        self.child.wait().await.context("wait for QEMU")
    }

    /// Ends it at once: nothing that it holds is kept.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("end QEMU")
    }
}

fn listen(place: &Place, name: &str) -> Result<UnixListener> {
    let path = place.folder.join(name);
    UnixListener::bind(&path).with_context(|| {
        format!("listen on {} (is the path longer than 107 bytes?)", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        Parts {
            vmlinux: "/k/vmlinux".into(),
            initrd: "/c/initrd".into(),
            modules: "/k/mod,ules".into(),
            boot: "banger.root=x".to_owned(),
            emulator: serde_json::from_str(r#"{"root":null,"version":"QEMU 7"}"#).unwrap(),
        }
    }

    #[test]
    fn a_saved_machine_writes_to_nothing_that_is_kept() {
        let place = Place { folder: "/r,un".into(), overlay: "/s/disk.qcow2".into() };
        let text = |start| {
            let words = arguments(&parts(), &place, start);
            words
                .iter()
                .map(|word| word.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
                .join("\n")
        };
        let saved = text(Start::Saved);
        for part in [
            "snapshot=on,file=/s/disk.qcow2",
            "-incoming\ndefer",
            "path=/r,,un/qmp.sock",
            "readonly=on,file=/k/mod,,ules",
            "banger.root=x",
        ] {
            assert!(saved.contains(part), "{part} is missing from\n{saved}");
        }
        let cold = text(Start::Cold);
        assert!(cold.contains("snapshot=off") && !cold.contains("-incoming"));
        assert_eq!(text(Start::SavedLasting), saved.replace("snapshot=on", "snapshot=off"));
        assert!(saved.contains("thread=multi") && cold.contains("thread=single"));
    }

    #[test]
    fn the_fingerprint_follows_the_words() {
        let mut other = parts();
        other.boot.push('y');
        assert_ne!(fingerprint(&parts()), fingerprint(&other));
    }
}
