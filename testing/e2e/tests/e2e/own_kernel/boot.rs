//! The machines that the kernel boots on, without banger around them.

use std::path::Path;
use std::process::{Command, Stdio};

use banger_harness::{Contents, Environment, GUEST_DEADLINE, Invocation};

use super::is_booted;

/// The first program: says what the machine is, and ends it.
const INIT: &str = r#"#!/busybox sh
/busybox mkdir -p /proc /sys
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sys /sys
/busybox mount -t devtmpfs dev /dev
echo "release: $(/busybox uname -r)"
for device in /sys/bus/virtio/devices/*; do echo "device: $(/busybox readlink $device)"; done
[ -e /sys/firmware/acpi/tables/DSDT ] && echo "tables: acpi"
echo "console: $(/busybox cat /proc/consoles)"
echo "word: $(/busybox head -c 4 /dev/vda)"
echo at the end
/busybox reboot -f
"#;

/// Packs a busybox and its script; the kernel brings /dev and the console itself.
fn initrd(environment: &Environment) {
    let folder = environment.home().join("initrd");
    std::fs::create_dir_all(folder.join("dev")).unwrap();
    let busybox = banger_harness::find_program("busybox").expect("a busybox");
    std::fs::copy(busybox, folder.join("busybox")).unwrap();
    std::fs::write(folder.join("init"), INIT).unwrap();
    environment.host("chmod", &["755", folder.join("init").to_str().unwrap()]);
    let archive = environment.home().join("initrd.cpio");
    let pack = format!(
        "cd {} && busybox find . | busybox cpio -o -H newc > {}",
        folder.display(),
        archive.display()
    );
    environment.host("sh", &["-ec", &pack]);
}

/// What banger tells every kernel about the clock of this machine, where it has to.
fn clock_arguments(environment: &Environment) -> String {
    environment.start_busybox("box");
    let line = environment.exec("box", ["cat", "/proc/cmdline"]).ok().out();
    environment.banger(["vm", "delete", "box"]).ok();
    let is_clock = |word: &&str| word.starts_with("tsc") || *word == "no_timer_check";
    line.split_whitespace().filter(is_clock).collect::<Vec<_>>().join(" ")
}

/// Boots a kernel's file and returns what it said.
fn boot(environment: &Environment, machine: &str, kernel: &Path, arguments: &str) -> String {
    let initrd = environment.home().join("initrd.cpio");
    let disk = environment.home().join("disk");
    std::fs::write(&disk, "disk".repeat(1 << 18)).unwrap();
    let bus = if machine.starts_with("microvm") { "device" } else { "pci" };
    let qemu = banger_harness::find_program("qemu-system-x86_64").expect("QEMU");
    let mut command = Command::new(qemu);
    command.args(["-machine", machine, "-accel", "tcg,thread=single", "-cpu", "max", "-m", "256"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-serial", "stdio", "-kernel"]).arg(kernel).arg("-initrd").arg(initrd);
    command.args(["-append", &format!("console=ttyS0 panic=-1 reboot=t {arguments}")]);
    command.arg("-drive").arg(format!("id=d,file={},format=raw,if=none", disk.display()));
    command.args(["-device", &format!("virtio-blk-{bus},drive=d")]);
    command.args(["-device", &format!("virtio-serial-{bus}")]).stdin(Stdio::null());
    Invocation::new(command).deadline(GUEST_DEADLINE).ok().out()
}

#[test]
fn it_boots_on_every_machine_as_bzimage_and_as_elf_file() {
    if !is_booted() {
        return;
    }
    let environment = Environment::new(Contents::Busybox);
    initrd(&environment);
    let arguments = clock_arguments(&environment);
    let release = environment.kernel_manifest()["version"].as_str().unwrap().to_owned();
    let machines = [
        ("microvm,acpi=on", "/devices/platform/LNRO0005:", true),
        ("microvm,acpi=off", "/devices/virtio-mmio-cmdline/virtio-mmio.", false),
        ("pc", "/devices/pci0000:00/", true),
        ("q35", "/devices/pci0000:00/", true),
    ];
    for (machine, devices, has_tables) in machines {
        for file in ["bzImage", "vmlinux"] {
            let said = boot(&environment, machine, &environment.kernel().join(file), &arguments);
            let about = format!("{file} on {machine}:\n{said}");
            let line = |start: &str| {
                let line = said.lines().find_map(|line| line.strip_prefix(start));
                line.unwrap_or_default().trim().to_owned()
            };
            assert_eq!(line("release: "), release, "{about}");
            let found = said.lines().filter(|line| line.starts_with("device: "));
            assert_eq!(found.filter(|line| line.contains(devices)).count(), 2, "{about}");
            assert_eq!(line("tables: ") == "acpi", has_tables, "{about}");
            assert!(line("console: ").starts_with("ttyS0 "), "{about}");
            assert_eq!(line("word: "), "disk", "{about}");
            assert_eq!(said.lines().filter(|line| *line == "at the end").count(), 1, "{about}");
        }
    }
    environment.finish();
}
