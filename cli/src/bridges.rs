//! The end of bridges that nobody uses, where no root helper is left to do it: an installed one that
//! systemd has ended, or one that was killed. Root's command line takes away what it made in the
//! host's network and has written down: the bridge, its rules, and forwarding that was switched on
//! for guests.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::FlockOperation;
use serde_json::Value;

/// Held by a helper that changes the network; see `privileged/host/src/network/mod.rs`.
const LOCK: &str = "/proc/sys/net/ipv4/tcp_fastopen_key";
/// Where programs are; `$PATH` is the user's word.
const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
const INTERFACES: &str = "/proc/net/dev";
/// firewalld's own, while it runs.
const FIREWALLD: &str = "/run/firewalld.pid";
const TABLES: [&str; 2] = ["inet banger", "bridge banger"];

/// Ends the bridges of a helper that has ended and whose directory this is; returns their names.
/// One that machines are on stays, with all that it needs. What cannot be done is left, and the next
/// call tries again.
pub fn end_unused(own: &Path) -> Vec<String> {
    let records = own.join("records");
    let Ok(lock) = File::open(LOCK) else { return Vec::new() };
    if !rustix::process::geteuid().is_root()
        || rustix::fs::flock(&lock, FlockOperation::LockExclusive).is_err()
    {
        return Vec::new();
    }
    let here = fs::read_to_string(INTERFACES).unwrap_or_default();
    let is_here = |name: &str| {
        here.lines().any(|line| line.split_once(':').is_some_and(|it| it.0.trim() == name))
    };
    if of_kind(&records, "tap").iter().any(|name| is_here(name)) {
        return Vec::new();
    }
    let mut ended = Vec::new();
    for name in of_kind(&records, "bridge") {
        if is_here(&name) {
            let ports = run("ip", &["-o", "link", "show", "master", &name], "");
            if ports.is_none_or(|ports| !ports.is_empty())
                || run("ip", &["link", "delete", "dev", &name], "").is_none()
            {
                continue;
            }
        }
        if Path::new(FIREWALLD).exists() {
            let interface = format!("--remove-interface={name}");
            let _ = run("firewall-cmd", &["--zone=trusted", &interface], "");
        }
        let file = records.join(format!("bridge.{name}.json"));
        let record = fs::read(&file).unwrap_or_default();
        end_rules(&name, &serde_json::from_slice(&record).unwrap_or_default());
        let _ = fs::remove_file(file);
        ended.push(name);
    }
    if of_kind(&records, "bridge").is_empty() {
        // Where all forward by somebody's wish, so did this one.
        let all = fs::read_to_string("/proc/sys/net/ipv4/conf/all/forwarding");
        let is_router = all.is_ok_and(|all| all.trim() == "1");
        for name in of_kind(&records, "uplink") {
            if !is_router {
                let _ = fs::write(format!("/proc/sys/net/ipv4/conf/{name}/forwarding"), "0");
            }
            let _ = fs::remove_file(records.join(format!("uplink.{name}.json")));
        }
        // Where nothing else is recorded.
        let _ = fs::remove_dir(&records);
        let _ = fs::remove_dir(own);
    }
    ended
}

/// The names of the records of a kind: `KIND.NAME.json`.
fn of_kind(records: &Path, kind: &str) -> Vec<String> {
    let entries = fs::read_dir(records).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| {
            let name = name.strip_prefix(kind)?.strip_prefix('.')?.strip_suffix(".json")?;
            Some(name.to_owned())
        })
        .collect()
}

/// Takes a bridge out of the firewall: of the tables, or with the last bridge the tables, and out of
/// the chains of others.
fn end_rules(bridge: &str, record: &Value) {
    let listed = run("nft", &["-a", "list", "ruleset"], "").unwrap_or_default();
    for line in foreign(&listed, bridge) {
        let _ = run("nft", &["-f", "-"], &line);
    }
    let listed = run("nft", &["-j", "list", "set", "inet", "banger", "bridges"], "");
    let others = listed.is_some_and(|listed| others(&listed, bridge));
    let lines: Vec<String> = if others {
        elements(bridge, record)
    } else {
        TABLES.map(|table| format!("delete table {table}")).into()
    };
    // Each by itself: one that is not there does not keep the others.
    for line in lines {
        let _ = run("nft", &["-f", "-"], &line);
    }
}

/// What is to be said to nft about rules for a bridge in chains of others.
fn foreign(ruleset: &str, bridge: &str) -> Vec<String> {
    let (mut table, mut chain) = (String::new(), String::new());
    let mut lines = Vec::new();
    for line in ruleset.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["table", family, name, ..] => table = format!("{family} {name}"),
            ["chain", name, ..] => name.clone_into(&mut chain),
            [.., "#", "handle", handle]
                if line.contains(&format!("comment \"banger {bridge} ")) =>
            {
                lines.push(format!("delete rule {table} {chain} handle {handle}"));
            }
            _ => {}
        }
    }
    lines
}

/// Whether the set of bridges, as JSON, has another than this one.
fn others(listed: &str, bridge: &str) -> bool {
    let listed: Value = serde_json::from_str(listed).unwrap_or_default();
    let objects = listed["nftables"].as_array().cloned().unwrap_or_default();
    let elements = objects.iter().filter_map(|object| object["set"]["elem"].as_array());
    elements.flatten().any(|element| element.as_str() != Some(bridge))
}

/// A bridge's elements, by the names of the sets in `privileged/host/src/network/rules.nft`.
fn elements(bridge: &str, record: &Value) -> Vec<String> {
    let (ip, cidr) = (record["bridge_ip"].as_str().unwrap_or_default(), &record["cidr"]);
    let port = record["dns_port"].as_u64().unwrap_or(53);
    let network = network(ip, cidr.as_str().unwrap_or_default()).unwrap_or_default();
    let all = [
        ("inet banger bridges", format!("\"{bridge}\"")),
        ("inet banger loops", format!("\"{bridge}\" . \"{bridge}\"")),
        ("inet banger addresses", format!("\"{bridge}\" . {ip}")),
        ("inet banger services", format!("\"{bridge}\" . {ip} . {port}")),
        ("inet banger dns", format!("\"{bridge}\" . {ip}")),
        ("bridge banger addresses", ip.to_owned()),
        ("bridge banger subnets", network),
    ];
    all.map(|(set, element)| format!("delete element {set} {{ {element} }}")).into()
}

/// `172.16.0.0/24` of `172.16.0.1` and `24`.
fn network(ip: &str, cidr: &str) -> Option<String> {
    let (ip, length) = (ip.parse::<std::net::Ipv4Addr>().ok()?, cidr.parse::<u32>().ok()?);
    let mask = u32::MAX.checked_shl(32_u32.checked_sub(length)?).unwrap_or(0);
    Some(format!("{}/{length}", std::net::Ipv4Addr::from(u32::from(ip) & mask)))
}

/// Runs a program; its output, if it is there and succeeds.
fn run(program: &str, arguments: &[&str], input: &str) -> Option<String> {
    let path = PLACES.map(|place| Path::new(place).join(program));
    let path = path.iter().find(|path| path.is_file())?;
    let mut command = Command::new(path);
    command.args(arguments).env_clear().env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    // A line, which a pipe holds whole.
    child.stdin.take()?.write_all(input.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_a_bridge_in_chains_of_others_are_found_and_no_others() {
        let ruleset = "table ip filter { # handle 1\n\tchain FORWARD { # handle 4\n\t\ttype filter \
            hook forward priority filter; policy drop;\n\t\tiifname \"br-fc\" counter packets 0 bytes 0 \
            accept comment \"banger br-fc out\" # handle 17\n\t\toifname \"br-fc-2\" accept comment \
            \"banger br-fc-2 back\" # handle 18\n\t\taccept comment \"theirs\" # handle 19\n\t}\n}\n";
        assert_eq!(foreign(ruleset, "br-fc"), ["delete rule ip filter FORWARD handle 17"]);
        assert_eq!(foreign(ruleset, "br-fc-2"), ["delete rule ip filter FORWARD handle 18"]);
        assert_eq!(foreign("", "br-fc"), Vec::<String>::new());
    }

    #[test]
    fn others_keep_the_tables_and_elements_are_named_as_the_helper_writes_them() {
        let set = |elements: &str| {
            format!("{{\"nftables\":[{{\"metainfo\":{{}}}},{{\"set\":{{{elements}}}}}]}}")
        };
        assert!(!others(&set(r#""elem":["br-fc"]"#), "br-fc"));
        assert!(!others(&set(""), "br-fc") && !others("", "br-fc"));
        assert!(others(&set(r#""elem":["br-fc","br-fc-2"]"#), "br-fc"));
        let record =
            serde_json::json!({"bridge_ip": "172.16.5.1", "cidr": "20", "dns_port": 42070});
        let elements = elements("br-fc", &record);
        assert!(
            elements.contains(&"delete element bridge banger subnets { 172.16.0.0/20 }".to_owned())
        );
        assert!(elements.contains(
            &"delete element inet banger services { \"br-fc\" . 172.16.5.1 . 42070 }".to_owned()
        ));
        assert_eq!(network("172.16.0.1", "32").as_deref(), Some("172.16.0.1/32"));
        assert_eq!(network("172.16.0.1", "33"), None);
    }
}
