//! Taps, addresses and what guests may.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::vm::{ChangeVm, SUBNET_NOTE};
use banger_types::{Subnet, VmId};

use super::*;
use crate::seams::{Attachment, Guest, Network, NetworkError};

/// What the scripted host has of guests.
#[derive(Debug, Default)]
pub(super) struct Taps {
    /// Guests behind taps.
    pub(super) taps: Mutex<BTreeMap<VmId, Guest>>,
    /// Guests whose names are known.
    pub(super) names: Mutex<BTreeMap<VmId, Guest>>,
}

#[derive(Debug)]
pub(super) struct FakeNetwork(pub(super) Arc<Machine>);

impl FakeNetwork {
    fn failure(&self, call: &'static str) -> Result<(), NetworkError> {
        if self.0.fails(call) {
            let source = Machine::failure(call).into();
            return Err(NetworkError::Failed { act: call.to_owned(), hint: None, source });
        }
        Ok(())
    }
}

#[async_trait]
impl Network for FakeNetwork {
    async fn ready(&self) -> Result<Option<Subnet>, NetworkError> {
        if self.0.fails("bridge") {
            let (why, hint) = ("it may not".to_owned(), "be root".to_owned());
            return Err(NetworkError::Unavailable { why, hint });
        }
        Ok(self.subnet())
    }

    fn warning(&self) -> Option<String> {
        self.0.fails("collision").then(|| "another has it".to_owned())
    }

    fn subnet(&self) -> Option<Subnet> {
        let prefix = if self.0.fails("a roomy subnet") { 29 } else { 24 };
        Some(format!("10.0.0.1/{prefix}").parse().unwrap())
    }

    async fn attach(
        &self,
        guest: &Guest,
        wants_descriptor: bool,
        _: &OperationId,
    ) -> Result<Attachment, NetworkError> {
        self.failure("attach")?;
        let mut taps = self.0.taps.taps.lock().unwrap();
        assert!(taps.values().all(|one| one.address != guest.address), "an address twice");
        taps.insert(guest.vm.clone(), guest.clone());
        let descriptor = std::fs::File::open("/dev/null").unwrap().into();
        Ok(Attachment {
            tap: format!("tap-{}", guest.vm.short()),
            descriptor: wants_descriptor.then_some(descriptor),
        })
    }

    async fn change(&self, guest: &Guest, _: &OperationId) -> Result<(), NetworkError> {
        let known = self.0.taps.taps.lock().unwrap().insert(guest.vm.clone(), guest.clone());
        assert_eq!(known.unwrap().address, guest.address);
        self.failure("change")
    }

    async fn detach(&self, vm: &VmId, _: &OperationId) -> Result<(), NetworkError> {
        self.failure("detach")?;
        self.0.taps.taps.lock().unwrap().remove(vm);
        Ok(())
    }

    fn announce(&self, guest: Guest) {
        self.0.taps.names.lock().unwrap().insert(guest.vm.clone(), guest);
    }

    fn withdraw(&self, vm: &VmId) {
        self.0.taps.names.lock().unwrap().remove(vm);
    }
}

fn address(vm: &Vm) -> Ipv4Addr {
    assert_eq!(vm.network, "tap");
    let address = vm.address.expect("an address");
    let [_, _, c, d] = address.octets();
    assert_eq!(vm.mac.as_deref(), Some(format!("06:00:0a:00:{c:02x}:{d:02x}").as_str()));
    address
}

#[tokio::test]
async fn addresses_are_the_next_free_ones_and_come_back_after_a_deletion() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    for (number, name) in ["a", "b", "c"].iter().enumerate() {
        let vm = create(&engine, name).await;
        assert_eq!(address(&vm), Ipv4Addr::from([10, 0, 0, 2 + u8::try_from(number).unwrap()]));
        assert_eq!(vm.runtime.unwrap().guest_ip, vm.address);
    }
    stop(&engine, "b").await;
    delete(&engine, "a").await;
    gone(&engine, "a").await;
    assert_eq!(address(&create(&engine, "d").await), Ipv4Addr::from([10, 0, 0, 2]));
    // One that is stopped keeps its own, over a restart of the daemon too.
    drop(engine);
    let (engine, report) = open(&machine, Faults::default()).await;
    assert_eq!(report.adopted.len(), 2);
    assert_eq!(address(&create(&engine, "e").await), Ipv4Addr::from([10, 0, 0, 5]));
    start(&engine, "b").await;
    assert_eq!(address(&engine.get(&vm("b")).await.unwrap()), Ipv4Addr::from([10, 0, 0, 3]));
    assert_eq!(machine.taps.names.lock().unwrap().len(), 4);
    machine.script(|script| script.failing.push("a roomy subnet"));
    create(&engine, "f").await;
    let full = ended(&engine.create(request(Some("g")), op()).unwrap()).await;
    assert_eq!(full.error.unwrap().code, ErrorCode::InsufficientResources);
    for name in ["b", "c", "d", "e", "f"] {
        delete(&engine, name).await;
        gone(&engine, name).await;
    }
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_host_without_a_bridge_still_has_machines_and_says_why() {
    let machine = Machine::new();
    machine.script(|script| script.failing.push("bridge"));
    let (engine, _) = open(&machine, Faults::default()).await;
    let vm = create(&engine, "box").await;
    assert_eq!((vm.network.as_str(), vm.address), ("user", None));
    assert!(vm.notes["network"].contains("it may not"), "{:?}", vm.notes);
    delete(&engine, "box").await;
}

#[tokio::test]
async fn a_network_that_comes_into_the_subnet_is_told_of_a_vm_that_runs() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let noted = async || engine.get(&vm("box")).await.unwrap().notes.get(SUBNET_NOTE).cloned();
    let collides = |collides: bool| {
        machine.script(|script| {
            script.failing.clear();
            script.failing.extend(collides.then_some("collision"));
        });
    };
    let told = Some("another has it".to_owned());
    assert_eq!(create(&engine, "box").await.notes.get(SUBNET_NOTE), None);
    collides(true);
    assert_eq!(noted().await, told, "it runs since before");
    collides(false);
    assert_eq!(noted().await, None);
    // It is said at a start, too, and is not said any more once it is gone.
    stop(&engine, "box").await;
    collides(true);
    start(&engine, "box").await;
    assert_eq!(noted().await, told);
    collides(false);
    assert_eq!(noted().await, None);
    stop(&engine, "box").await;
    start(&engine, "box").await;
    assert_eq!(noted().await, None);
}

#[tokio::test]
async fn what_a_guest_may_changes_at_once_or_not_at_all() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let id = create(&engine, "box").await.id;
    let change = |nat, allow_lan, group: Option<&str>| ChangeVm {
        nat,
        allow_lan,
        group: group.map(str::to_owned),
        ..ChangeVm::default()
    };
    let now = || {
        let guest = machine.taps.taps.lock().unwrap()[&id].clone();
        assert_eq!(machine.taps.names.lock().unwrap()[&id], guest);
        (guest.nat, guest.allow_lan, guest.group.map(String::from))
    };
    assert_eq!(now(), (true, false, None));
    let box_ = vm("box");
    let bad = engine.change(&box_, &change(None, None, Some("Not One")), op()).await.unwrap_err();
    assert_eq!(bad.code(), ErrorCode::BadParams);
    let shown = engine.change(&box_, &change(None, Some(true), Some("web")), op()).await.unwrap();
    assert_eq!(now(), (true, true, Some("web".to_owned())));
    assert!(shown.spec.allow_lan);
    let shown = engine.change(&box_, &change(Some(false), None, None), op()).await.unwrap();
    assert_eq!(now(), (false, false, Some("web".to_owned())));
    assert!(!shown.spec.nat && !shown.spec.allow_lan);
    // What fails changes nothing that is shown, and nothing that is true.
    machine.script(|script| script.failing.push("change"));
    let failed = engine.change(&box_, &change(Some(true), None, Some("")), op()).await;
    assert_eq!(failed.unwrap_err().code(), ErrorCode::OperationFailed);
    machine.script(|script| script.failing.clear());
    assert_eq!(now(), (false, false, Some("web".to_owned())));
    assert!(!engine.get(&box_).await.unwrap().spec.nat);
    // This VMM cannot hold a card to a rate: it says so, and nothing is kept of it.
    let rate = Some(Some((1 << 20).try_into().unwrap()));
    let limit = ChangeVm { net_bandwidth: rate, ..change(Some(true), None, None) };
    let refused = engine.change(&box_, &limit, op()).await.unwrap_err().to_api();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    assert!(refused.message.contains("a limit of the network card"), "{}", refused.message);
    let spec = engine.get(&box_).await.unwrap().spec;
    assert!(spec.net_limits.is_unlimited() && !spec.nat, "{spec:?}");
    assert_eq!(now(), (false, false, Some("web".to_owned())));
    // Of a stopped one it is kept for the next start.
    stop(&engine, "box").await;
    engine.change(&box_, &change(Some(true), None, Some("")), op()).await.unwrap();
    engine.change(&box_, &limit, op()).await.unwrap();
    let failed = ended(&engine.start(&box_, op()).await.unwrap().operation).await.error.unwrap();
    assert!(failed.message.contains("a limit of the network card"), "{}", failed.message);
    assert!(failed.hint.unwrap().contains("--net-bandwidth none"));
    let unlimited = ChangeVm { net_bandwidth: Some(None), ..ChangeVm::default() };
    engine.change(&box_, &unlimited, op()).await.unwrap();
    start(&engine, "box").await;
    assert_eq!(now(), (true, false, None));
    delete(&engine, "box").await;
    gone(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
    let missing = engine.change(&box_, &change(Some(true), None, None), op()).await;
    assert_eq!(missing.unwrap_err().code(), ErrorCode::NotFound);
}

#[tokio::test]
async fn a_workspace_is_noted_with_or_without_another_change() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let id = create(&engine, "box").await.id;
    let workspace = |branch: &str| banger_daemon_api::vm::Workspace {
        guest_path: "/root/repo".to_owned(),
        source_path: "/home/u/repo".to_owned(),
        head_commit: None,
        branch: Some(branch.to_owned()),
        own_branch: false,
        prepared_at: None,
    };
    for (branch, nat) in [("main", None), ("topic", Some(false))] {
        let change = ChangeVm { workspace: Some(workspace(branch)), nat, ..ChangeVm::default() };
        let changed = engine.change(&(&id).into(), &change, OperationId::random()).await.unwrap();
        assert_eq!(changed.workspace, Some(workspace(branch)));
    }
    let vm = engine.get(&(&id).into()).await.unwrap();
    assert_eq!(vm.workspace, Some(workspace("topic")));
    assert!(!vm.spec.nat);
}
