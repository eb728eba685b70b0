//! The daemon's part of the network with the helper itself: another way out of the host, another subnet.

use std::time::Duration;

use banger_daemon_api::config::NetworkConfig;
use banger_engine::seams::{Guest, Network};
use banger_helper_client::HelperClient;
use banger_network::HelperNetwork;
use banger_privileged_tests::running::RunningHelper;
use banger_types::{OperationId, VmId};

use crate::is_root;
use crate::world::{World, run};

/// The helper looks by itself once a minute: what comes this soon was asked for.
const SOON: Duration = Duration::from_secs(20);

fn forwards(link: &str) -> bool {
    let path = format!("/proc/sys/net/ipv4/conf/{link}/forwarding");
    std::fs::read_to_string(path).unwrap().trim() == "1"
}

fn settings(subnet: &str, tap_pool: u16) -> NetworkConfig {
    NetworkConfig { subnet: Some(subnet.parse().unwrap()), tap_pool, ..NetworkConfig::default() }
}

#[test]
fn another_uplink_forwards_as_soon_as_the_default_route_leads_there() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.add_uplink("up1", 3);
    let helper = RunningHelper::start();
    let client = HelperClient::new(helper.socket());
    let state = &helper.directories.state;
    let network =
        HelperNetwork::new(client, "br-fc".to_owned(), state, settings("172.16.0.1/24", 0));
    let guest = Guest {
        vm: VmId::random(),
        name: "web".parse().unwrap(),
        address: Some([172, 16, 0, 2].into()),
        nat: true,
        allow_lan: false,
        group: None,
    };
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (end, is_end) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        let daemon = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let run = async {
                    network.ready().await.unwrap();
                    let operation = OperationId::random();
                    let attached = network.attach(&guest, false, &operation).await.unwrap();
                    ready.send(attached.tap).unwrap();
                    is_end.await.unwrap();
                };
                tokio::select! { () = run => {}, () = network.follow_routes() => panic!("it ended") }
            });
        });
        let tap = is_ready.recv_timeout(SOON).unwrap();
        assert!(run("nft list set inet banger nat").contains("172.16.0.2"), "{tap}");
        assert!(forwards("up0") && !forwards("up1"));
        run("ip route replace default via 9.9.3.1");
        banger_harness::wait_for("forwarding", SOON, || forwards("up1").then_some(()));
        end.send(()).unwrap();
        daemon.join().unwrap();
    });
}

#[test]
fn taps_that_wait_do_not_keep_the_subnet() {
    if !is_root() {
        return;
    }
    let _world = World::new();
    let helper = RunningHelper::start();
    let state = &helper.directories.state;
    let open = |settings| {
        let client = HelperClient::new(helper.socket());
        HelperNetwork::new(client, "br-fc".to_owned(), state, settings)
    };
    let taps = || run("ip -o link show master br-fc").matches("tap-pool-").count();
    let is_at = |ip: &str| run("ip -4 address show br-fc").contains(ip);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let two = || banger_harness::wait_for("two taps", SOON, || (taps() == 2).then_some(()));
    // By the configuration, and by a daemon that is started with another one; it was killed.
    runtime.block_on(async {
        let network = open(settings("172.16.0.1/24", 2));
        network.ready().await.unwrap();
        two();
        network.configure(settings("172.17.0.1/24", 2), Vec::new()).await.unwrap();
        assert!(is_at("172.17.0.1") && !is_at("172.16.0.1"));
        two();
    });
    runtime.shutdown_timeout(SOON);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let network = open(settings("172.18.0.1/24", 2));
        network.ready().await.unwrap();
        assert!(is_at("172.18.0.1") && !is_at("172.17.0.1"));
        two();
    });
}
