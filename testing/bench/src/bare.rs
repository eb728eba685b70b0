//! The peer of every boot: the same QEMU command line without banger around it.
//!
//! The arguments are those of a machine that banger started; what only serves
//! banger (the held start, the sandbox, inherited descriptors) is taken away,
//! and the writable disks are copies.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use banger_guest_client::{GuestChannel, SerialChannel};
use banger_harness::Environment;

/// How long a guest may take to boot on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The guest's name for the port of [`Prepared::with_raw_port`].
pub(crate) const RAW_PORT: &str = "bench.raw";

/// A command line to be run again and again.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    arguments: Vec<String>,
    vm_folder: PathBuf,
    runtime_folder: String,
}

impl Template {
    /// Reads the command line of a running machine, which may be stopped then.
    pub(crate) fn of(environment: &Environment, vm: &str) -> Result<Self> {
        let pid = environment.vmm(vm).pid;
        let bytes =
            std::fs::read(format!("/proc/{pid}/cmdline")).context("read QEMU's command line")?;
        let arguments: Vec<String> = bytes
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let work =
            environment.show(vm)["disks"][1]["path"].as_str().context("a work disk")?.to_owned();
        let vm_folder = Path::new(&work).parent().context("a disk lies in a folder")?.to_owned();
        let agent =
            arguments.iter().find(|word| word.contains("agent.sock")).context("an agent socket")?;
        let path = agent
            .split("path=")
            .nth(1)
            .and_then(|rest| rest.split(",server").next())
            .context("its path")?;
        let runtime_folder = path.trim_end_matches("/agent.sock").to_owned();
        Ok(Self { arguments, vm_folder, runtime_folder })
    }

    /// Prepares copies of the disks in a folder; not part of what is measured.
    pub(crate) fn prepare(&self, folder: &Path) -> Result<Prepared> {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let mut arguments = Vec::new();
        let mut words = self.arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-S" => {}
                "-sandbox" | "-name" => {
                    words.next();
                }
                "-chardev" => {
                    let value = words.next().context("a value of -chardev")?;
                    let value = if value.contains("fd=") {
                        format!(
                            "socket,id=monitor,path={}/qmp.sock,server=on,wait=off",
                            folder.display()
                        )
                    } else {
                        value.replace(&self.runtime_folder, &folder.display().to_string())
                    };
                    arguments.extend([word.clone(), value]);
                }
                "-blockdev" => {
                    let value = words.next().context("a value of -blockdev")?;
                    arguments.extend([word.clone(), self.with_copied_disk(value, folder)?]);
                }
                _ => arguments.push(word.clone()),
            }
        }
        Ok(Prepared { arguments, folder: folder.to_owned() })
    }

    /// Copies the disk that a block node describes if the guest writes to it.
    fn with_copied_disk(&self, node: &str, folder: &Path) -> Result<String> {
        let described: serde_json::Value =
            serde_json::from_str(node).context("a block node is JSON")?;
        let path = described["file"]["filename"].as_str().context("a block node names a file")?;
        if described["read-only"] == true || !Path::new(path).starts_with(&self.vm_folder) {
            return Ok(node.to_owned());
        }
        let name = Path::new(path).file_name().context("a disk has a name")?;
        let copy = folder.join(name);
        let copied = Command::new("/bin/cp").arg("--sparse=always").arg(path).arg(&copy).status();
        ensure!(copied.is_ok_and(|status| status.success()), "copy {path}");
        Ok(node.replace(path, copy.to_str().context("a path that is text")?))
    }
}

/// A command line whose disks are in place.
#[derive(Debug)]
pub(crate) struct Prepared {
    arguments: Vec<String>,
    folder: PathBuf,
}

impl Prepared {
    /// Replaces the user-mode network by one that forwards a port to sshd.
    pub(crate) fn forward_ssh(mut self, port: u16) -> Self {
        for word in &mut self.arguments {
            if word.starts_with("user,id=net") {
                *word = format!("user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:{port}-:22");
            }
        }
        self
    }

    /// Adds a port that nothing but the guest's own programs use; its host's end is `raw.sock` in the
    /// folder.
    pub(crate) fn with_raw_port(mut self) -> Self {
        for word in &mut self.arguments {
            if word.starts_with("virtio-serial-device") {
                *word = word.replace("max_ports=2", "max_ports=3");
            }
        }
        let socket = self.folder.join("raw.sock");
        self.arguments.extend([
            "-chardev".to_owned(),
            format!("socket,id=raw,path={},server=on,wait=off", socket.display()),
            "-device".to_owned(),
            format!("virtserialport,bus=serial.0,chardev=raw,name={RAW_PORT}"),
        ]);
        self
    }

    /// Starts QEMU, held before its first instruction if `held`.
    pub(crate) fn start(&self, held: bool) -> Result<Bare> {
        let (program, arguments) =
            self.arguments.split_first().context("a command line has a program")?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().current_dir(&self.folder);
        if held {
            command.arg("-S");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("start {program}"))?;
        Ok(Bare { child, folder: self.folder.clone() })
    }
}

/// A running QEMU; killed when dropped.
#[derive(Debug)]
pub(crate) struct Bare {
    child: Child,
    folder: PathBuf,
}

impl Bare {
    /// Waits for a socket of QEMU's, which is there soon after the start.
    fn wait_for_socket(&mut self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(&path).is_err() {
            if let Some(status) = self.child.try_wait().context("wait for QEMU")? {
                let mut words = String::new();
                if let Some(mut stderr) = self.child.stderr.take() {
                    let _ = std::io::Read::read_to_string(&mut stderr, &mut words);
                }
                bail!("QEMU ended with {status}: {words}");
            }
            ensure!(Instant::now() < end, "QEMU made no socket {}", path.display());
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(path)
    }

    /// Waits for the agent's first word.
    pub(crate) async fn first_word(&mut self) -> Result<SerialChannel> {
        let path = self.folder.join("agent.sock");
        let end = Instant::now() + PATIENCE;
        // The first connection is the one that is kept: QEMU serves one at a time.
        while !path.exists() {
            if let Some(status) = self.child.try_wait().context("wait for QEMU")? {
                bail!("QEMU ended with {status}");
            }
            ensure!(Instant::now() < end, "QEMU made no socket {}", path.display());
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        let channel = loop {
            match SerialChannel::attach(&path).await {
                Ok(channel) => break channel,
                // Bound, not yet listening.
                Err(error) => ensure!(Instant::now() < end, "attach: {error}"),
            }
        };
        tokio::time::timeout(PATIENCE, channel.wait_ready())
            .await
            .context("the agent said nothing")??;
        Ok(channel)
    }

    /// Lets the CPUs run through QMP, as a program would that holds QEMU.
    pub(crate) fn cont(&mut self) -> Result<Monitor> {
        let path = self.wait_for_socket("qmp.sock")?;
        let stream = UnixStream::connect(path).context("connect to QMP")?;
        let mut monitor = Monitor {
            reader: BufReader::new(stream.try_clone().context("share the socket")?),
            stream,
        };
        monitor.line()?;
        monitor.command("qmp_capabilities")?;
        monitor.command("cont")?;
        Ok(monitor)
    }

    /// Waits for QEMU's end.
    pub(crate) fn wait(mut self) -> Result<()> {
        self.child.wait().context("wait for QEMU").map(drop)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// QEMU's monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Monitor {
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line).context("read from QMP")?;
        Ok(line)
    }

    fn command(&mut self, name: &str) -> Result<()> {
        self.stream
            .write_all(format!("{{\"execute\":\"{name}\"}}\n").as_bytes())
            .context("write to QMP")?;
        loop {
            let line = self.line()?;
            ensure!(!line.is_empty(), "QMP closed");
            if line.contains("\"return\"") {
                return Ok(());
            }
            ensure!(!line.contains("\"error\""), "QMP refused {name}: {line}");
        }
    }

    /// Ends QEMU.
    pub(crate) fn quit(mut self) -> Result<()> {
        self.command("quit")
    }
}
