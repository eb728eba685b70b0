//! The root helper sends the names below `vm`, and only those, to the server that it is told.

use std::net::UdpSocket;
use std::os::unix::fs::chown;
use std::time::Duration;

use banger_gates::{BridgeName, Owner, Policy, request};
use banger_helper_api::{CreateTapParams, EnsureBridgeParams, SyncResolverRoutingParams};
use banger_host::{Host, Resolver};

use crate::Inside;
use crate::dns::{BOX, answer};
use crate::patience::look_until;
use crate::tool::{Undo, run};

const BRIDGE: &str = "br-fc-dns";
const OWNER: u32 = 60_907;

/// A helper's view with roots of its own.
fn host(folder: &std::path::Path) -> Host {
    let make = |name: &str| {
        let path = folder.join(name);
        std::fs::create_dir(&path).expect("a directory");
        path
    };
    let policy = Policy {
        owner: Owner::new(OWNER, OWNER).expect("an owner"),
        state: make("state"),
        runtime: make("runtime"),
        jails: make("jails"),
        vmm_directories: Vec::new(),
        vmm_files: Vec::new(),
        host_memory_mib: 1024,
        own_pid: std::process::id(),
    };
    for path in [&policy.state, &policy.runtime] {
        chown(path, Some(OWNER), Some(OWNER)).expect("the owner's");
    }
    Host::open(policy, &make("own")).expect("a host")
}

/// Asks until the answer is as wanted: resolved hears of a link's carrier from the kernel.
fn resolves(name: &str, wanted: bool, server: &str) {
    let what = format!("{name} is resolved: {wanted}, by {server}");
    look_until(&what, Duration::from_secs(30), || {
        let query = ["query", "--legend=no", "--cache=no", name];
        let output = std::process::Command::new("resolvectl").args(query).output();
        let output = output.expect("run resolvectl");
        String::from_utf8_lossy(&output.stdout).contains(&BOX.to_string()) == wanted
    });
}

#[test]
fn the_helper_routes_names_below_vm_and_takes_it_back() {
    let Some(_) = Inside::get() else { return };
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let host = host(folder.path());
    // In the order of their undoing: the last one first.
    let _tables =
        ["inet", "bridge"].map(|family| Undo::with(&["nft", "delete", "table", family, "banger"]));
    let _link = Undo::with(&["ip", "link", "delete", BRIDGE]);
    let _tap = Undo::with(&["ip", "link", "delete", "tap-fc-dns"]);
    let (bridge_name, bridge_ip, cidr) =
        (BRIDGE.to_owned(), "172.30.54.1".to_owned(), "24".to_owned());
    let params = EnsureBridgeParams {
        bridge_name: bridge_name.clone(),
        bridge_ip: bridge_ip.clone(),
        cidr: cidr.clone(),
        dns_port: None,
    };
    let grant = request::ensure_bridge(params).expect("a grant");
    assert!(host.ensure_bridge(&grant).expect("a bridge"));
    let params = CreateTapParams {
        bridge_name,
        bridge_ip,
        cidr,
        tap_name: "tap-fc-dns".to_owned(),
        guest_mac: None,
        guest_ip: None,
        group: None,
        isolated: None,
        return_fd: true,
    };
    let grant = request::create_tap(params).expect("a grant");
    // An open tap gives the bridge a carrier, without which resolved does not use its servers.
    let (_, open) = host.create_tap(&grant).expect("a tap");
    assert!(open.is_some());

    let settings = |verb: &str| run("resolvectl", [verb, BRIDGE]);
    let before = ["dns", "domain", "default-route"].map(settings);
    let name = BridgeName::parse("bridge_name", BRIDGE).expect("a name");
    for address in ["127.0.0.1:42069", "172.30.54.1", "172.30.54.1:5300"] {
        let port = if address.contains(':') { address } else { "172.30.54.1:53" };
        let server = UdpSocket::bind(port).expect("a name server's port");
        // It ends with the test's process.
        std::thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((length, from)) = server.recv_from(&mut query) {
                if let Some((_, reply)) = answer(&query[..length]) {
                    let _ = server.send_to(&reply, from);
                }
            }
        });
        let params = SyncResolverRoutingParams {
            bridge_name: BRIDGE.to_owned(),
            server_addr: address.to_owned(),
        };
        let route = request::sync_resolver_routing(&params).expect("a grant").expect("not blank");
        for _ in 0..2 {
            assert_eq!(host.sync_resolver_routing(&route).expect(address), Resolver::Told);
        }
        assert!(settings("domain").contains("~vm"));
        assert!(settings("default-route").contains("no"));
        assert!(settings("dns").contains(address));
        resolves("box.vm", true, address);
        resolves("box.test", false, address);
        for _ in 0..2 {
            assert_eq!(host.clear_resolver_routing(&name).expect("cleared"), Resolver::Told);
        }
        assert_eq!(before, ["dns", "domain", "default-route"].map(settings));
        resolves("box.vm", false, address);
    }
    drop(open);
}
