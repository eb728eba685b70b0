//! The daemon killed at any step, and what the next one makes of it.
//!
//! A kill is played by a runtime that is dropped while a fault holds the engine in a step: nothing
//! of the engine runs afterwards, and the host's processes and files stay as they are.

use banger_daemon_api::vm::HELD_NOTE;

use super::*;
use crate::record::Handles;
use crate::{Action, Step};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(async { tokio::time::timeout(SOON * 3, work).await.unwrap() });
    drop(runtime);
    result
}

/// Runs `work` up to the fault and kills the daemon there.
fn killed_at<F: Future<Output = OperationHandle>>(
    machine: &Arc<Machine>,
    fault: &str,
    work: impl FnOnce(Engine) -> F,
) {
    let name = fault.split(['.', '=']).next().unwrap();
    let step = *Step::ALL.iter().find(|step| step.name() == name).unwrap();
    block_on(async {
        let (engine, _) = open(machine, Faults::at(fault)).await;
        let operation = work(engine).await;
        let mut seen = operation.snapshot();
        while seen.stage != step.stage() {
            assert!(!seen.state.is_done(), "{fault} is never reached: {seen:?}");
            let changed = operation.changed_after(seen.generation);
            let changed = tokio::time::timeout(SOON, changed).await;
            seen = changed.unwrap_or_else(|_| panic!("{fault} is never reached: {seen:?}"));
        }
        // The stage is told before the step's intent and act: let it get to where it hangs.
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(!operation.snapshot().state.is_done(), "{fault} does not hold");
    });
}

fn moments(action: Action) -> Vec<(Step, String)> {
    let fault = |step: Step, done: &str| (step, format!("{}{done}=hang", step.name()));
    action.steps().into_iter().flat_map(|step| [fault(step, ""), fault(step, ".done")]).collect()
}

#[test]
fn killed_during_a_creation_nothing_is_leaked() {
    for (step, fault) in moments(Action::Create) {
        let machine = Machine::new();
        killed_at(&machine, &fault, async |engine: Engine| {
            engine.create(request(Some("box")), op()).unwrap()
        });
        block_on(async {
            let (engine, report) = open(&machine, Faults::default()).await;
            assert_eq!(report.warnings, Vec::<String>::new(), "{fault}");
            assert_eq!(report.orphans, [], "{fault}");
            if step == Step::RecordRunning && fault.contains(".done") {
                // It was finished, only nobody was told.
                assert_eq!(report.adopted.len(), 1, "{fault}");
                delete(&engine, "box").await;
                gone(&engine, "box").await;
            } else {
                assert_eq!(report.removed.len(), 1, "{fault}: {report:?}");
            }
            assert_eq!(machine.leftovers(), Vec::<String>::new(), "{fault}");
            create(&engine, "box").await;
        });
    }
}

#[test]
fn killed_during_a_start_the_vm_and_its_disks_stay() {
    for (step, fault) in moments(Action::Start) {
        let machine = Machine::new();
        let disks = block_on(async {
            let (engine, _) = open(&machine, Faults::default()).await;
            let disks = create(&engine, "box").await.disks;
            stop(&engine, "box").await;
            disks
        });
        killed_at(&machine, &fault, async |engine: Engine| {
            engine.start(&vm("box"), op()).await.unwrap().operation
        });
        block_on(async {
            let (engine, report) = open(&machine, Faults::default()).await;
            assert_eq!(report.warnings, Vec::<String>::new(), "{fault}");
            let found = engine.get(&vm("box")).await.unwrap();
            assert_eq!(found.disks, disks, "{fault}");
            if step == Step::RecordRunning && fault.contains(".done") {
                assert_eq!(found.state, VmState::Running, "{fault}");
            } else {
                assert_eq!(found.state, VmState::Failed, "{fault}");
                assert_eq!(machine.alive(), Vec::<u32>::new(), "{fault}");
                start(&engine, "box").await;
            }
            delete(&engine, "box").await;
            gone(&engine, "box").await;
            assert_eq!(machine.leftovers(), Vec::<String>::new(), "{fault}");
        });
    }
}

#[test]
fn killed_during_a_stop_the_vm_is_stopped_and_during_a_deletion_it_is_gone() {
    let stops = moments(Action::Stop).into_iter().map(|(_, fault)| (fault, true));
    let deletes = moments(Action::Delete).into_iter().map(|(_, fault)| (fault, false));
    for (fault, stops) in stops.chain(deletes) {
        let machine = Machine::new();
        killed_at(&machine, &fault, async |engine: Engine| {
            create(&engine, "box").await;
            let started = if stops {
                engine.stop(&vm("box"), &StopVm::default(), op()).await
            } else {
                engine.delete(&vm("box"), op()).await
            };
            started.unwrap().operation
        });
        block_on(async {
            let (engine, report) = open(&machine, Faults::default()).await;
            assert_eq!(report.warnings, Vec::<String>::new(), "{fault}");
            assert_eq!(machine.alive(), Vec::<u32>::new(), "{fault}");
            if stops {
                let found = engine.get(&vm("box")).await.unwrap();
                assert_eq!(found.state, VmState::Stopped, "{fault}");
                start(&engine, "box").await;
                delete(&engine, "box").await;
            }
            gone(&engine, "box").await;
            assert_eq!(machine.leftovers(), Vec::<String>::new(), "{fault}");
        });
    }
}

/// Creates a VM, ends the daemon, lets `meddle` change the host, and starts the daemon again.
async fn after_restart(
    machine: &Arc<Machine>,
    meddle: impl FnOnce(&Vm),
) -> (Vm, Engine, ReconcileReport) {
    let (engine, _) = open(machine, Faults::default()).await;
    let before = create(&engine, "box").await;
    engine.shutdown().await;
    drop(engine);
    drop(lock(machine).await);
    meddle(&before);
    let (engine, report) = open(machine, Faults::default()).await;
    (before, engine, report)
}

fn vm_dir(machine: &Machine, vm: &Vm) -> std::path::PathBuf {
    machine.state_dir().join("vms").join(vm.id.as_str())
}

#[test]
fn a_running_vm_is_adopted_from_any_one_source() {
    type Meddle = fn(&Machine, &Vm);
    let cases: [(&str, Meddle); 6] = [
        ("untouched", |_, _| {}),
        ("no handles", |machine, vm| {
            std::fs::remove_file(vm_dir(machine, vm).join("handles.json")).unwrap();
        }),
        ("garbled handles", |machine, vm| {
            std::fs::write(vm_dir(machine, vm).join("handles.json"), "{\"vm\": 7").unwrap();
        }),
        ("no store", |machine, _| {
            for suffix in ["", "-wal", "-shm"] {
                let _ =
                    std::fs::remove_file(machine.state_dir().join(format!("banger.db{suffix}")));
            }
        }),
        ("garbled store", |machine, _| {
            std::fs::write(machine.state_dir().join("banger.db"), vec![7; 9000]).unwrap();
        }),
        ("neither handles nor process list", |machine, vm| {
            std::fs::remove_file(vm_dir(machine, vm).join("handles.json")).unwrap();
            machine.script(|script| script.failing.push("find"));
        }),
    ];
    for (label, meddle) in cases {
        let machine = Machine::new();
        block_on(async {
            let host = Arc::clone(&machine);
            let (before, engine, report) = after_restart(&machine, |vm| meddle(&host, vm)).await;
            machine.script(|script| script.failing.clear());
            assert_eq!(report.adopted.len(), 1, "{label}: {report:?}");
            let after = engine.get(&vm("box")).await.unwrap();
            assert_eq!(after.state, VmState::Running, "{label}");
            assert_eq!(after.runtime, before.runtime, "{label}");
            engine.agent(&vm("box")).unwrap().open().await.unwrap();
            // What was lost or damaged is there again, for when another source is lost.
            let handles = Handles::read(&vm_dir(&machine, &after).join("handles.json"), &after.id);
            let handles = handles.unwrap().unwrap();
            assert_eq!(handles.identity.pid, after.runtime.unwrap().pid, "{label}");
            assert_eq!((handles.guest_ip, handles.on_bridge), (after.address, true), "{label}");
            // It is watched again, and can be stopped cleanly.
            stop(&engine, "box").await;
            assert_eq!(engine.get(&vm("box")).await.unwrap().last_error, None);
            delete(&engine, "box").await;
            gone(&engine, "box").await;
            assert_eq!(machine.leftovers(), Vec::<String>::new(), "{label}");
        });
    }
}

#[test]
fn a_vmm_that_ended_meanwhile_is_cleaned_up() {
    let machine = Machine::new();
    block_on(async {
        let host = Arc::clone(&machine);
        let (_, engine, report) = after_restart(&machine, |vm| {
            host.end(vm.runtime.as_ref().unwrap().pid, Some("oom"));
        })
        .await;
        assert_eq!(report.ended.len(), 1);
        let after = engine.get(&vm("box")).await.unwrap();
        assert_eq!((after.state, after.runtime), (VmState::Stopped, None));
        let why = after.last_error.unwrap().message;
        assert!(why.contains("ended while no daemon ran"), "{why}");
        start(&engine, "box").await;
    });
}

#[test]
fn a_vmm_that_cannot_be_talked_to_is_kept_and_asked_again() {
    let machine = Machine::new();
    block_on(async {
        let host = Arc::clone(&machine);
        let (before, engine, report) = after_restart(&machine, |_| {
            host.script(|script| script.failing.push("adopt"));
        })
        .await;
        assert_eq!(report.adopted.len(), 1, "{report:?}");
        let [warning] = report.warnings.as_slice() else { panic!("{report:?}") };
        assert!(warning.contains("did not answer"), "{warning}");
        let held = engine.get(&vm("box")).await.unwrap();
        assert_eq!((held.state, &held.runtime), (VmState::Running, &before.runtime));
        assert_eq!(held.last_error, None);
        assert!(held.notes[HELD_NOTE].contains("does not answer"), "{:?}", held.notes);
        // Whoever calls meanwhile waits for it.
        let channel = engine.agent(&vm("box")).unwrap();
        let (opened, ()) = tokio::join!(channel.open(), async {
            machine.script(|script| script.failing.clear());
        });
        opened.unwrap();
        let after = engine.get(&vm("box")).await.unwrap();
        assert_eq!((after.runtime, after.notes.get(HELD_NOTE)), (before.runtime, None));
        stop(&engine, "box").await;
        assert_eq!(engine.get(&vm("box")).await.unwrap().last_error, None);
        start(&engine, "box").await;
    });
}

#[test]
fn stopped_vmms_hold_up_nobody_and_end_when_told_to() {
    const VMS: u32 = 6;
    let machine = Machine::new();
    block_on(async {
        let (engine, _) = open(&machine, Faults::default()).await;
        let mut pids = Vec::new();
        for number in 0..VMS {
            let vm = create(&engine, &format!("box{number}")).await;
            pids.push(vm.runtime.unwrap().pid);
        }
        engine.shutdown().await;
        drop(engine);
        drop(lock(&machine).await);
        let answering = pids.pop().unwrap();
        machine.script(|script| script.stopped.extend(&pids));
        let begun = std::time::Instant::now();
        let (engine, report) = open(&machine, Faults::default()).await;
        assert_eq!(report.adopted.len(), pids.len() + 1, "{report:?}");
        assert_eq!(report.warnings.len(), pids.len(), "{report:?}");
        // One after another they would have taken five times as long as one.
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
        let list = engine.list().await;
        let held = list.iter().filter(|vm| vm.notes.contains_key(HELD_NOTE)).count();
        assert_eq!(held, pids.len());
        assert_eq!(machine.alive().len(), pids.len() + 1);

        let force = StopVm { force: true, ..StopVm::default() };
        let stopped = engine.stop(&vm("box0"), &force, op()).await.unwrap().operation;
        succeed(&stopped).await;
        // One that ends by itself is seen to.
        machine.end(pids[1], Some("oom"));
        until_state(&engine, "box1", VmState::Failed).await;
        let mut rest = pids.split_off(2);
        rest.push(answering);
        assert_eq!(machine.alive(), rest);
    });
}

#[test]
fn whether_a_vmm_runs_is_known_before_another_is_started() {
    let machine = Machine::new();
    block_on(async {
        let (engine, _) = open(&machine, Faults::default()).await;
        create(&engine, "box").await;
        engine.shutdown().await;
        drop(engine);
        machine.script(|script| script.failing.push("hold"));
        let config = config(&machine, Faults::default(), timing());
        let (engine, _) = Engine::open(config, lock(&machine).await).await.unwrap();
        assert!(engine.reconcile().await.is_err());
        assert!(engine.create(request(Some("two")), op()).is_err(), "nothing is taken");
        assert_eq!(machine.alive().len(), 1);
    });
}

#[test]
fn ephemeral_vms_do_not_outlive_the_daemon_that_knew_their_client() {
    let machine = Machine::new();
    block_on(async {
        let (engine, _) = open(&machine, Faults::default()).await;
        let lease = engine.lease_opened();
        let bound = CreateVm { lease: Some(lease), ..request(Some("box")) };
        succeed(&engine.create(bound, op()).unwrap()).await;
    });
    block_on(async {
        let (_, report) = open(&machine, Faults::default()).await;
        assert_eq!(report.removed.len(), 1);
        assert_eq!(machine.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn what_belongs_to_no_vm_is_reported_and_left_alone() {
    let machine = Machine::new();
    block_on(async {
        let host = Arc::clone(&machine);
        let (_, _, report) = after_restart(&machine, |vm| {
            // The row and its mirror are lost: an orphaned VMM, two orphaned directories.
            for suffix in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(host.state_dir().join(format!("banger.db{suffix}")));
            }
            std::fs::remove_file(vm_dir(&host, vm).join("vm.json")).unwrap();
        })
        .await;
        assert_eq!(report.orphans.len(), 3, "{report:?}");
        assert_eq!(machine.alive().len(), 1);
    });
}
