//! The inputs of paths: below a root, in an image, of a jail, of an executable.

use crate::inputs::{Expect, List};
use crate::{Kind, Places};

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

pub(crate) fn state(list: &mut List, kind: Kind, root: &str) {
    list.accept("plain", [format!("{root}/good"), format!("{root}/folder/good")]);
    bad_paths(list, root);
    list.host_refuse("leaf link", [format!("{root}/link"), format!("{root}/link-outside")]);
    list.host_refuse("intermediate link", [format!("{root}/folder-link/good")]);
    list.host_refuse("intermediate link", [format!("{root}/folder-link-outside/good")]);
    list.host_refuse("link to itself", [format!("{root}/link-to-itself")]);
    list.host_refuse("hard link", [format!("{root}/hard-link-outside")]);
    let reads = [Kind::StatePath, Kind::OptionalStatePath, Kind::ImagePath].contains(&kind);
    // Another name of a file harms nobody who only reads.
    let of_own = if reads { Expect::Works } else { Expect::HostRefuse };
    list.add("hard link", of_own, [format!("{root}/hard-link").into()]);
    list.host_refuse("other type", [format!("{root}/folder"), format!("{root}/fifo")]);
    list.host_refuse("another's", [format!("{root}/roots")]);
    let is_log = [Kind::LogPath, Kind::OptionalLogPath].contains(&kind);
    let of_nothing = if is_log { Expect::Works } else { Expect::HostRefuse };
    list.add("nothing there", of_nothing, [format!("{root}/nothing").into()]);
    match kind {
        Kind::OptionalStatePath | Kind::OptionalLogPath => list.works("blank", [""]),
        Kind::ImagePath | Kind::WrittenImagePath | Kind::DrivePath => {
            list.accept("snapshot", ["/dev/mapper/fc-rootfs-a"]);
            list.host_refuse("snapshot", ["/dev/mapper/fc-rootfs-none"]);
            list.refuse("snapshot", ["/dev/mapper/other", "/dev/sda", "/dev/loop0", "/dev/dm-0"]);
            list.refuse("blank", [""]);
        }
        _ => list.refuse("blank", [""]),
    }
}

pub(crate) fn runtime(list: &mut List, kind: Kind, root: &str) {
    list.accept("plain", [format!("{root}/fc-a.sock"), format!("{root}/folder/fc-a.sock")]);
    bad_paths(list, root);
    list.host_refuse("intermediate link", [format!("{root}/folder-link/api.sock")]);
    list.host_refuse("intermediate link", [format!("{root}/folder-link-outside/api.sock")]);
    // A link is put in the place of another, refused as the socket itself, and no machine's.
    let of_link = match kind {
        Kind::SocketPath => Expect::HostRefuse,
        Kind::AskedSocket => Expect::Nothing,
        _ => Expect::Works,
    };
    let links = ["link", "link-outside"].map(|name| format!("{root}/{name}").into());
    list.add("leaf link", of_link, links);
    list.add("link to itself", of_link, [format!("{root}/link-to-itself").into()]);
    let is_asked = kind == Kind::AskedSocket;
    let of_others = if is_asked { Expect::Nothing } else { Expect::HostRefuse };
    list.add("hard link", of_others, [format!("{root}/hard-link").into()]);
    let others = ["file", "folder", "fifo"].map(|name| format!("{root}/{name}").into());
    list.add("other type", of_others, others);
    list.refuse("blank", [""].into_iter().filter(|_| kind != Kind::OptionalLinkPlace));
    match kind {
        Kind::AskedSocket => {
            list.add("nothing there", Expect::Nothing, [format!("{root}/nothing").into()]);
        }
        Kind::SocketPath => list.host_refuse("another's", [format!("{root}/others.sock")]),
        _ => {
            list.host_refuse("another's", [format!("{root}/roots-folder/api.sock")]);
            list.host_refuse("in use", [format!("{root}/api.sock")]);
        }
    }
    if kind == Kind::OptionalLinkPlace {
        list.works("blank", [""]);
    }
}

pub(crate) fn guest(list: &mut List) {
    list.accept("plain", ["/a", "/etc/hostname", "/a b", "/ä", "/a/<2>", "/#x", "/-x", "/a;b|c$d"]);
    list.refuse("relative", ["", "a", "a/b", "./a", "~/a", "<2>", "-R", " /a"]);
    list.refuse("climbing", ["/..", "/../a", "/a/../b", "/a/..", "/.", "/a/./b", "//a", "/a//b"]);
    list.refuse("climbing", ["/", "/a/"]);
    let control = ["/a\nrm /b", "/a\0", "/a\t", "/a\r", "/\u{1b}[2J", "/a\u{7f}", "/\u{9b}1m"];
    list.refuse("control", control);
    list.refuse("quote", ["/a\"b", "/\"", "/a'b", "/a\\b", "/a`b"]);
    list.refuse("oversize", [format!("/{}", "a".repeat(256)), format!("/{}b", "a/".repeat(1024))]);
}

pub(crate) fn executable(list: &mut List, places: &Places, name: &str, other: &str) {
    let folder = &places.vmm;
    list.accept("plain", [format!("{folder}/{name}")]);
    list.refuse("other directory", [format!("/tmp/{name}"), format!("{}/{name}", places.state)]);
    list.refuse("other directory", [format!("{folder}/x/{name}"), format!("{folder}x/{name}")]);
    list.refuse("other name", [format!("{folder}/{other}"), format!("{folder}/{name}x")]);
    list.refuse("other name", [folder.clone(), format!("{folder}/{name} ")]);
    list.refuse("/bin/bash", ["/bin/bash", "/usr/bin/bash", "/bin/sh"]);
    list.refuse("climbing", [format!("{folder}/../{name}"), format!("{folder}/./{name}")]);
    list.refuse("climbing", [format!("{folder}//{name}"), format!("{folder}/{name}/..")]);
    list.refuse("relative", [name.to_owned(), format!("./{name}")]);
    list.refuse("control", [format!("{folder}/{name}\0"), format!("{folder}/{name}\n")]);
    list.refuse("4 KiB", [format!("{folder}/{}{name}", "a/".repeat(2048))]);
    // The same path: what lies there is another thing each time.
    for class in [
        "symbolic link",
        "foreign owner",
        "group-writable",
        "writable parent",
        "not executable",
        "other type",
        "nothing there",
    ] {
        list.host_refuse(class, [format!("{folder}/{name}")]);
    }
}

pub(crate) fn jail_base(list: &mut List, places: &Places) {
    let base = &places.jails;
    list.accept("plain", [base.clone()]);
    list.refuse("relative", [&base[1..], "jail", "."]);
    list.refuse("look-alike", [format!("{base}x"), format!("{base}-old"), format!("/{base}")]);
    list.refuse("other", ["/srv/jailer", "/", "", "/tmp", &places.state]);
    list.refuse("below", [format!("{base}/x"), format!("{base}/firecracker")]);
    list.refuse("climbing", [format!("{base}/"), format!("{base}/."), format!("{base}/x/..")]);
    list.refuse("newline", [format!("{base}\n")]);
    list.refuse("NUL", [format!("{base}\0")]);
}

pub(crate) fn jail(list: &mut List, places: &Places) {
    let base = &places.jails;
    let jail = |id: &str| format!("{base}/firecracker/{id}/root");
    list.accept("plain", [jail("vm-1"), jail(&"a".repeat(64))]);
    list.refuse("relative", ["root", "firecracker/vm-1/root", "./firecracker/vm-1/root"]);
    list.refuse("the root itself", [base.clone(), format!("{base}/firecracker")]);
    list.refuse("other depth", [format!("{base}/firecracker/vm-1"), format!("{}/x", jail("vm-1"))]);
    list.refuse("other depth", [format!("{base}/vm-1/root"), jail("a/b"), jail("")]);
    list.refuse("other depth", [format!("{base}/jailer/vm-1/root"), format!("{}/", jail("vm-1"))]);
    list.refuse("climbing", [jail(".."), jail("."), jail("../.."), format!("{}/..", jail("a"))]);
    list.refuse("look-alike", [format!("{base}x/firecracker/vm-1/root"), jail("-x"), jail("a_b")]);
    list.refuse("look-alike", [jail(&"a".repeat(65)), jail("ä"), jail("a b")]);
    list.refuse("outside", ["/", "/etc", "", "/tmp/firecracker/vm-1/root"]);
    list.refuse("4 KiB", [jail(&"a".repeat(4096)), jail(&"a/".repeat(2048))]);
    list.refuse("newline", [jail("vm-1\n"), format!("{}\n", jail("vm-1"))]);
    list.refuse("NUL", [jail("vm-1\0"), format!("{}\0", jail("vm-1"))]);
    list.host_refuse("leaf link", [jail("root-link")]);
    list.host_refuse("intermediate link", [jail("link")]);
    list.host_refuse("link to itself", [jail("link-to-itself")]);
    list.host_refuse("hard link", [jail("hard-link")]);
    list.host_refuse("a machine that runs", [jail(&places.living.machine_id)]);
}
