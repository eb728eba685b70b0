//! systemd-resolved sends the names below `vm`, and only those, to a server on the product's link.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex};

use crate::Inside;
use crate::tool::{Undo, run};

const LINK: &str = "bgrtest0";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 53, 1);
pub(crate) const BOX: Ipv4Addr = Ipv4Addr::new(172, 30, 53, 42);

/// The name of a query's only question, and where the question ends.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at + 4));
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
}

/// Answers `box.vm` with its address, other names not at all (RFC 1035, section 4).
pub(crate) fn answer(query: &[u8]) -> Option<(String, Vec<u8>)> {
    let (name, end) = question(query)?;
    let wants_address = query.get(end - 4..end - 2)? == [0, 1];
    let known = name == "box.vm";
    let answers = u8::from(known && wants_address);
    let mut reply = query.get(..2)?.to_vec();
    // A response, authoritative; code 0, or 3 for a name that is not.
    reply.extend([0x84, if known { 0 } else { 3 }, 0, 1, 0, answers, 0, 0, 0, 0]);
    reply.extend(query.get(12..end)?);
    if answers == 1 {
        // The name at offset 12, A, IN, 1 s, 4 bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        reply.extend(BOX.octets());
    }
    Some((name, reply))
}

#[test]
fn names_below_vm_are_asked_of_the_products_server() {
    let Some(_) = Inside::get() else { return };
    run("ip", ["link", "add", LINK, "type", "dummy"]);
    let link = Undo::with(&["ip", "link", "delete", LINK]);
    run("ip", ["address", "add", &format!("{ADDRESS}/24"), "dev", LINK]);
    run("ip", ["link", "set", LINK, "up"]);
    let server = UdpSocket::bind((ADDRESS, 53)).expect("a name server's port");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (socket, names) = (server.try_clone().expect("share a socket"), Arc::clone(&seen));
    // It ends with the test's process.
    std::thread::spawn(move || {
        let mut query = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            if let Some((name, reply)) = answer(&query[..length]) {
                names.lock().expect("no holder panics").push(name);
                let _ = socket.send_to(&reply, from);
            }
        }
    });
    run("resolvectl", ["dns", LINK, &ADDRESS.to_string()]);
    run("resolvectl", ["domain", LINK, "~vm"]);
    run("resolvectl", ["default-route", LINK, "false"]);

    let found = run("resolvectl", ["query", "--legend=no", "box.vm"]);
    assert!(found.contains(&BOX.to_string()), "{found}");
    // The way of an ordinary program: the C library, the stub's address in /etc/resolv.conf.
    let found = run("getent", ["ahostsv4", "box.vm"]);
    assert!(found.starts_with(&BOX.to_string()), "{found}");
    let missing = std::process::Command::new("getent").args(["ahostsv4", "other.vm"]).output();
    assert!(!missing.expect("run getent").status.success());
    let elsewhere = std::process::Command::new("getent").args(["ahostsv4", "box.test"]).output();
    assert!(!elsewhere.expect("run getent").status.success());

    let names = seen.lock().expect("no holder panics").clone();
    assert!(names.contains(&"box.vm".to_owned()) && names.contains(&"other.vm".to_owned()));
    assert!(names.iter().all(|name| name.ends_with(".vm")), "{names:?}");
    drop(link);
}
