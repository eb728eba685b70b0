//! Other names for VMs, and deletions of those that do not run.

use super::*;
use banger_daemon_api::error::ErrorCode;
use banger_daemon_api::vm::HOSTNAME_NOTE;
use banger_types::VmName;
use machine::Guest;

fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_vm_is_found_by_its_new_name_everywhere_and_after_the_daemons_end() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    let id = create(&engine, "box").await.id;
    create(&engine, "other").await;
    let renamed = engine.rename(&vm("box"), name("web")).await.unwrap();
    assert_eq!((renamed.id, renamed.name), (id.clone(), name("web")));
    assert_eq!(renamed.notes.get(HOSTNAME_NOTE), None, "its guest was told");
    assert_eq!(machine.taps.names.lock().unwrap()[&id].name, name("web"));
    assert!(matches!(engine.get(&vm("box")).await, Err(EngineError::NoSuchVm { .. })));
    // Taken, by itself, and free again.
    let error = engine.rename(&vm("web"), name("other")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AlreadyExists);
    assert_eq!(engine.get(&vm("web")).await.unwrap().name, name("web"));
    engine.rename(&vm("web"), name("web")).await.unwrap();
    engine.rename(&vm("other"), name("box")).await.unwrap();
    stop(&engine, "web").await;
    engine.rename(&vm("web"), name("db")).await.unwrap();
    drop(engine);
    let (engine, _) = open(&machine, Faults::default()).await;
    assert_eq!(engine.get(&vm("db")).await.unwrap().id, id);
    start(&engine, "db").await;
    for name in ["db", "box"] {
        delete(&engine, name).await;
    }
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn of_two_that_want_a_name_at_once_one_has_it() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    for name in ["a", "b"] {
        create(&engine, name).await;
    }
    let (a, b) = (vm("a"), vm("b"));
    let (one, two) = tokio::join!(engine.rename(&a, name("c")), engine.rename(&b, name("c")));
    let results = [one, two];
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    let refused = results.into_iter().find_map(Result::err).unwrap();
    assert_eq!(refused.code(), ErrorCode::AlreadyExists);
    let names: Vec<String> = engine.list().await.iter().map(|vm| vm.name.to_string()).collect();
    assert!(names == ["a", "c"] || names == ["b", "c"], "{names:?}");
    // Two names for one: the last holds.
    let (one, two) = (vm("c"), vm("c"));
    let (one, two) = tokio::join!(engine.rename(&one, name("d")), engine.rename(&two, name("e")));
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(engine.get(&vm("e")).await.unwrap().name, name("e"));
}

#[tokio::test]
async fn a_guest_that_does_not_take_its_name_is_told_of() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    machine.script.lock().unwrap().guest = Guest::Rude;
    create(&engine, "box").await;
    let renamed = engine.rename(&vm("box"), name("web")).await.unwrap();
    assert!(renamed.notes[HOSTNAME_NOTE].contains("next start"), "{:?}", renamed.notes);
}

/// Such a guest keeps its machine from nothing for long.
#[tokio::test]
async fn a_guest_that_says_nothing_is_told_of_and_its_machine_can_be_deleted() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    machine.script.lock().unwrap().guest = Guest::Mute;
    create(&engine, "mute").await;
    let mute = vm("mute");
    let renaming = engine.rename(&mute, name("web"));
    let looking = async {
        // Others see the new name while the guest is waited for.
        while engine.get(&vm("web")).await.is_err() {
            tokio::task::yield_now().await;
        }
        engine.get(&vm("web")).await.unwrap().notes.get(HOSTNAME_NOTE).cloned()
    };
    let (renamed, seen) = tokio::join!(renaming, looking);
    assert_eq!(seen, None);
    assert!(renamed.unwrap().notes[HOSTNAME_NOTE].contains("next start"));
    let deleted = engine.delete(&vm("web"), op()).await.unwrap();
    succeed(&deleted.operation).await;
}

#[tokio::test]
async fn what_runs_is_not_deleted_as_idle() {
    let machine = Machine::new();
    let (engine, _) = open(&machine, Faults::default()).await;
    create(&engine, "box").await;
    let error = engine.delete_idle(&vm("box"), op()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InUse);
    stop(&engine, "box").await;
    let starting = engine.start(&vm("box"), op()).await.unwrap();
    assert!(engine.delete_idle(&vm("box"), op()).await.is_err(), "it is about to run");
    succeed(&starting.operation).await;
    stop(&engine, "box").await;
    let deleted = engine.delete_idle(&vm("box"), op()).await.unwrap();
    succeed(&deleted.operation).await;
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}
