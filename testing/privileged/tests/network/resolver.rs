//! Where there is no systemd-resolved (where there is one: the KVM host's tests).

use banger_gates::{BridgeName, request};
use banger_helper_api::SyncResolverRoutingParams;
use banger_host::{HostError, Resolver};
use banger_privileged_tests::{Fixture, enter_own_network};

use crate::is_root;
use crate::world::{bridge_params, ensure_bridge, refused, run};

fn sync(host: &Fixture, server: &str) -> Result<Resolver, HostError> {
    let params = SyncResolverRoutingParams {
        bridge_name: "br-fc".to_owned(),
        server_addr: server.to_owned(),
    };
    host.host.sync_resolver_routing(&request::sync_resolver_routing(&params).unwrap().unwrap())
}

#[test]
fn without_resolved_nothing_is_done_and_a_foreign_bridge_is_refused_all_the_same() {
    if !is_root() {
        return;
    }
    if std::path::Path::new("/run/systemd/resolve/io.systemd.Resolve").exists() {
        banger_harness::skip("no-resolved", "systemd-resolved runs here");
        return;
    }
    enter_own_network();
    let host = Fixture::new();
    let bridge = BridgeName::parse("bridge_name", "br-fc").unwrap();
    refused("bridge_name", || sync(&host, "127.0.0.1:42069"));
    assert_eq!(host.host.clear_resolver_routing(&bridge).unwrap(), Resolver::Told);
    for make in ["veth peer name other", "bridge"] {
        run(&format!("ip link add name br-fc type {make}"));
        refused("bridge_name", || sync(&host, "127.0.0.1"));
        refused("bridge_name", || host.host.clear_resolver_routing(&bridge));
        run("ip link delete br-fc");
    }
    ensure_bridge(&host, bridge_params()).unwrap();
    for server in ["127.0.0.1:42069", "172.16.0.1", "[::1]:53", "::1"] {
        assert_eq!(sync(&host, server).unwrap(), Resolver::Absent);
    }
    assert_eq!(host.host.clear_resolver_routing(&bridge).unwrap(), Resolver::Absent);
}
