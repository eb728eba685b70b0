//! Published ports: open while a VM runs, all of them or none.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::vm::{ChangePorts, PORTS_NOTE};
use banger_guest_client::GuestChannel;
use banger_types::{Publication, VmId, VmName};

use super::*;
use crate::seams::{PortError, Ports};

/// What the scripted host has open, and whether a guest is behind.
pub(super) type OpenPorts = Mutex<BTreeMap<VmId, (Vec<Publication>, bool)>>;

#[derive(Debug)]
pub(super) struct FakePorts(pub(super) Arc<Machine>);

impl FakePorts {
    /// Sockets end with their daemon.
    pub(super) fn new(machine: &Arc<Machine>) -> Self {
        machine.ports.lock().unwrap().clear();
        Self(Arc::clone(machine))
    }
}

impl Ports for FakePorts {
    fn publish(&self, vm: &VmId, name: &VmName, wanted: &[Publication]) -> Result<(), PortError> {
        let mut open = self.0.ports.lock().unwrap();
        let taken = wanted
            .iter()
            .find(|one| open.iter().any(|(other, (ports, _))| other != vm && ports.contains(one)));
        let failing = wanted.first().filter(|_| self.0.fails("publish"));
        if let Some(publication) = taken.or(failing) {
            let source = std::io::ErrorKind::AddrInUse.into();
            return Err(PortError {
                publication: *publication,
                holder: taken.map(|_| name.clone()),
                source,
            });
        }
        let served = open.get(vm).is_some_and(|(_, served)| *served);
        open.insert(vm.clone(), (wanted.to_vec(), served));
        Ok(())
    }

    fn serve(&self, vm: &VmId, _: Arc<dyn GuestChannel>) {
        if let Some((_, served)) = self.0.ports.lock().unwrap().get_mut(vm) {
            *served = true;
        }
    }

    fn withdraw(&self, vm: &VmId) {
        self.0.ports.lock().unwrap().remove(vm);
    }

    fn open(&self, vm: &VmId) -> Vec<(Publication, SocketAddr)> {
        let ports = self.0.ports.lock().unwrap().get(vm).map(|(ports, _)| ports.clone());
        let address = |one: Publication| {
            let port = if one.host.port() == 0 { 4711 } else { one.host.port() };
            SocketAddr::new(one.host.ip(), port)
        };
        ports.into_iter().flatten().map(|one| (one, address(one))).collect()
    }
}

fn publications(texts: &[&str]) -> Vec<Publication> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn publish(texts: &[&str]) -> ChangePorts {
    ChangePorts { publish: publications(texts), unpublish: Vec::new() }
}

fn unpublish(texts: &[&str]) -> ChangePorts {
    let unpublish = texts.iter().map(|text| text.parse().unwrap()).collect();
    ChangePorts { publish: Vec::new(), unpublish }
}

async fn create_with(engine: &Engine, name: &str, ports: &[&str]) -> Result<Vm, ErrorCode> {
    let mut request = request(Some(name));
    request.spec.ports = publications(ports);
    let operation = engine.create(request, op()).map_err(|error| error.code())?;
    match ended(&operation).await.error {
        Some(error) => Err(error.code),
        None => Ok(engine.get(&vm(name)).await.unwrap()),
    }
}

#[tokio::test]
async fn ports_are_open_while_a_machine_runs() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let created = create_with(&engine, "web", &["8080:80", "0:53/udp"]).await.unwrap();
    let now = || machine.ports.lock().unwrap().get(&created.id).cloned();
    assert_eq!(now(), Some((publications(&["8080:80", "0:53/udp"]), true)));
    assert_eq!(created.ports[1].address, Some("127.0.0.1:4711".parse().unwrap()));
    stop(&engine, "web").await;
    assert_eq!(now(), None);
    let stopped = engine.get(&vm("web")).await.unwrap();
    assert!(stopped.ports.len() == 2 && stopped.ports.iter().all(|port| port.address.is_none()));
    start(&engine, "web").await;
    assert!(now().is_some_and(|(_, served)| served));
    // The next daemon opens them again, and says so if it cannot.
    drop(engine);
    let (engine, _) = open(&machine, Faults::default()).await;
    assert!(now().is_some_and(|(_, served)| served));
    drop(engine);
    machine.script(|script| script.failing.push("publish"));
    let (engine, report) = open(&machine, Faults::default()).await;
    assert_eq!(report.adopted.len(), 1);
    let note = engine.get(&vm("web")).await.unwrap().notes[PORTS_NOTE].clone();
    assert!(note.contains("8080"), "{note}");
    machine.script(|script| script.failing.clear());
    delete(&engine, "web").await;
    gone(&engine, "web").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_port_that_is_taken_ends_a_start_before_anything_is_made() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create_with(&engine, "web", &["8080:80"]).await.unwrap();
    assert_eq!(create_with(&engine, "two", &["8080:81"]).await.map(drop), Ok(()));
    // The same publication is the same port here.
    assert_eq!(create_with(&engine, "three", &["8080:80"]).await.map(drop), Err(ErrorCode::InUse));
    gone(&engine, "three").await;
    for twice in [&["8080:80", "8080:80"][..], &["8080:80", "8080:81"]] {
        let refused = create_with(&engine, "four", twice).await.map(drop);
        assert_eq!(refused, Err(ErrorCode::BadParams), "{twice:?}");
    }
    let many: Vec<String> = (1..=65).map(|port| format!("{port}:80")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let refused = create_with(&engine, "four", &many).await.map(drop);
    assert_eq!(refused, Err(ErrorCode::BadParams));
    for name in ["web", "two"] {
        delete(&engine, name).await;
        gone(&engine, name).await;
    }
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn ports_change_at_once_and_together_or_not_at_all() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let id = create_with(&engine, "web", &["8080:80"]).await.unwrap().id;
    let web = vm("web");
    let now = || machine.ports.lock().unwrap()[&id].0.clone();
    let change = async |change| engine.change_ports(&web, change, op()).await;
    change(publish(&["8080:80", "0:22"])).await.unwrap();
    assert_eq!(now(), publications(&["8080:80", "0:22"]));
    // The number that is open names it, and so does what was asked for.
    change(unpublish(&["4711"])).await.unwrap();
    assert_eq!(now(), publications(&["8080:80"]));
    let unknown = change(unpublish(&["8080", "9090"])).await.unwrap_err();
    assert_eq!(unknown.code(), ErrorCode::NotFound);
    assert!(unknown.to_string().contains("9090/tcp"), "{unknown}");
    let twice = change(publish(&["8080:81"])).await.unwrap_err();
    assert_eq!(twice.code(), ErrorCode::BadParams);
    machine.script(|script| script.failing.push("publish"));
    let taken = change(publish(&["9090:90"])).await.unwrap_err();
    assert_eq!(taken.code(), ErrorCode::InUse);
    machine.script(|script| script.failing.clear());
    assert_eq!(now(), publications(&["8080:80"]));
    assert_eq!(engine.get(&web).await.unwrap().spec.ports, publications(&["8080:80"]));
    // Of a stopped machine it is for the next start.
    stop(&engine, "web").await;
    change(publish(&["9090:90"])).await.unwrap();
    assert!(machine.ports.lock().unwrap().is_empty());
    start(&engine, "web").await;
    assert_eq!(now(), publications(&["8080:80", "9090:90"]));
    delete(&engine, "web").await;
    gone(&engine, "web").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}
