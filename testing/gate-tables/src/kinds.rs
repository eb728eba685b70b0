//! Kinds of parameters: which classes of input each must have, and the inputs.
//!
//! Long because the classes and the inputs of a kind are read side by side.

use serde_json::{Value, json};

use crate::Places;

/// What a gate, or the host behind it, is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The gate lets it pass.
    Accept,
    /// The gate refuses it.
    Refuse,
    /// Only the host can know, and refuses it.
    HostRefuse,
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

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the parameters'")]
pub enum Kind {
    BridgeName,
    OptionalBridgeName,
    Cidr,
    BridgeIp,
    GuestIp,
    Ipv4,
    DnsPort,
    TapName,
    OptionalTapName,
    Mac,
    Group,
    Flag,
    Resolver,
    DmName,
    OptionalDmName,
    OptionalDmDevice,
    DmDevice,
    RemoveTarget,
    OptionalLoop,
    /// A file below the state directory that exists.
    StatePath,
    OptionalStatePath,
    /// A path of a disk or image: below the state directory, or a snapshot.
    ImagePath,
    DrivePath,
    RuntimePath,
    OptionalRuntimePath,
    GuestPath,
    Bytes,
    Mode,
    Firecracker,
    OptionalFirecracker,
    Jailer,
    JailBase,
    Uid,
    Gid,
    VmId,
    DriveId,
    KernelArguments,
    Vcpus,
    Memory,
    ContextId,
    ChrootRoot,
    Pid,
    Signal,
    Label,
    BalloonMib,
    MemoryLimit,
    CpuPercent,
    PidsMax,
    FileSize,
    OpenFiles,
    /// Any number that fits; Firecracker checks it itself.
    Number,
}

/// The classes that a kind must have inputs of.
#[must_use]
pub fn classes(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::BridgeName | Kind::OptionalBridgeName => {
            &["default", "suffixed", "host interface", "wrong prefix", "oversize", "control"]
        }
        Kind::Cidr => &["7", "8", "32", "33", "64", "text", "sign"],
        Kind::BridgeIp | Kind::Ipv4 | Kind::GuestIp => &["plain", "IPv6", "text", "mapped"],
        Kind::TapName | Kind::OptionalTapName => {
            &["VM", "pool", "host interface", "wrong prefix", "oversize", "control"]
        }
        Kind::DmName | Kind::OptionalDmName => &["plain", "wrong prefix", "path", "oversize"],
        Kind::DmDevice | Kind::OptionalDmDevice => {
            &["plain", "wrong prefix", "bare name", "other folder", "climbing"]
        }
        Kind::RemoveTarget => &["bare name", "path", "wrong prefix", "other folder", "blank"],
        Kind::OptionalLoop => &["plain", "no number", "other device", "climbing", "partition"],
        Kind::StatePath | Kind::OptionalStatePath | Kind::ImagePath | Kind::DrivePath => &[
            "plain",
            "relative",
            "look-alike",
            "climbing",
            "leaf link",
            "intermediate link",
            "link to itself",
            "hard link",
            "4 KiB",
            "NUL",
            "newline",
            "the root itself",
        ],
        Kind::RuntimePath | Kind::OptionalRuntimePath => &[
            "plain",
            "relative",
            "look-alike",
            "climbing",
            "intermediate link",
            "4 KiB",
            "NUL",
            "newline",
            "the root itself",
        ],
        Kind::GuestPath => &["plain", "relative", "climbing", "control", "quote", "oversize"],
        Kind::Firecracker | Kind::OptionalFirecracker | Kind::Jailer => {
            &["plain", "other directory", "other name", "/bin/bash", "climbing", "relative"]
        }
        Kind::Resolver => {
            &["IP", "IP:port", "IPv6", "IPv6 with port", "name", "port 0", "nobody", "words"]
        }
        Kind::VmId => &["plain", "blank", "oversize", "path", "option"],
        Kind::DriveId => &["plain", "blank", "oversize", "path", "hyphen"],
        Kind::KernelArguments => &["plain", "newline", "NUL", "not ASCII", "oversize"],
        Kind::ChrootRoot => &[
            "plain",
            "the base",
            "other depth",
            "climbing",
            "look-alike",
            "outside",
            "newline",
            "NUL",
        ],
        Kind::Pid => &["0", "1", "self", "negative", "too large"],
        Kind::Signal => {
            &["name", "lower case", "with SIG", "blank", "number", "STOP", "CONT", "RTMIN"]
        }
        Kind::Mac => &["plain", "multicast", "zero", "short", "text"],
        Kind::Group => &["plain", "blank", "control", "oversize"],
        Kind::JailBase => &["plain", "other", "below", "climbing"],
        Kind::Uid | Kind::Gid => &["plain", "root", "other"],
        Kind::Vcpus => &["plain", "0", "33"],
        Kind::Memory => &["plain", "too little", "more than the host"],
        Kind::ContextId => &["plain", "reserved"],
        Kind::Mode => &["plain", "0", "type bits"],
        Kind::DnsPort => &["plain", "privileged"],
        Kind::Label => &["plain", "blank", "control", "oversize"],
        Kind::Bytes => &["plain", "empty", "no base64"],
        Kind::BalloonMib | Kind::MemoryLimit | Kind::CpuPercent | Kind::PidsMax => {
            &["plain", "out of bounds"]
        }
        Kind::FileSize | Kind::OpenFiles => &["plain", "out of bounds"],
        Kind::Flag | Kind::Number => &["plain"],
    }
}

const CONTROL: [&str; 4] = ["\0", "\n", "\u{7f}", "\u{1b}[31m"];

/// Collects inputs.
struct List(Vec<Input>);

impl List {
    fn add(
        &mut self,
        class: &'static str,
        expect: Expect,
        values: impl IntoIterator<Item = Value>,
    ) {
        self.0.extend(values.into_iter().map(|value| Input { class, value, expect }));
    }

    fn accept<T: Into<Value>>(&mut self, class: &'static str, values: impl IntoIterator<Item = T>) {
        self.add(class, Expect::Accept, values.into_iter().map(Into::into));
    }

    fn refuse<T: Into<Value>>(&mut self, class: &'static str, values: impl IntoIterator<Item = T>) {
        self.add(class, Expect::Refuse, values.into_iter().map(Into::into));
    }

    fn host_refuse<T: Into<Value>>(
        &mut self,
        class: &'static str,
        values: impl IntoIterator<Item = T>,
    ) {
        self.add(class, Expect::HostRefuse, values.into_iter().map(Into::into));
    }

    /// Control characters in the middle, at the end and at the front of a good text.
    fn control(&mut self, good: &str) {
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
        Kind::TapName | Kind::OptionalTapName => tap(&mut list, kind),
        Kind::Cidr | Kind::BridgeIp | Kind::GuestIp | Kind::Ipv4 | Kind::Mac | Kind::Resolver => {
            address(&mut list, kind);
        }
        Kind::DmName
        | Kind::OptionalDmName
        | Kind::DmDevice
        | Kind::OptionalDmDevice
        | Kind::RemoveTarget
        | Kind::OptionalLoop => device(&mut list, kind),
        Kind::StatePath | Kind::OptionalStatePath | Kind::ImagePath | Kind::DrivePath => {
            state_path(&mut list, kind, &places.state);
        }
        Kind::RuntimePath | Kind::OptionalRuntimePath => {
            runtime_path(&mut list, kind, &places.runtime);
        }
        Kind::GuestPath => guest_path(&mut list),
        Kind::Firecracker => executable(&mut list, places, "firecracker", "jailer"),
        Kind::OptionalFirecracker => {
            list.accept("blank", [""]);
            executable(&mut list, places, "firecracker", "jailer");
        }
        Kind::Jailer => executable(&mut list, places, "jailer", "firecracker"),
        Kind::ChrootRoot | Kind::JailBase => jail(&mut list, kind, places),
        Kind::Pid | Kind::Signal => process(&mut list, kind, places),
        _ => plain(&mut list, kind, places),
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
        list.accept("blank", [""]);
    } else {
        list.refuse("blank", [""]);
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
                _ => list.accept("plain", ["172.16.0.2", "10.0.0.9"]),
            }
        }
    }
}

fn device(list: &mut List, kind: Kind) {
    let long = format!("fc-rootfs-{}", "a".repeat(64));
    let bad_names = ["", "fc-rootfs-", "fc-rootfs", "rootfs-a", "xfc-rootfs-a", "FC-ROOTFS-a"];
    match kind {
        Kind::DmName | Kind::OptionalDmName => {
            list.accept("plain", ["fc-rootfs-a", "fc-rootfs-0-9Z", &long]);
            list.refuse("wrong prefix", bad_names.into_iter().filter(|name| !name.is_empty()));
            list.refuse("path", ["/dev/mapper/fc-rootfs-a", "fc-rootfs-a/b", "fc-rootfs-.."]);
            list.refuse("path", ["fc-rootfs-a b", "fc-rootfs-a\n", "fc-rootfs-\0", "fc-rootfs-ä"]);
            list.refuse("oversize", [format!("{long}a")]);
        }
        Kind::OptionalLoop => {
            list.accept("plain", ["/dev/loop0", "/dev/loop17", "/dev/loop1048575"]);
            list.refuse("no number", ["/dev/loop", "/dev/loop-1", "/dev/loopx", "/dev/loop01"]);
            list.refuse("no number", ["/dev/loop1048576", "/dev/loop99999999999999999999"]);
            list.refuse("no number", ["/dev/loop0\n", "/dev/loop0 ", "/dev/loop+1", "/dev/loop٣"]);
            list.refuse("other device", ["/dev/sda", "loop0", "/dev/loop-control", "/tmp/loop0"]);
            list.refuse("climbing", ["/dev/loop0/../sda", "/dev//loop0", "/dev/../dev/loop0"]);
            list.refuse("partition", ["/dev/loop0p1"]);
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

/// Texts that name no place below a root.
fn bad_paths(list: &mut List, root: &str) {
    list.refuse("relative", ["good", "./good", "../good", "good/good", " /good"]);
    list.refuse(
        "look-alike",
        [format!("{root}x/good"), format!("{root}-old/good"), "/etc/passwd".into()],
    );
    list.refuse("climbing", [format!("{root}/../good"), format!("{root}/a/../../etc/passwd")]);
    list.refuse(
        "climbing",
        [format!("{root}/./good"), format!("{root}//good"), format!("/../{root}/good")],
    );
    list.refuse("climbing", [format!("{root}/good/"), format!("{root}/..")]);
    list.refuse(
        "4 KiB",
        [format!("{root}/{}", "a/".repeat(2048)), format!("{root}/{}", "a".repeat(256))],
    );
    list.refuse("NUL", [format!("{root}/good\0"), format!("{root}/\0/good")]);
    list.refuse(
        "newline",
        [format!("{root}/good\n"), format!("{root}/a\nb"), format!("{root}/\u{85}")],
    );
    list.refuse("the root itself", [root.to_owned(), format!("{root}/")]);
}

fn state_path(list: &mut List, kind: Kind, root: &str) {
    list.accept("plain", [format!("{root}/good"), format!("{root}/folder/good")]);
    bad_paths(list, root);
    list.host_refuse("leaf link", [format!("{root}/link"), format!("{root}/link-outside")]);
    list.host_refuse("intermediate link", [format!("{root}/folder-link/good")]);
    list.host_refuse("intermediate link", [format!("{root}/folder-link-outside/good")]);
    list.host_refuse("link to itself", [format!("{root}/link-to-itself")]);
    list.host_refuse("hard link", [format!("{root}/hard-link-outside")]);
    list.host_refuse("other type", [format!("{root}/folder"), format!("{root}/fifo")]);
    list.host_refuse("another's", [format!("{root}/roots")]);
    list.host_refuse("nothing there", [format!("{root}/nothing")]);
    match kind {
        Kind::OptionalStatePath => list.accept("blank", [""]),
        Kind::ImagePath | Kind::DrivePath => {
            list.accept("snapshot", ["/dev/mapper/fc-rootfs-a"]);
            list.refuse("snapshot", ["/dev/mapper/other", "/dev/sda", "/dev/loop0", "/dev/dm-0"]);
            list.refuse("blank", [""]);
        }
        _ => list.refuse("blank", [""]),
    }
}

fn runtime_path(list: &mut List, kind: Kind, root: &str) {
    list.accept("plain", [format!("{root}/fc-a.sock"), format!("{root}/folder/fc-a.sock")]);
    bad_paths(list, root);
    list.host_refuse("intermediate link", [format!("{root}/folder-link/fc-a.sock")]);
    list.host_refuse("intermediate link", [format!("{root}/folder-link-outside/fc-a.sock")]);
    if kind == Kind::OptionalRuntimePath {
        list.accept("blank", [""]);
    } else {
        list.refuse("blank", [""]);
    }
}

fn guest_path(list: &mut List) {
    list.accept("plain", ["/a", "/etc/hostname", "/a b", "/ä", "/a/<2>", "/#x", "/-x", "/a;b|c$d"]);
    list.refuse("relative", ["", "a", "a/b", "./a", "~/a", "<2>", "-R", " /a"]);
    list.refuse("climbing", ["/..", "/../a", "/a/../b", "/a/..", "/.", "/a/./b", "//a", "/a//b"]);
    list.refuse("climbing", ["/", "/a/"]);
    let control = ["/a\nrm /b", "/a\0", "/a\t", "/a\r", "/\u{1b}[2J", "/a\u{7f}", "/\u{9b}1m"];
    list.refuse("control", control);
    list.refuse("quote", ["/a\"b", "/\"", "/a'b", "/a\\b", "/a`b"]);
    list.refuse("oversize", [format!("/{}", "a".repeat(256)), format!("/{}b", "a/".repeat(1024))]);
}

fn executable(list: &mut List, places: &Places, name: &str, other: &str) {
    let folder = &places.vmm;
    list.accept("plain", [format!("{folder}/{name}")]);
    list.refuse("other directory", [format!("/tmp/{name}"), format!("{}/{name}", places.state)]);
    list.refuse("other directory", [format!("{folder}/x/{name}"), format!("{folder}x/{name}")]);
    list.refuse("other name", [format!("{folder}/{other}"), format!("{folder}/{name}x")]);
    list.refuse("other name", [folder.clone(), format!("{folder}/{name} ")]);
    list.refuse("/bin/bash", ["/bin/bash", "/usr/bin/bash", "/bin/sh"]);
    list.refuse("climbing", [format!("{folder}/../{name}"), format!("{folder}/./{name}")]);
    list.refuse("climbing", [format!("{folder}//{name}"), format!("{folder}/{name}/..")]);
    list.refuse("climbing", [format!("{folder}/{name}\0"), format!("{folder}/{name}\n")]);
    list.refuse("relative", [name.to_owned(), format!("./{name}")]);
}

fn jail(list: &mut List, kind: Kind, places: &Places) {
    let base = &places.jails;
    if kind == Kind::JailBase {
        list.accept("plain", [base.clone()]);
        list.refuse("other", ["/srv/jailer", "/", "", "/tmp", &places.state]);
        list.refuse("below", [format!("{base}/x"), format!("{base}/firecracker")]);
        list.refuse("climbing", [format!("{base}/"), format!("{base}/."), format!("{base}/x/..")]);
        return;
    }
    let jail = |id: &str| format!("{base}/firecracker/{id}/root");
    list.accept("plain", [jail("vm-1"), jail(&"a".repeat(64))]);
    list.refuse("the base", [base.clone(), format!("{base}/firecracker")]);
    list.refuse("other depth", [format!("{base}/firecracker/vm-1"), format!("{}/x", jail("vm-1"))]);
    list.refuse("other depth", [format!("{base}/vm-1/root"), jail("a/b"), jail("")]);
    list.refuse("other depth", [format!("{base}/jailer/vm-1/root"), format!("{}/", jail("vm-1"))]);
    list.refuse("climbing", [jail(".."), jail("."), jail("../.."), format!("{}/..", jail("a"))]);
    list.refuse("look-alike", [format!("{base}x/firecracker/vm-1/root"), jail("-x"), jail("a_b")]);
    list.refuse("look-alike", [jail(&"a".repeat(65)), jail("ä"), jail("a b")]);
    list.refuse("outside", ["/", "/etc", "", "root", "/tmp/firecracker/vm-1/root"]);
    list.refuse("newline", [jail("vm-1\n"), format!("{}\n", jail("vm-1"))]);
    list.refuse("NUL", [jail("vm-1\0"), format!("{}\0", jail("vm-1"))]);
}

fn process(list: &mut List, kind: Kind, places: &Places) {
    if kind == Kind::Pid {
        list.accept("plain", [4_194_304, 2]);
        list.refuse("0", [0]);
        list.refuse("1", [1]);
        list.refuse("self", [places.own_pid]);
        list.refuse("negative", [-1_i64, -2, i64::MIN, i64::from(i32::MIN)]);
        list.refuse("too large", [4_194_305_i64, 1 << 31, (1 << 32) + 2, i64::MAX]);
        return;
    }
    let names = ["TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "ABRT"];
    list.accept("name", names);
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
        }
        Kind::DriveId => {
            list.accept("plain", ["rootfs".to_owned(), "a_0Z".to_owned(), "a".repeat(64)]);
            list.refuse("blank", [""]);
            list.refuse("oversize", ["a".repeat(65)]);
            list.refuse("path", ["a/b", "..", ".", "a.b", "a b", "a\n", "a\0", "ä", "/a"]);
            list.refuse("hyphen", ["a-b", "-"]);
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
            list.accept("plain", [1024, 42069, 65535]);
            list.refuse("privileged", [0, 53, 1023, -1, 65536]);
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
        Kind::Number => list.accept("plain", [1]),
        _ => list.accept("plain", [true, false]),
    }
}
