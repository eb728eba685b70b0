//! The rules of the trust list in docs/privileges.md as they are told there, and not as the gates
//! are written: by other means, so that the same mistake is not made twice.

/// A file that install.toml names.
pub const VMM_FILE: &str = "/srv/own/firecracker";

const SIGNALS: [&str; 8] = ["TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "ABRT"];
const SMALL: &str = "abcdefghijklmnopqrstuvwxyz";

/// As many as these of letters, digits and one more.
fn is_of(text: &str, least: usize, most: usize, other: char) -> bool {
    let count = text.chars().count();
    let is_known = |one: char| {
        one == other || "0123456789".contains(one) || SMALL.contains(one.to_ascii_lowercase())
    };
    least <= count && count <= most && text.is_ascii() && text.chars().all(is_known)
}

/// `br-fc`, or `br-fc-` and letters, digits, hyphens, at most 15 bytes.
#[must_use]
pub fn bridge_name(text: &str) -> bool {
    match text.split_at_checked(6) {
        Some(("br-fc-", rest)) => is_of(rest, 1, 9, '-'),
        _ => text == "br-fc",
    }
}

/// `tap-fc-` or `tap-pool-` and letters, digits, hyphens, at most 15 bytes.
#[must_use]
pub fn tap_name(text: &str) -> bool {
    let of = |front: &str| text.get(front.len()..).filter(|_| text.starts_with(front));
    let rest = of("tap-fc-").or_else(|| of("tap-pool-"));
    text.len() <= 15 && rest.is_some_and(|rest| is_of(rest, 1, 15, '-'))
}

/// 1 to 32 letters, digits, hyphens.
#[must_use]
pub fn group_name(text: &str) -> bool {
    is_of(text, 1, 32, '-')
}

/// `fc-rootfs-` and 1 to 64 letters, digits, hyphens.
#[must_use]
pub fn dm_name(text: &str) -> bool {
    text.starts_with("fc-rootfs-") && is_of(&text[10..], 1, 64, '-')
}

/// `/dev/mapper/` and such a name.
#[must_use]
pub fn dm_device(text: &str) -> bool {
    text.starts_with("/dev/mapper/") && dm_name(&text[12..])
}

/// `/dev/loopN`.
#[must_use]
pub fn loop_device(text: &str) -> bool {
    let number = text.get(9..).and_then(|digits| digits.parse::<u32>().ok());
    number.is_some_and(|number| number < 1_048_576 && text == format!("/dev/loop{number}"))
}

/// 1 to 64 letters, digits, hyphens, the first no hyphen.
#[must_use]
pub fn jail_id(text: &str) -> bool {
    is_of(text, 1, 64, '-') && text.find('-') != Some(0)
}

/// 1 to 64 letters, digits, underscores.
#[must_use]
pub fn drive_id(text: &str) -> bool {
    is_of(text, 1, 64, '_')
}

/// At most 2047 bytes of printable ASCII.
#[must_use]
pub fn kernel_arguments(text: &str) -> bool {
    text.len() < 2048 && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

/// Six bytes of hexadecimal digits; unicast, not zero.
#[must_use]
pub fn mac_address(text: &str) -> bool {
    let digits: String = text.chars().filter(|one| *one != ':').collect();
    let is_plain = digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Ok(number) = u64::from_str_radix(&digits, 16) else { return false };
    let shown: Vec<String> = number.to_be_bytes()[2..].iter().map(|b| format!("{b:02x}")).collect();
    let is_unicast = number >> 40 & 1 == 0;
    is_plain && text.to_ascii_lowercase() == shown.join(":") && is_unicast && number != 0
}

/// Four decimal numbers, each as short as it can be.
#[must_use]
pub fn ipv4(text: &str) -> Option<u32> {
    let bytes: Vec<u8> = text.split('.').map_while(|part| part.parse().ok()).collect();
    let bytes: [u8; 4] = bytes.try_into().ok()?;
    let [a, b, c, d] = bytes;
    (text == format!("{a}.{b}.{c}.{d}")).then(|| u32::from_be_bytes(bytes))
}

/// The first and the last address of a subnet.
fn edges(address: u32, prefix: u8) -> (u32, u32) {
    let size = 1_u64 << (32 - u32::from(prefix));
    let first = u64::from(address) / size * size;
    (u32::try_from(first).unwrap(), u32::try_from(first + size - 1).unwrap())
}

/// A bridge, an address and a prefix of 8 to 32, in RFC 1918, RFC 6598 or RFC 2544; the address and
/// the prefix.
#[must_use]
pub fn network(bridge: &str, address: &str, prefix: &str) -> Option<(u32, u8)> {
    let address = ipv4(address).filter(|_| bridge_name(bridge))?;
    let prefix = (8..=32_u8).find(|number| number.to_string() == prefix)?;
    let (first, last) = edges(address, prefix);
    let private = [
        ("10.0.0.0", "10.255.255.255"),
        ("172.16.0.0", "172.31.255.255"),
        ("192.168.0.0", "192.168.255.255"),
        ("100.64.0.0", "100.127.255.255"),
        ("198.18.0.0", "198.19.255.255"),
    ];
    let is_private = private
        .into_iter()
        .any(|(least, most)| ipv4(least).unwrap() <= first && last <= ipv4(most).unwrap());
    let is_host = prefix > 30 || (address != first && address != last);
    (is_private && is_host).then_some((address, prefix))
}

/// An address of that subnet that is neither the host's nor at an edge.
#[must_use]
pub fn guest(address: u32, (host, prefix): (u32, u8)) -> bool {
    let (first, last) = edges(host, prefix);
    let is_inside = first <= address && address <= last && address != host;
    is_inside && (prefix > 30 || (address != first && address != last))
}

/// No control character, absolute, no empty part, no `.` or `..`, none over 255 bytes, as long as a
/// path can be.
fn clean(text: &str) -> bool {
    let has_control = text.chars().any(|one| one < ' ' || ('\u{7f}'..='\u{9f}').contains(&one));
    let framed = format!("{text}/");
    let bad = ["//", "/./", "/../"];
    text.starts_with('/')
        && text.len() < 4096
        && !has_control
        && !bad.iter().any(|bad| framed.contains(bad))
        && text.split('/').all(|part| part.len() <= 255)
}

/// Absolute, clean, below its root, never the root itself: what lies below it.
#[must_use]
pub fn managed_path<'a>(text: &'a str, root: &str) -> Option<&'a str> {
    let below = text.get(root.len() + 1..).filter(|_| text.starts_with(&format!("{root}/")));
    below.filter(|below| !below.is_empty() && clean(text))
}

/// Absolute, clean, no quote, backslash or control character, at most 1024 bytes.
#[must_use]
pub fn guest_path(text: &str) -> bool {
    let has_quote =
        ['"', '\'', '`', '\\', '\u{2028}', '\u{2029}'].iter().any(|bad| text.contains(*bad));
    text.len() <= 1024 && clean(text) && !has_quote
}

/// `JAILS/firecracker/ID/root`.
#[must_use]
pub fn jail_root<'a>(text: &'a str, jails: &str) -> Option<&'a str> {
    let parts: Vec<&str> = managed_path(text, jails)?.split('/').collect();
    match parts[..] {
        ["firecracker", id, "root"] if jail_id(id) => Some(id),
        _ => None,
    }
}

/// `firecracker` or `jailer` in one of the places of the page, or what install.toml names.
#[must_use]
pub fn vmm_path(text: &str, name: &str) -> bool {
    let folders = [
        "/usr/bin",
        "/usr/local/bin",
        "/usr/lib/banger",
        "/usr/local/lib/banger",
        "/opt/firecracker",
    ];
    let is_there = folders.iter().any(|folder| text == format!("{folder}/{name}"));
    is_there || (text == VMM_FILE && name == "firecracker")
}

/// TERM KILL INT HUP QUIT USR1 USR2 ABRT, by name, in any case, with SIG or without; blank is TERM.
#[must_use]
pub fn signal(text: &str) -> bool {
    let is = |name: &&str| {
        text.eq_ignore_ascii_case(name) || text.eq_ignore_ascii_case(&format!("SIG{name}"))
    };
    text.is_empty() || SIGNALS.iter().any(is)
}

/// One word of digits and separators that is an IP address, or one with a port, where somebody can
/// listen.
#[must_use]
pub fn resolver_address(text: &str) -> bool {
    use std::net::{IpAddr, Ipv6Addr};
    let is_plain = text.chars().all(|one| "0123456789abcdefABCDEF.:[]".contains(one));
    let listens = |ip: IpAddr| !ip.is_unspecified() && !ip.is_multicast();
    if let Ok(ip) = text.parse::<IpAddr>() {
        return is_plain && listens(ip);
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let ip = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => ipv4(host).map(|number| IpAddr::V4(number.into())),
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse::<u16>().unwrap_or(0);
    is_plain && digits && port > 0 && ip.is_some_and(listens)
}
