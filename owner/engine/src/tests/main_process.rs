//! A VM that exists for one program.

use banger_agent_api::ExitStatus;
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::vm::{MainExit, MainOptions};

use super::machine::SOON;
use super::*;

fn application(machine: &Machine) {
    let config =
        serde_json::json!({"Entrypoint": ["/app"], "Env": ["A=1"], "StopSignal": "SIGINT"});
    machine.script(|script| script.config = Some(serde_json::from_value(config).unwrap()));
}

async fn ended_vm(engine: &Engine, name: &str) -> Vm {
    let mut watch = engine.watch(&vm(name)).unwrap();
    let ended = async {
        while watch.state() != Some(VmState::Stopped) {
            watch.changed().await;
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("the VM does not end");
    engine.get(&vm(name)).await.unwrap()
}

#[tokio::test]
async fn the_vm_ends_with_its_main_process_and_keeps_how() {
    let machine = Machine::new();
    application(&machine);
    machine.script(|script| script.main_exit = Some(ExitStatus::Code(3)));
    let (engine, _) = open(&machine, Faults::default()).await;
    let options = MainOptions { held: true, ..MainOptions::default() };
    let held = CreateVm { main: options, ..request(Some("box")) };
    succeed(&engine.create(held, op()).unwrap()).await;
    let stopped = ended_vm(&engine, "box").await;
    assert_eq!(stopped.main.as_ref().unwrap().argv, ["/app"]);
    assert_eq!(stopped.main_exit, Some(MainExit { code: 3, signal: None }));
    assert_eq!(stopped.last_error, None);
    // It runs once more, by itself this time, and what is known of the last time is gone.
    machine.script(|script| script.main_exit = None);
    start(&engine, "box").await;
    let running = engine.get(&vm("box")).await.unwrap();
    assert_eq!((running.state, running.main_exit), (VmState::Running, None));
    let told = machine.configured(running.runtime.unwrap().pid);
    let main = told[0].main.as_ref().unwrap();
    assert!(!main.held && main.stop_signal.get() == 2 && told.len() == 1);
    assert_eq!(told[0].environment, ["A=1".parse().unwrap()]);
    delete(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn the_next_daemon_hears_of_the_end_too() {
    let machine = Machine::new();
    application(&machine);
    let (engine, _) = open(&machine, Faults::default()).await;
    let pid = create(&engine, "box").await.runtime.unwrap().pid;
    drop(engine);
    let (engine, report) = open(&machine, Faults::default()).await;
    assert_eq!(report.adopted.len(), 1);
    machine.end_main(pid, ExitStatus::Signal(15));
    let stopped = ended_vm(&engine, "box").await;
    assert_eq!(stopped.main_exit, Some(MainExit { code: 143, signal: Some(15) }));
}

#[tokio::test]
async fn what_cannot_be_run_makes_no_vm() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let options = MainOptions {
        command: Some(vec!["ls".to_owned()]),
        required: true,
        ..MainOptions::default()
    };
    let wanted = CreateVm { main: options, ..request(Some("box")) };
    let failed = ended(&engine.create(wanted, op()).unwrap()).await;
    let error = failed.error.unwrap();
    assert_eq!(error.code, ErrorCode::BadParams);
    assert!(error.hint.unwrap().contains("--entrypoint"));
    // The guest knows whether there is such a user.
    application(&machine);
    machine.script(|script| script.guest = machine::Guest::Rude);
    let failed = ended(&engine.create(request(Some("box")), op()).unwrap()).await;
    let error = failed.error.unwrap();
    assert_eq!((error.code, error.message.contains("main process")), (ErrorCode::BadParams, true));
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}
