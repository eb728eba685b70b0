//! The firewall: banger's two tables, and the few rules by which guests pass the host's own.
//!
//! nft(8) reads the kernel's rules back, what is missing or too much becomes one transaction, what has
//! to go from others' chains another ([`foreign`]), and they are read once more. Elements and rules of
//! others are never named in them.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::Value;

use super::foreign::{self, Foreign};
use super::netlink::{FIREWALL, Netlink};
use super::records::Known;
use super::routing::Routing;
use crate::tool::{Input, Outcome, Tool};
use crate::{During, Host, HostError, Result};

const NFT: &[&str] = &["/usr/sbin/nft", "/sbin/nft"];
const LIMIT: Duration = Duration::from_secs(20);
/// A host with a hundred thousand rules says about this much.
const LONGEST_LIST: u64 = 64 << 20;
/// How often the rules are read before others, who change them at the same time, have won.
const ATTEMPTS: u32 = 16;
const RULES: &str = include_str!("rules.nft");
const TABLES: [&str; 2] = ["inet banger", "bridge banger"];

/// An element: its set (`inet banger nat`), and itself as nft writes it.
type Element = (String, String);

/// The tables as they are.
#[derive(Debug, Default)]
pub(crate) struct Found {
    tables: BTreeSet<String>,
    /// The comments of our rules, one for each rule.
    comments: Vec<String>,
    elements: BTreeSet<Element>,
    foreign: Foreign,
}

/// The parts of an element's text that tell whose it is: ours are our bridges, our taps, and the
/// addresses in our subnets.
struct Ours<'a> {
    known: &'a Known,
    also: &'a [String],
    routing: &'a Routing,
}

impl Ours<'_> {
    fn has(&self, (set, element): &Element) -> bool {
        let mut words = element.split([' ', '"', '/']);
        set.ends_with(" routed") && self.routing.is_router
            || words.any(|word| {
                let in_subnet = |ip: Ipv4Addr| {
                    let mut networks = self.known.bridges.values().map(|bridge| &bridge.network);
                    networks.any(|n| n.has_guest(ip) || n.address() == ip || n.network() == ip)
                };
                self.known.bridges.contains_key(word)
                    || self.known.taps.contains_key(word)
                    || self.also.iter().any(|it| it == word)
                    || word.parse().is_ok_and(in_subnet)
            })
    }
}

/// The names of the sets are those of rules.nft; this is all that is ever put into them.
fn wanted(known: &Known, routing: &Routing) -> BTreeSet<Element> {
    let mut all = BTreeSet::new();
    let mut put = |family, set, text: String| all.insert((format!("{family} banger {set}"), text));
    for (name, bridge) in &known.bridges {
        let (ip, port) = (bridge.network.address(), bridge.dns_port.unwrap_or(53));
        put("inet", "bridges", format!("\"{name}\""));
        put("inet", "loops", format!("\"{name}\" . \"{name}\""));
        put("inet", "addresses", format!("\"{name}\" . {ip}"));
        put("inet", "services", format!("\"{name}\" . {ip} . {port}"));
        if bridge.dns_port.is_some() {
            put("inet", "dns", format!("\"{name}\" . {ip} : {ip} . {port}"));
        }
        put("bridge", "addresses", ip.to_string());
        // A subnet of one address is listed without its length.
        let subnet = format!("{}/{}", bridge.network.network(), bridge.network.prefix());
        put("bridge", "subnets", subnet.trim_end_matches("/32").to_owned());
        for (tap_name, tap) in known.taps_of(name) {
            if let Some((mac, ip)) = &tap.source {
                put("bridge", "checked", format!("\"{tap_name}\""));
                put("bridge", "guests", format!("\"{tap_name}\" . {mac} . {ip}"));
            }
            if let Some(guest) = tap.guest {
                put("inet", "nat", format!("\"{name}\" . {guest}"));
                if tap.allows_lan {
                    put("inet", "lan", format!("\"{name}\" . {guest}"));
                }
                put("bridge", "sources", format!("\"{tap_name}\" . {guest}"));
                put("bridge", "owned", guest.to_string());
            }
            if let Some((_, number)) = &tap.group {
                put("bridge", "groups", format!("\"{tap_name}\" : {number}"));
                put("bridge", "members", format!("{number} . \"{tap_name}\""));
            }
        }
    }
    for name in &routing.guarded {
        put("inet", "routed", format!("\"{name}\""));
    }
    all
}

/// An element of nft's JSON as nft's own language writes it (libnftables-json(5)).
fn written(element: &Value) -> String {
    let join = |parts: &[Value], between: &str| {
        parts.iter().map(written).collect::<Vec<_>>().join(between)
    };
    if let Some(prefix) = element.get("prefix") {
        let addr = prefix.get("addr").and_then(Value::as_str).unwrap_or_default();
        return format!("{addr}/{}", prefix.get("len").unwrap_or(&Value::Null));
    }
    if let Some(inner) = element.get("elem").and_then(|elem| elem.get("val")) {
        return written(inner);
    }
    match (element, element.get("concat").and_then(Value::as_array)) {
        (_, Some(parts)) => join(parts, " . "),
        (Value::Array(pair), _) => join(pair, " : "),
        // Addresses are bare, names are quoted.
        (Value::String(text), _) if text.parse::<Ipv4Addr>().is_ok() || text.contains(':') => {
            text.clone()
        }
        (Value::String(text), _) => format!("\"{text}\""),
        (other, _) => other.to_string(),
    }
}

/// What every one of our rules has as its comment.
fn version() -> String {
    let mut hasher = DefaultHasher::new();
    RULES.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

impl Found {
    /// Reads all tables at once: nft 1.0.6 forgets the first of two that it is asked for by name. It
    /// also writes a table's flags from memory that it has freed, and may break off there; then
    /// it is asked table by table, and one that it cannot write is let be.
    fn now() -> Result<Self> {
        let mut found = Self::default();
        if !found.list(&["ruleset"])? {
            let tables = nft(&["list", "tables"], String::new())?;
            for table in String::from_utf8_lossy(&tables).lines() {
                if !found.list(&table.split(' ').collect::<Vec<_>>())? {
                    found.foreign.closed.insert(table.trim_start_matches("table ").to_owned());
                }
            }
        }
        Ok(found)
    }

    /// Reads what nft lists; whether it is whole.
    fn list(&mut self, what: &[&str]) -> Result<bool> {
        let output = nft(&[&["-j", "list"], what].concat(), String::new())?;
        let lists = serde_json::Deserializer::from_slice(&output).into_iter();
        let lists: serde_json::Result<Vec<_>> = lists.collect();
        lists.iter().flatten().for_each(|list| self.read(list));
        Ok(lists.is_ok())
    }

    /// Whether the rules are those of this helper.
    fn has_rules(&self) -> bool {
        let version = version();
        TABLES.iter().all(|table| self.tables.contains(*table))
            && self.comments.len() == RULES.matches("comment \"VERSION\"").count()
            && self.comments.iter().all(|comment| *comment == version)
    }

    fn read(&mut self, list: &Value) {
        for (kind, object) in objects(list) {
            let text = |key: &str| foreign::text(object, key);
            let table = format!("{} {}", text("family"), text("table"));
            match kind {
                "table" if text("name") == "banger" => {
                    self.tables.insert(format!("{} {}", text("family"), text("name")));
                }
                "rule" if TABLES.contains(&table.as_str()) => {
                    self.comments.push(text("comment").to_owned());
                }
                "set" | "map" if TABLES.contains(&table.as_str()) => {
                    let set = format!("{table} {}", text("name"));
                    let elements = object.get("elem").and_then(Value::as_array);
                    let elements = elements.into_iter().flatten();
                    self.elements.extend(elements.map(|element| (set.clone(), written(element))));
                }
                _ => self.foreign.read(kind, &table, object),
            }
        }
    }

    /// What is to be said to nft so that the tables become as they should.
    fn script(&self, known: &Known, wanted: &BTreeSet<Element>, ours: &Ours) -> String {
        let mut script = String::new();
        let (mut found, mut wanted) = (self.elements.clone(), wanted.clone());
        if known.bridges.is_empty() && found.iter().all(|element| ours.has(element)) {
            // Nobody has a bridge any more.
            let tables = TABLES.iter().filter(|table| self.tables.contains(**table));
            found.clear();
            script.extend(tables.map(|table| format!("delete table {table}\n")));
        } else if !self.has_rules() {
            // Those of another helper of this host are kept.
            wanted.extend(found.iter().filter(|element| !ours.has(element)).cloned());
            found.clear();
            for table in TABLES {
                script += &format!("add table {table}\ndelete table {table}\n");
            }
            script += &RULES.replace("VERSION", &version());
        }
        // First what goes: a key of a map can come back with another value.
        for (set, element) in found.difference(&wanted).filter(|element| ours.has(element)) {
            let key = element.split(" : ").next().unwrap_or_default();
            script += &format!("delete element {set} {{ {key} }}\n");
        }
        for (set, element) in wanted.difference(&found) {
            script += &format!("add element {set} {{ {element} }}\n");
        }
        script
    }
}

/// The objects of nft's JSON: `{"nftables": [{"table": {...}}, ...]}`.
fn objects(list: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let all = list.get("nftables").and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|object| object.as_object()?.iter().next()).map(|(kind, o)| (kind.as_str(), o))
}

fn nft(arguments: &[&str], script: String) -> Result<Vec<u8>> {
    let input = Input::Bytes(script.into_bytes());
    let tool = Tool { input, longest_output: LONGEST_LIST, ..Tool::of(NFT, arguments, LIMIT) };
    let Outcome { status, output, error } = tool.run()?;
    let failed = || HostError::of("change or read", "the firewall")(error);
    status.success().then_some(output).ok_or_else(failed)
}

impl Host {
    /// Makes the firewall, and what is routed, as the records say. `also` are names that were ours
    /// and have no record any more. Returns whether anything was otherwise before.
    pub(super) fn settle_firewall(&self, netlink: &Netlink, also: &[String]) -> Result<bool> {
        let known = self.known_network();
        let routing = Routing::now(netlink, &known)?;
        self.record_uplinks(&known, &routing)?;
        let wanted = wanted(&known, &routing);
        let ours = Ours { known: &known, also, routing: &routing };
        // Read, write, and read whether it is so now; again, should another have come between.
        let mut changed = false;
        for _ in 0..ATTEMPTS {
            let kernel = Netlink::open(FIREWALL)?;
            let generation = kernel.generation().during("read", "the firewall")?;
            // What has not changed since it was read last is not read again.
            let mut last = self.firewall.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if last.0 != generation {
                *last = (generation.clone(), Found::now()?);
            }
            let (foreign, changes) = last.1.foreign.changes(&known, also);
            let script = last.1.script(&known, &wanted, &ours) + &foreign;
            if !script.is_empty() {
                nft(&["-f", "-"], script)?;
            } else if changes.is_empty() {
                return Ok(routing.apply()? || changed);
            } else {
                match kernel.change_rules(&generation, &changes) {
                    Err(Errno::RESTART | Errno::NOENT) => continue,
                    done => done.during("change", "the firewall")?,
                }
            }
            changed = true;
        }
        Err(HostError::of("change", "the firewall")("others change it without a pause: try again"))
    }
}
