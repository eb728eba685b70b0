//! The host's own firewall: its chains are read, and where one would drop all that it does not know,
//! guests get a rule in it that lets them as far as banger's own table, which decides.
//!
//! An `accept` ends one chain only: a packet passes if every chain of its hook lets it. So where
//! Docker, ufw or an administrator has such a chain, the rule has to be in it. It stands right before
//! the end of the chain, so that whatever the host's owner forbids in particular stays forbidden; it
//! has our comment, no match that iptables could not show (`iptables -S` does), and is moved there and
//! removed by its handle. A table that is made anew gives its handles anew: so they go to the kernel
//! with the generation that they were read in, which nft(8) cannot say. All that nft does is to put a
//! rule at a chain's end, which needs no handle and where none comes too early.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::netlink::Change;
use super::records::Known;

/// A chain that begins what the kernel asks it.
#[derive(Debug)]
struct Base {
    table: String,
    name: String,
    is_input: bool,
    drops: bool,
}

/// The chains of others, in the tables that were read.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    bases: Vec<Base>,
    /// Tables that cannot be changed, because a process holds them, or that are asleep.
    pub(super) closed: BTreeSet<String>,
    /// The rules of each chain (`ip filter FORWARD`), in order.
    rules: BTreeMap<String, Vec<Value>>,
}

pub(super) fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Names that can stand in a script as they are.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// Whether a chain is one that packets from or to guests go through. firewalld's is not ours to
/// change: it has its own way ([`super::firewalld`]).
fn concerns(chain: &Value) -> bool {
    text(chain, "type") == "filter"
        && ["input", "forward"].contains(&text(chain, "hook"))
        && ["ip", "inet"].contains(&text(chain, "family"))
        && !["banger", "firewalld"].contains(&text(chain, "table"))
        && is_plain(text(chain, "table"))
        && is_plain(text(chain, "name"))
}

impl Foreign {
    pub(super) fn read(&mut self, kind: &str, table: &str, object: &Value) {
        if kind == "table" && object.get("flags").is_some() {
            self.closed.insert(format!("{} {}", text(object, "family"), text(object, "name")));
        } else if kind == "chain" && concerns(object) {
            self.bases.push(Base {
                table: table.to_owned(),
                name: text(object, "name").to_owned(),
                is_input: text(object, "hook") == "input",
                drops: text(object, "policy") == "drop",
            });
        } else if kind == "rule" {
            let chain = format!("{table} {}", text(object, "chain"));
            self.rules.entry(chain).or_default().push(object.clone());
        }
    }

    /// The first rule of a chain that no packet gets past, if there is one and it forbids.
    fn end(&self, table: &str, chain: &str, depth: u32) -> Option<usize> {
        let rules = self.rules.get(&format!("{table} {chain}"))?;
        for (at, rule) in rules.iter().enumerate() {
            let parts = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
            let parts = parts.filter_map(|part| part.as_object()?.iter().next());
            let is_word = |(kind, value): &(&String, &Value)| {
                ["counter", "log"].contains(&kind.as_str()) || text(value, "name") == "comment"
            };
            let mut parts = parts.filter(|part| !is_word(part));
            let (Some((kind, value)), None) = (parts.next(), parts.next()) else { continue };
            let target = || text(value, "target");
            match kind.as_str() {
                "drop" | "reject" => return Some(at),
                // Of iptables' own targets; older nft does not say which it is.
                "xt" if ["DROP", "REJECT", ""].contains(&text(value, "name")) => return Some(at),
                "jump" if depth > 0 && self.end(table, target(), depth - 1).is_some() => {
                    return Some(at);
                }
                "goto" if depth > 0 => {
                    return self.end(table, target(), depth - 1).map(|_| at);
                }
                "accept" | "return" => return None,
                _ => {}
            }
        }
        None
    }

    /// What is to be said to nft, and then to be deleted or moved, so that our rules in others' chains
    /// become as they should.
    pub(super) fn changes(&self, known: &Known, also: &[String]) -> (String, Vec<Change>) {
        let (mut script, mut changes) = (String::new(), Vec::new());
        for base in self.bases.iter().filter(|base| !self.closed.contains(&base.table)) {
            let chain = format!("{} {}", base.table, base.name);
            let rules = self.rules.get(&chain).map_or(&[][..], Vec::as_slice);
            let end = self.end(&base.table, &base.name, 16);
            let mut wanted = BTreeMap::new();
            if base.drops || end.is_some() {
                passes(known, base.is_input, &mut wanted);
            }
            let handle = |at: usize| rules.get(at)?.get("handle")?.as_u64();
            for (at, rule) in rules.iter().enumerate() {
                let comment = text(rule, "comment");
                let bridge =
                    comment.strip_prefix("banger ").and_then(|rest| rest.split(' ').next());
                let is_ours =
                    |name| known.bridges.contains_key(name) || also.iter().any(|it| it == name);
                if !bridge.is_some_and(is_ours) {
                    continue;
                }
                let is_wanted = wanted.remove(comment).is_some();
                let before = end.filter(|end| at > *end && is_wanted).and_then(handle);
                if before.is_some() || !is_wanted {
                    let chain = chain.clone();
                    changes.extend(handle(at).map(|handle| Change { chain, handle, before }));
                }
            }
            for (comment, matches) in wanted {
                script +=
                    &format!("add rule {chain} {matches} counter accept comment \"{comment}\"\n");
            }
        }
        (script, changes)
    }
}

/// The rules that guests need in a chain, by their comments.
fn passes(known: &Known, is_input: bool, rules: &mut BTreeMap<String, String>) {
    for (name, bridge) in &known.bridges {
        if is_input {
            let ip = bridge.network.address();
            let matches = format!("iifname \"{name}\" ip daddr {ip}");
            rules.insert(format!("banger {name} to {ip}"), matches);
            continue;
        }
        if known.taps_of(name).any(|(_, tap)| tap.guest.is_some()) {
            rules.insert(format!("banger {name} out"), format!("iifname \"{name}\""));
            rules.insert(format!("banger {name} back"), format!("oifname \"{name}\""));
        }
        // What is bridged, on a host with br_netfilter.
        if known.taps_of(name).any(|(_, tap)| tap.group.is_some()) {
            let matches = format!("iifname \"{name}\" oifname \"{name}\"");
            rules.insert(format!("banger {name} group"), matches);
        }
    }
}
