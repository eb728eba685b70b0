//! The inputs of each kind.
//!
//! Long because the inputs are read as one list.

use serde_json::{Value, json};

use crate::kinds::{FORMS, STRANGERS};
use crate::{Kind, Places, paths};

/// What a gate, or the host behind it, is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The gate lets it pass.
    Accept,
    /// The gate lets it pass, and it works on a host that has what the tables name.
    Works,
    /// The gate refuses it.
    Refuse,
    /// Only the host can know, and refuses it.
    HostRefuse,
    /// Only the host can know, and answers that there is nothing.
    Nothing,
}

/// One input.
#[derive(Clone, Debug)]
pub struct Input {
    /// What it stands for.
    pub class: &'static str,
    /// The value.
    pub value: Value,
    /// What is to come of it.
    pub expect: Expect,
}

const CONTROL: [&str; 4] = ["\0", "\n", "\u{7f}", "\u{1b}[31m"];

/// Collects inputs.
pub(crate) struct List(Vec<Input>);

impl List {
    pub(crate) fn add(
        &mut self,
        class: &'static str,
        expect: Expect,
        values: impl IntoIterator<Item = Value>,
    ) {
        self.0.extend(values.into_iter().map(|value| Input { class, value, expect }));
    }

    pub(crate) fn accept<T: Into<Value>>(
        &mut self,
        class: &'static str,
        values: impl IntoIterator<Item = T>,
    ) {
        self.add(class, Expect::Accept, values.into_iter().map(Into::into));
    }

    pub(crate) fn refuse<T: Into<Value>>(
        &mut self,
        class: &'static str,
        values: impl IntoIterator<Item = T>,
    ) {
        self.add(class, Expect::Refuse, values.into_iter().map(Into::into));
    }

    pub(crate) fn host_refuse<T: Into<Value>>(
        &mut self,
        class: &'static str,
        values: impl IntoIterator<Item = T>,
    ) {
        self.add(class, Expect::HostRefuse, values.into_iter().map(Into::into));
    }

    pub(crate) fn works<T: Into<Value>>(
        &mut self,
        class: &'static str,
        values: impl IntoIterator<Item = T>,
    ) {
        self.add(class, Expect::Works, values.into_iter().map(Into::into));
    }

    /// What no number is, for any number.
    fn no_number(&mut self) {
        self.refuse("wrong type", [json!("1"), json!(true), json!([1]), json!("")]);
        self.refuse("sign", [json!(-1), json!("+1"), json!("-1"), json!(i64::MIN)]);
        self.refuse("fraction", [json!(1.5), json!(1e30), json!(-0.5)]);
    }

    /// Control characters in the middle, at the end and at the front of a good text.
    pub(crate) fn control(&mut self, good: &str) {
        let at = |text: &str| [format!("{good}{text}"), format!("{text}{good}")];
        self.refuse("control", CONTROL.iter().flat_map(|text| at(text)));
    }
}

/// The inputs of a kind.
#[must_use]
pub fn inputs(kind: Kind, places: &Places) -> Vec<Input> {
    let mut list = List(Vec::new());
    match kind {
        Kind::BridgeName | Kind::OptionalBridgeName => bridge(&mut list, kind),
        Kind::TapName | Kind::OptionalTapName | Kind::UsedTap => tap(&mut list, kind),
        Kind::Cidr | Kind::BridgeIp | Kind::GuestIp | Kind::NatIp | Kind::Mac | Kind::Resolver => {
            address(&mut list, kind);
        }
        Kind::DmName
        | Kind::OptionalDmName
        | Kind::DmDevice
        | Kind::OptionalDmDevice
        | Kind::RemoveTarget
        | Kind::OptionalLoop => device(&mut list, kind, places),
        Kind::StatePath
        | Kind::OptionalStatePath
        | Kind::WrittenPath
        | Kind::LogPath
        | Kind::OptionalLogPath
        | Kind::ImagePath
        | Kind::WrittenImagePath
        | Kind::DrivePath => paths::state(&mut list, kind, &places.state),
        Kind::LinkPlace | Kind::OptionalLinkPlace | Kind::SocketPath | Kind::AskedSocket => {
            paths::runtime(&mut list, kind, &places.runtime);
        }
        Kind::GuestPath => paths::guest(&mut list),
        Kind::Firecracker => paths::executable(&mut list, places, "firecracker", "jailer"),
        Kind::OptionalFirecracker => {
            list.works("blank", [""]);
            paths::executable(&mut list, places, "firecracker", "jailer");
        }
        Kind::Jailer => paths::executable(&mut list, places, "jailer", "firecracker"),
        Kind::ChrootRoot => paths::jail(&mut list, places),
        Kind::JailBase => paths::jail_base(&mut list, places),
        Kind::Pid | Kind::AskedPid | Kind::Signal => process(&mut list, kind, places),
        _ => plain(&mut list, kind, places),
    }
    if kind.is_number() {
        list.no_number();
    }
    list.0
}

fn bridge(list: &mut List, kind: Kind) {
    list.accept("default", ["br-fc"]);
    list.accept("suffixed", ["br-fc-1000", "br-fc-a", "br-fc-A-9"]);
    list.refuse("host interface", ["lo", "eth0", "docker0", "virbr0"]);
    list.refuse("wrong prefix", ["br-f", "br-fcx", "br_fc", "xbr-fc", " br-fc", "br-fc ", "BR-FC"]);
    list.refuse("wrong prefix", ["br-fc-", "br-fc-a b", "br-fc-a/b", "br-fc-ä", "br-fc-a:1"]);
    list.refuse("oversize", ["br-fc-0123456789".to_owned(), "x".repeat(4096)]);
    list.control("br-fc");
    if kind == Kind::OptionalBridgeName {
        list.accept("blank", [""]);
    } else {
        list.refuse("blank", [""]);
    }
}

fn tap(list: &mut List, kind: Kind) {
    list.accept("VM", ["tap-fc-a", "tap-fc-0123abcd", "tap-fc-A-9"]);
    list.accept("pool", ["tap-pool-0", "tap-pool-123456"]);
    list.refuse("host interface", ["lo", "eth0", "tap0", "br-fc"]);
    list.refuse("wrong prefix", ["tap-f", "tap-fcx", "tap-pools-1", "xtap-fc-1", " tap-fc-1"]);
    list.refuse("wrong prefix", ["tap-fc-", "tap-pool-", "tap-fc-a b", "tap-fc-a/b", "tap-fc-%d"]);
    list.refuse("oversize", ["tap-fc-012345678", "tap-pool-1234567"]);
    list.control("tap-fc-a");
    if kind == Kind::OptionalTapName {
        list.works("blank", [""]);
    } else {
        list.refuse("blank", [""]);
    }
    if kind == Kind::UsedTap {
        list.host_refuse("nothing there", ["tap-fc-none", "tap-pool-none"]);
    }
}

fn address(list: &mut List, kind: Kind) {
    match kind {
        Kind::Cidr => {
            list.refuse("7", ["7"]);
            list.accept("8", ["8"]);
            list.accept("32", ["32", "24", "16", "30", "31"]);
            list.refuse("33", ["33", "0", "1", "99"]);
            list.refuse("64", ["64", "128", "256", "264", "4294967320"]);
            list.refuse("text", ["", "x", "24x", "0x18", "024", "24.0", "/24", " 24", "24 "]);
            list.refuse("text", ["255.255.255.0", "24\n", "2 4", "２４"]);
            list.refuse("sign", ["+24", "-24"]);
        }
        Kind::Mac => {
            list.accept("plain", ["06:00:ac:10:00:02", "AA:BB:CC:DD:EE:FF", "02:00:00:00:00:01"]);
            list.refuse("multicast", ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff"]);
            list.refuse("zero", ["00:00:00:00:00:00"]);
            list.refuse("short", ["06:00:ac:10:00", "06:00:ac:10:00:02:03", "6:0:ac:10:0:2", ""]);
            list.refuse("text", ["06-00-ac-10-00-02", "0g:00:ac:10:00:02", "06:00:ac:10:00:02 "]);
            list.refuse("text", ["+6:00:ac:10:00:02", "06:00:ac:10:00:02\n"]);
        }
        Kind::Resolver => {
            list.accept("IP", ["127.0.0.1", "172.16.0.1"]);
            list.accept("IP:port", ["127.0.0.1:42069", "172.16.0.1:53"]);
            list.accept("IPv6", ["::1", "fd00::1"]);
            list.accept("IPv6 with port", ["[::1]:53"]);
            list.refuse("name", ["localhost", "localhost:53", "example.com"]);
            list.refuse("port 0", ["127.0.0.1:0", "[::1]:0"]);
            list.refuse("port 0", ["127.0.0.1:65536", "127.0.0.1:", "127.0.0.1:x", ":53"]);
            list.refuse("nobody", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "0.0.0.0:53"]);
            list.refuse("words", ["127.0.0.1 8.8.8.8", "127.0.0.1#x", "-x", "fe80::1%eth0"]);
            list.refuse(
                "words",
                ["127.0.0.1\n", "127.0.0.1\0", " 127.0.0.1", "", "[fe80::1%2]:53"],
            );
        }
        _ => {
            list.refuse("IPv6", ["::1", "fe80::1"]);
            list.refuse("mapped", ["::ffff:172.16.0.2", "::172.16.0.2"]);
            list.refuse(
                "text",
                ["", "x", "172.16.0", "172.16.0.256", "172.16.0.2/24", "0xac100002"],
            );
            list.refuse("text", [" 172.16.0.2", "172.16.0.2\n", "172.016.0.2", "2886729730"]);
            match kind {
                Kind::BridgeIp => {
                    list.accept("plain", ["172.16.0.1", "10.9.8.7", "192.168.44.1", "100.64.0.1"]);
                    list.accept("plain", ["198.18.0.1", "172.31.255.254", "100.127.255.1"]);
                    list.refuse("public", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "172.15.0.1"]);
                    list.refuse("public", ["192.169.0.1", "100.128.0.1", "198.20.0.1", "11.0.0.1"]);
                    list.refuse(
                        "no host",
                        ["127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0"],
                    );
                    list.refuse("edge", ["172.16.0.0", "172.16.0.255", "255.255.255.255"]);
                }
                Kind::GuestIp => {
                    list.accept("plain", ["172.16.0.2", "172.16.0.254"]);
                    list.refuse("not a guest", ["172.16.0.1", "172.16.0.0", "172.16.0.255"]);
                    list.refuse("not a guest", ["172.16.1.2", "8.8.8.8", "127.0.0.1"]);
                }
                _ => {
                    list.accept("plain", ["172.16.0.2", "10.0.0.9"]);
                    list.host_refuse("not a guest", ["172.16.0.1", "172.16.0.0", "172.16.0.255"]);
                    list.host_refuse("not a guest", ["172.16.1.2", "8.8.8.8", "127.0.0.1"]);
                    list.host_refuse("not a guest", ["172.16.0.3"]);
                }
            }
        }
    }
}

fn device(list: &mut List, kind: Kind, places: &Places) {
    let long = format!("fc-rootfs-{}", "a".repeat(64));
    let bad_names = ["", "fc-rootfs-", "fc-rootfs", "rootfs-a", "xfc-rootfs-a", "FC-ROOTFS-a"];
    match kind {
        Kind::DmName | Kind::OptionalDmName => {
            list.accept("plain", ["fc-rootfs-a", "fc-rootfs-0-9Z", &long]);
            list.refuse("wrong prefix", bad_names.into_iter().filter(|name| !name.is_empty()));
            list.refuse("path", ["/dev/mapper/fc-rootfs-a", "fc-rootfs-a/b", "fc-rootfs-.."]);
            list.refuse("path", ["fc-rootfs-a b", "fc-rootfs-a\n", "fc-rootfs-\0", "fc-rootfs-ä"]);
            list.refuse("oversize", [format!("{long}a")]);
            list.control("fc-rootfs-a");
        }
        Kind::OptionalLoop => {
            list.accept("plain", ["/dev/loop0", "/dev/loop17", "/dev/loop1048575"]);
            list.refuse("no number", ["/dev/loop", "/dev/loop-1", "/dev/loopx", "/dev/loop01"]);
            list.refuse("no number", ["/dev/loop1048576", "/dev/loop99999999999999999999"]);
            list.refuse("no number", ["/dev/loop0\n", "/dev/loop0 ", "/dev/loop+1", "/dev/loop٣"]);
            list.refuse("other device", ["/dev/sda", "loop0", "/dev/loop-control", "/tmp/loop0"]);
            list.refuse("climbing", ["/dev/loop0/../sda", "/dev//loop0", "/dev/../dev/loop0"]);
            list.refuse("partition", ["/dev/loop0p1"]);
            list.host_refuse("foreign backing file", [places.living.foreign_loop.as_str()]);
        }
        _ => {
            let is_target = kind == Kind::RemoveTarget;
            let class = if is_target { "path" } else { "plain" };
            list.accept(
                class,
                ["/dev/mapper/fc-rootfs-a".to_owned(), format!("/dev/mapper/{long}")],
            );
            if is_target {
                list.accept("bare name", ["fc-rootfs-a", "fc-rootfs-0-9Z"]);
                list.refuse("blank", ["", " "]);
            } else {
                list.refuse("bare name", ["fc-rootfs-a"]);
            }
            list.refuse(
                "wrong prefix",
                ["/dev/mapper/control", "/dev/mapper/", "/dev/mapper/vg-root"],
            );
            list.refuse("wrong prefix", ["/dev/mapper/fc-rootfs-", "/dev/mapper/fc-rootfs-a\n"]);
            list.refuse(
                "other folder",
                ["/dev/fc-rootfs-a", "/dev/sda", "/dev/dm-0", "dev/mapper/x"],
            );
            list.refuse("other folder", ["/dev/mapper/x/fc-rootfs-a", "/dev/mapperfc-rootfs-a"]);
            list.refuse("oversize", [format!("/dev/mapper/{long}a")]);
            list.refuse(
                "climbing",
                ["/dev/mapper/../sda", "/dev/mapper/fc-rootfs-a/..", "/dev/mapper//fc-rootfs-a"],
            );
        }
    }
    let is_optional =
        matches!(kind, Kind::OptionalDmName | Kind::OptionalDmDevice | Kind::OptionalLoop);
    match kind {
        Kind::RemoveTarget => {}
        _ if is_optional => list.accept("blank", [""]),
        _ => list.refuse("blank", [""]),
    }
}

fn process(list: &mut List, kind: Kind, places: &Places) {
    if kind != Kind::Signal {
        let living = &places.living;
        list.accept("plain", [4_194_304, 2]);
        list.refuse("0", [0]);
        list.refuse("1", [1]);
        list.refuse("self", [places.own_pid]);
        list.refuse("negative", [-1_i64, -2, i64::MIN, i64::from(i32::MIN)]);
        list.refuse("too large", [4_194_305_i64, 1 << 31, (1 << 32) + 2, i64::MAX]);
        let is_asked = kind == Kind::AskedPid;
        let of_strangers = if is_asked { Expect::Nothing } else { Expect::HostRefuse };
        for (class, pid) in STRANGERS.into_iter().zip(living.strangers) {
            list.add(class, of_strangers, [pid.into()]);
        }
        for (class, pid) in FORMS.into_iter().zip(living.forms).filter(|_| !is_asked) {
            list.works(class, [pid]);
        }
        return;
    }
    let names = ["TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "ABRT"];
    list.accept("name", names);
    list.works("name", ["QUIT"]);
    list.accept("lower case", ["term", "Kill"]);
    list.accept("with SIG", ["SIGTERM", "sigusr1", "SigAbrt"]);
    list.accept("blank", [""]);
    list.refuse("number", ["9", "15", "0", "-9"]);
    list.refuse("STOP", ["STOP", "SIGSTOP", "TSTP"]);
    list.refuse("CONT", ["CONT", "SIGCONT"]);
    list.refuse("RTMIN", ["RTMIN", "RTMIN+1", "SIGRTMAX"]);
    list.refuse(
        "text",
        ["SIG", "SIGSIGTERM", "TERM ", " TERM", "TERM\n", "TERM\0", "SEGV", "ＴERM"],
    );
}

fn plain(list: &mut List, kind: Kind, places: &Places) {
    let (uid, gid) = places.owner;
    match kind {
        Kind::VmId => {
            list.accept("plain", ["a".to_owned(), "0-Z".to_owned(), "a".repeat(64)]);
            list.refuse("blank", [""]);
            list.refuse("oversize", ["a".repeat(65)]);
            list.refuse("path", ["a/b", "..", ".", "a.b", "a_b", "a b", "a\n", "a\0", "ä", "/a"]);
            list.refuse("option", ["-a", "--id", "-"]);
            list.control("a");
            list.host_refuse("taken", [places.living.machine_id.as_str()]);
        }
        Kind::DriveId => {
            list.accept("plain", ["rootfs".to_owned(), "a_0Z".to_owned(), "a".repeat(64)]);
            list.refuse("blank", [""]);
            list.refuse("oversize", ["a".repeat(65)]);
            list.refuse("path", ["a/b", "..", ".", "a.b", "a b", "a\n", "a\0", "ä", "/a"]);
            list.refuse("hyphen", ["a-b", "-"]);
            list.control("a");
        }
        Kind::KernelArguments => {
            list.accept(
                "plain",
                ["".to_owned(), "console=ttyS0 a=\"b c\"".into(), "a".repeat(2047)],
            );
            list.refuse("newline", ["a\nb", "a\r", "a\tb"]);
            list.refuse("NUL", ["a\0b", "\u{7f}"]);
            list.refuse("not ASCII", ["ä", "\u{a0}"]);
            list.refuse("oversize", ["a".repeat(2048)]);
        }
        Kind::Vcpus => {
            list.accept("plain", [1, 2, 32]);
            list.refuse("0", [0]);
            list.refuse("33", [33_i64, -1, 1 << 32, (1 << 32) + 1]);
        }
        Kind::Memory => {
            list.accept("plain", [128, 129]);
            list.refuse("too little", [0, 127, -128]);
            list.refuse("more than the host", [places.memory_mib + 1, u64::MAX]);
        }
        Kind::ContextId => {
            list.accept("plain", [3_u32, u32::MAX - 1]);
            list.refuse("reserved", [0_i64, 1, 2, -1, i64::from(u32::MAX), 1 << 32]);
        }
        Kind::Mode => {
            list.accept("plain", [0o644, 0o4755, 0o7777, 0o1]);
            list.accept("0", [0]);
            list.refuse("type bits", [0o10_644_i64, 0o100_644, -1, 1 << 32]);
        }
        Kind::DnsPort => {
            list.accept("plain", [42069, 42075, 42084]);
            list.refuse("privileged", [0, 53, 1023, -1, 65536]);
            list.refuse("another service's", [1024, 2375, 42068, 42085, 65535]);
        }
        Kind::Group => {
            list.accept("plain", ["a".to_owned(), "0-Z".into(), "a".repeat(32)]);
            list.refuse("blank", [""]);
            list.refuse("oversize", ["a".repeat(33)]);
            list.control("a");
            list.refuse("text", ["a b", "a\"b", "a;b", "a/b", "{}", "ä"]);
        }
        Kind::Label => {
            list.accept("plain", ["api socket"]);
            list.accept("blank", [""]);
            list.control("label");
            list.refuse("oversize", ["a".repeat(65)]);
        }
        Kind::Bytes => {
            list.accept("plain", ["aGVsbG8="]);
            list.accept("empty", [""]);
            list.refuse("no base64", ["a", "aGVsbG8", "aGVs bG8=", "aGVsbG8=\n", "-_-_", "===="]);
        }
        Kind::Uid | Kind::Gid => {
            let good = if kind == Kind::Uid { uid } else { gid };
            list.accept("plain", [good]);
            list.refuse("root", [0]);
            list.refuse("other", [i64::from(good) + 1, -1, i64::from(u32::MAX), 1 << 32]);
        }
        Kind::BalloonMib => {
            list.accept("plain", [0, 64, 128]);
            list.refuse("out of bounds", [json!(129), json!(-1), json!(u64::MAX)]);
        }
        Kind::MemoryLimit => {
            list.accept("plain", [128, 4096]);
            list.refuse("out of bounds", [0, 127, -1]);
        }
        Kind::CpuPercent => {
            list.accept("plain", [1, 100, 3200]);
            list.refuse("out of bounds", [0, 3201, -1]);
        }
        Kind::PidsMax => {
            list.accept("plain", [1, 64, 4096]);
            list.refuse("out of bounds", [0, 4097, -1]);
        }
        Kind::FileSize => {
            list.accept("plain", [1_u64, 1 << 40]);
            list.refuse("out of bounds", [0, -1]);
        }
        Kind::OpenFiles => {
            list.accept("plain", [64, 2048, 65_536]);
            list.refuse("out of bounds", [0, 63, 65_537, -1]);
        }
        Kind::Number => {
            list.accept("plain", [0, 1, u64::MAX]);
            // No number of 64 bits: written with its 20 digits it is read as a fraction.
            list.refuse("out of range", [json!(18_446_744_073_709_551_616.0_f64)]);
        }
        Kind::SmallNumber => {
            list.accept("plain", [0, 1, 65_535]);
            list.refuse("out of range", [65_536]);
        }
        _ => {
            list.accept("plain", [true, false]);
            list.refuse("wrong type", [json!("true"), json!(0), json!(1), json!("")]);
        }
    }
}
