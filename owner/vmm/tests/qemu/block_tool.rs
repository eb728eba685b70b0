//! A QEMU without a guest, used to read and write disks the way QEMU does (its `qemu-io` command).

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use banger_engine::seams::{DiskFormat, DiskImage};

/// Has one disk open as its node `disk`. Killed, not told to end, when dropped.
pub struct BlockTool {
    qemu: Child,
    monitor: BufReader<UnixStream>,
}

impl BlockTool {
    pub fn open(disk: &DiskImage, directory: &Path) -> Self {
        let socket = directory.join("block-tool.sock");
        // Of an earlier tool.
        drop(std::fs::remove_file(&socket));
        let listener = UnixListener::bind(&socket).unwrap();
        let driver = match disk.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        let node = serde_json::json!({
            "driver": driver,
            "node-name": "disk",
            "discard": "unmap",
            "file": { "driver": "file", "filename": disk.path },
        });
        let qemu = Command::new(banger_vmm::qemu::find_program().unwrap())
            .args(["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-blockdev", &node.to_string()])
            .args(["-chardev", "socket,id=monitor,fd=0,server=on,wait=off"])
            .args(["-mon", "chardev=monitor,mode=control"])
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut tool =
            Self { qemu, monitor: BufReader::new(UnixStream::connect(&socket).unwrap()) };
        tool.answer(r#"{"execute":"qmp_capabilities"}"#);
        tool
    }

    fn answer(&mut self, command: &str) -> serde_json::Value {
        self.monitor.get_mut().write_all(format!("{command}\n").as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            assert!(self.monitor.read_line(&mut line).unwrap() > 0, "QEMU closed its monitor");
            let message: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert!(message.get("error").is_none(), "{command}: {message}");
            if let Some(answer) = message.get("return") {
                return answer.clone();
            }
        }
    }

    /// Runs a `qemu-io` command and returns what it printed; panics where it failed.
    pub fn io(&mut self, command: &str) -> String {
        let line = format!("qemu-io disk \"{command}\"");
        let request = serde_json::json!({
            "execute": "human-monitor-command",
            "arguments": { "command-line": line },
        });
        let output = self.answer(&request.to_string()).as_str().unwrap().to_owned();
        let failed = ["failed", "rror", "invalid", "differ"];
        assert!(!failed.iter().any(|word| output.contains(word)), "{command}: {output}");
        output
    }

    /// Checks that the bytes at `offset` all have `value`.
    pub fn expect(&mut self, value: u8, offset: u64, length: u64) {
        self.io(&format!("read -P {value} {offset} {length}"));
    }

    /// Returns the disk's size in bytes as QEMU sees it.
    pub fn size(&mut self) -> u64 {
        let nodes =
            self.answer(r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#);
        let node = nodes.as_array().unwrap().iter().find(|node| node["node-name"] == "disk");
        node.unwrap()["image"]["virtual-size"].as_u64().unwrap()
    }
}

impl Drop for BlockTool {
    fn drop(&mut self) {
        // At once, as an out-of-memory killer would: nothing that was flushed may be lost.
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
    }
}
