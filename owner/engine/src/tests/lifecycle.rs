//! What a VM does when the host does what it should, and when the guest does not.

use super::*;
use banger_daemon_api::error::ErrorCode;
use machine::Guest;

#[tokio::test]
async fn a_vm_lives_and_leaves_nothing() {
    let machine = Machine::new();
    let (engine, report) = open(&machine, Faults::default()).await;
    assert_eq!(report, ReconcileReport::default());
    let created = create(&engine, "box").await;
    assert_eq!(created.state, VmState::Running);
    let runtime = created.runtime.unwrap();
    assert_eq!(machine.alive(), [runtime.pid]);
    assert!(runtime.boot_id.is_some());
    assert_eq!(runtime.agent_version.as_deref().map(|text| text.contains('\x1b')), Some(false));
    assert!(created.notes["VMM choice"].contains("qemu"), "{:?}", created.notes);
    assert_eq!(created.disks.len(), 2);
    engine.agent(&vm("box")).unwrap().open().await.unwrap();
    // By id, and by the beginning of the id.
    let id = created.id.as_str();
    assert_eq!(engine.get(&vm(id)).await.unwrap().name.as_str(), "box");
    assert_eq!(engine.id_of(&vm(&id[..6])).unwrap(), created.id);

    stop(&engine, "box").await;
    let stopped = engine.get(&vm("box")).await.unwrap();
    assert_eq!((stopped.state, stopped.runtime), (VmState::Stopped, None));
    assert_eq!(stopped.last_error, None);
    assert!(machine.alive().is_empty());
    let denied = engine.agent(&vm("box")).unwrap_err();
    assert_eq!(denied.code(), ErrorCode::NotRunning);
    assert!(denied.hint().unwrap().contains("banger vm start box"));

    start(&engine, "box").await;
    let second = engine.get(&vm("box")).await.unwrap().runtime.unwrap();
    assert_ne!(second.boot_id, runtime.boot_id);
    let restarted = engine.restart(&vm("box"), &StopVm::default(), op()).await.unwrap();
    succeed(&restarted.operation).await;
    assert_ne!(engine.get(&vm("box")).await.unwrap().runtime.unwrap().boot_id, second.boot_id);

    delete(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
    let error = engine.delete(&vm("box"), op()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
}

#[tokio::test]
async fn asking_twice_is_asking_once() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    let again = engine.start(&vm("box"), op()).await.unwrap();
    assert!(again.joined);
    succeed(&again.operation).await;
    stop(&engine, "box").await;
    stop(&engine, "box").await;
    // The name is free as soon as the deletion says that it is done.
    for _ in 0..20 {
        delete(&engine, "box").await;
        create(&engine, "box").await;
    }
}

#[tokio::test]
async fn of_a_hundred_creations_of_one_name_one_wins() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let mut won = Vec::new();
    for _ in 0..100 {
        match engine.create(request(Some("box")), op()) {
            Ok(operation) => won.push(operation),
            Err(error) => assert_eq!(error.code(), ErrorCode::AlreadyExists),
        }
    }
    assert_eq!(won.len(), 1);
    succeed(&won[0]).await;
    assert_eq!(machine.alive().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_vms_at_once_do_not_mix() {
    let machine = Machine::new();
    machine.script(|script| script.memory = 1 << 40);
    let (engine, _) = open(&machine, Faults::default()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let engine = engine.clone();
        tasks.spawn(async move {
            let operation = engine.create(request(None), op()).unwrap();
            succeed(&operation).await;
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let all = engine.list().await;
    assert_eq!((all.len(), machine.alive().len(), engine.running_vms()), (30, 30, 30));
    for one in &all {
        engine.delete(&VmReference::from(&one.id), op()).await.unwrap();
    }
    for one in &all {
        gone(&engine, one.name.as_str()).await;
    }
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_lease_takes_its_vms_with_it() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let lease = engine.lease_opened();
    let bound = CreateVm { lease: Some(lease.clone()), ..request(Some("gone")) };
    succeed(&engine.create(bound.clone(), op()).unwrap()).await;
    create(&engine, "kept").await;
    assert!(engine.get(&vm("gone")).await.unwrap().ephemeral);
    for deletion in engine.lease_closed(&lease).await {
        succeed(&deletion).await;
    }
    gone(&engine, "gone").await;
    assert_eq!(machine.alive().len(), 1);
    assert_eq!(engine.create(bound, op()).unwrap_err().code(), ErrorCode::NotFound);
}

#[tokio::test]
async fn a_lease_that_ends_during_the_creation_leaves_nothing() {
    let machine = Machine::new();
    machine.script(|script| script.guest = Guest::Silent);
    let (engine, _) = open(&machine, Faults::default()).await;
    let lease = engine.lease_opened();
    let bound = CreateVm { lease: Some(lease.clone()), ..request(Some("box")) };
    let creation = engine.create(bound, op()).unwrap();
    while machine.alive().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let deletions = engine.lease_closed(&lease).await;
    assert_eq!(ended(&creation).await.state, OperationState::Cancelled);
    for deletion in deletions {
        succeed(&deletion).await;
    }
    gone(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_guest_that_dies_while_booting_says_why() {
    let machine = Machine::new();
    machine.script(|script| script.guest = Guest::Dies);
    let (engine, _) = open(&machine, Faults::default()).await;
    let operation = ended(&engine.create(request(Some("box")), op()).unwrap()).await;
    let error = operation.error.unwrap();
    assert_eq!(error.code, ErrorCode::GuestFailed);
    assert!(error.causes.iter().any(|cause| cause.contains("guest panicked")), "{error:?}");
    gone(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_guest_that_never_answers_is_given_up() {
    let machine = Machine::new();
    machine.script(|script| script.guest = Guest::Silent);
    let timing = Timing { agent_deadline: Duration::from_millis(50), ..timing() };
    let (engine, _) = open_with(&machine, Faults::default(), timing).await;
    let operation = ended(&engine.create(request(Some("box")), op()).unwrap()).await;
    assert_eq!(operation.error.unwrap().code, ErrorCode::Timeout);
    gone(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_guest_that_does_not_power_off_is_killed_and_told_of() {
    for guest in [Guest::Stubborn, Guest::Rude] {
        let machine = Machine::new();
        machine.script(|script| script.guest = guest);
        let (engine, _) = open(&machine, Faults::default()).await;
        create(&engine, "box").await;
        let how = StopVm { grace_ms: Some(50), force: false };
        succeed(&engine.stop(&vm("box"), &how, op()).await.unwrap().operation).await;
        let stopped = engine.get(&vm("box")).await.unwrap();
        assert_eq!(stopped.state, VmState::Stopped);
        let warning = stopped.last_error.unwrap();
        assert!(warning.message.contains("killed"), "{warning:?}");
        assert!(!format!("{warning:?}").contains("\\u{1b}"), "{warning:?}");
        assert!(machine.alive().is_empty());
    }
}

#[tokio::test]
async fn force_hurries_a_clean_stop() {
    let machine = Machine::new();
    machine.script(|script| script.guest = Guest::Stubborn);
    let timing = Timing { stop_grace: Duration::from_secs(3600), ..timing() };
    let (engine, _) = open_with(&machine, Faults::default(), timing).await;
    create(&engine, "box").await;
    let clean = engine.stop(&vm("box"), &StopVm::default(), op()).await.unwrap();
    until_state(&engine, "box", VmState::Stopping).await;
    let force = StopVm { force: true, grace_ms: None };
    assert!(engine.stop(&vm("box"), &force, op()).await.unwrap().joined);
    succeed(&clean.operation).await;
}

#[tokio::test]
async fn deletion_does_not_wait_for_a_clean_stop_or_a_start() {
    let machine = Machine::new();
    machine.script(|script| script.guest = Guest::Stubborn);
    let timing =
        Timing { stop_grace: Duration::from_secs(3600), agent_deadline: Duration::from_secs(3600) };
    let (engine, _) = open_with(&machine, Faults::default(), timing).await;
    create(&engine, "box").await;
    let stop = engine.stop(&vm("box"), &StopVm::default(), op()).await.unwrap();
    let start = engine.start(&vm("box"), op()).await.unwrap();
    delete(&engine, "box").await;
    succeed(&stop.operation).await;
    assert_eq!(ended(&start.operation).await.state, OperationState::Cancelled);
    gone(&engine, "box").await;

    machine.script(|script| script.guest = Guest::Silent);
    let creation = engine.create(request(Some("box")), op()).unwrap();
    delete(&engine, "box").await;
    assert_eq!(ended(&creation).await.state, OperationState::Cancelled);
    gone(&engine, "box").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn the_end_of_a_vmm_is_noticed() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let lease = engine.lease_opened();
    for (name, reason, state) in
        [("off", None, VmState::Stopped), ("crash", Some("segfault"), VmState::Failed)]
    {
        let pid = create(&engine, name).await.runtime.unwrap().pid;
        machine.end(pid, reason);
        let vm = until_state(&engine, name, state).await;
        assert_eq!(vm.runtime, None);
        assert_eq!(
            vm.last_error.map(|error| error.message.contains("segfault")),
            reason.map(|_| true)
        );
        start(&engine, name).await;
        delete(&engine, name).await;
    }
    let bound = CreateVm { lease: Some(lease.clone()), ..request(Some("brief")) };
    succeed(&engine.create(bound, op()).unwrap()).await;
    machine.end(machine.alive()[0], Some("oom"));
    // Its client learns why before the VM is gone.
    let vm = until_state(&engine, "brief", VmState::Failed).await;
    assert!(vm.last_error.is_some_and(|error| error.message.contains("oom")));
    for deletion in engine.lease_closed(&lease).await {
        succeed(&deletion).await;
    }
    gone(&engine, "brief").await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_vm_ended_by_a_users_signal_is_stopped_not_failed() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    assert_eq!(engine.kill(&vm("box"), "SEGV").await.unwrap_err().code(), ErrorCode::BadParams);
    engine.kill(&vm("box"), "SIGKILL").await.unwrap();
    let stopped = until_state(&engine, "box", VmState::Stopped).await;
    assert_eq!(stopped.last_error, None);
    assert_eq!(engine.kill(&vm("box"), "KILL").await.unwrap_err().code(), ErrorCode::NotRunning);
}

#[tokio::test]
async fn what_is_missing_is_said_before_anything_is_made() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let failed = |request| {
        let operation = engine.create(request, op()).unwrap();
        async move { ended(&operation).await.error.unwrap() }
    };
    let image = CreateVm { image: "none".parse().unwrap(), ..request(Some("a")) };
    assert_eq!(failed(image).await.code, ErrorCode::NotFound);
    let kernel = CreateVm { kernel: "none".parse().unwrap(), ..request(Some("b")) };
    let error = failed(kernel).await;
    assert!(error.hint.unwrap().contains("banger kernel"), "{}", error.message);
    let mut firecracker = request(Some("c"));
    firecracker.spec.vmm = VmmChoice::Firecracker;
    assert_eq!(failed(firecracker).await.code, ErrorCode::Unavailable);
    machine.script(|script| script.disk = 1 << 20);
    assert_eq!(failed(request(Some("d"))).await.code, ErrorCode::NoSpace);
    machine.script(|script| script.disk = 1 << 40);
    machine.script(|script| script.failing.push("probe"));
    let error = failed(request(Some("e"))).await;
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.hint.unwrap().contains("apt-get install"));
    machine.script(|script| script.failing.clear());
    // Two guests of 512 MiB and their VMMs.
    machine.script(|script| script.memory = (1 << 30) + (128 << 20));
    create(&engine, "one").await;
    create(&engine, "two").await;
    let error = failed(request(Some("three"))).await;
    assert_eq!(error.code, ErrorCode::InsufficientResources);
    assert!(error.message.contains("576M"), "{}", error.message);
    stop(&engine, "one").await;
    create(&engine, "three").await;
    assert_eq!(
        ended(&engine.start(&vm("one"), op()).await.unwrap().operation).await.error.unwrap().code,
        ErrorCode::InsufficientResources
    );
    assert_eq!(engine.get(&vm("one")).await.unwrap().state, VmState::Failed);
}

#[tokio::test]
async fn references_are_resolved_or_refused() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let missing = engine.get(&vm("nothing")).await.unwrap_err();
    assert!(matches!(missing, EngineError::NoSuchVm { .. }));
    let one = create(&engine, "one").await;
    // A name that is the beginning of another VM's id is still that name.
    let prefix = &one.id.as_str()[..5];
    create(&engine, prefix).await;
    assert_eq!(engine.get(&vm(prefix)).await.unwrap().name.as_str(), prefix);
}

#[tokio::test]
async fn shutdown_leaves_vms_running_and_undoes_starts() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let pid = create(&engine, "box").await.runtime.unwrap().pid;
    machine.script(|script| script.guest = Guest::Silent);
    let creation = engine.create(request(Some("slow")), op()).unwrap();
    tokio::time::timeout(SOON, engine.shutdown()).await.unwrap();
    assert_eq!(ended(&creation).await.state, OperationState::Cancelled);
    assert_eq!(machine.alive(), [pid]);
    assert!(engine.create(request(None), op()).is_err());
    assert!(engine.stop(&vm("box"), &StopVm::default(), op()).await.is_err());
}
