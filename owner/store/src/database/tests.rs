use super::*;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
struct Document {
    note: String,
}

fn document(note: &str) -> Document {
    Document { note: note.to_owned() }
}

async fn open(dir: &Path) -> (Store, Vec<String>) {
    Store::open(StateLock::acquire(dir).unwrap()).await.unwrap()
}

async fn add(store: &Store, name: &str) -> VmId {
    let id = VmId::random();
    let name = name.parse().unwrap();
    store.insert_vm(&id, &name, &document("new"), Durability::Power).await.unwrap();
    std::fs::create_dir(store.vms_dir().join(id.as_str())).unwrap();
    store.update_vm(&id, &document("kept"), Durability::Power, true).await.unwrap();
    id
}

#[tokio::test]
async fn a_newer_store_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).await);
    let path = dir.path().join(DATABASE_NAME);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    match Store::open(StateLock::acquire(dir.path()).unwrap()).await {
        Err(StoreError::Newer { found: 99, known, .. }) => assert_eq!(known, SCHEMA),
        other => panic!("{other:?}"),
    }
    assert_eq!(migrate::version(&Connection::open(&path).unwrap()).unwrap(), 99);
}

const SCHEMA: i64 = migrate::SCHEMA_VERSION;

#[tokio::test]
async fn a_damaged_store_is_rebuilt_without_losing_a_vm() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("not a database", |path| std::fs::write(path, "hello, world, ".repeat(500)).unwrap()),
        ("truncated", |path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(5000).unwrap();
        }),
        ("empty", |path| std::fs::write(path, "").unwrap()),
        ("missing", |path| std::fs::remove_file(path).unwrap()),
        ("scribbled over", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            for byte in bytes.iter_mut().skip(100) {
                *byte ^= 0x5a;
            }
            std::fs::write(path, bytes).unwrap();
        }),
    ];
    for (label, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let (store, warnings) = open(dir.path()).await;
        assert!(warnings.is_empty(), "{label}");
        let id = add(&store, "box").await;
        drop(store);
        damage(&dir.path().join(DATABASE_NAME));
        let (store, warnings) = open(dir.path()).await;
        assert!(!warnings.is_empty(), "{label}: {warnings:?}");
        let rows = store.vms::<Document>().await.unwrap();
        assert_eq!(rows.rows.len(), 1, "{label}");
        assert_eq!(rows.rows[0].id, id, "{label}");
        assert_eq!(rows.rows[0].document, document("kept"), "{label}");
        let aside = !matches!(label, "empty" | "missing");
        assert_eq!(store.set_aside().len(), usize::from(aside), "{label}");
        // The rebuilt store is whole: the next start has nothing to say.
        drop(store);
        assert!(open(dir.path()).await.1.is_empty(), "{label}");
    }
}

#[tokio::test]
async fn hostile_mirrors_do_not_stop_the_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let good = add(&store, "good").await;
    let vms = store.vms_dir();
    drop(store);
    std::fs::remove_file(dir.path().join(DATABASE_NAME)).unwrap();
    let make = |content: &str| {
        let id = VmId::random();
        let vm = vms.join(id.as_str());
        std::fs::create_dir(&vm).unwrap();
        std::fs::write(vm.join("vm.json"), content).unwrap();
    };
    make("");
    make("{\"id\": 3}");
    make(&"[".repeat(100_000));
    make(&std::fs::read_to_string(vms.join(good.as_str()).join("vm.json")).unwrap());
    std::fs::create_dir(vms.join("not-a-vm")).unwrap();
    std::fs::create_dir(vms.join(VmId::random().as_str())).unwrap();
    let (store, warnings) = open(dir.path()).await;
    assert_eq!(warnings.len(), 6, "{warnings:?}");
    let rows = store.vms::<Document>().await.unwrap();
    assert_eq!(rows.rows.iter().map(|row| &row.id).collect::<Vec<_>>(), [&good]);
}

#[tokio::test]
async fn a_row_that_cannot_be_typed_is_told_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    add(&store, "good").await;
    let bad = VmId::random();
    store.insert_vm(&bad, &"bad".parse().unwrap(), &7, Durability::Power).await.unwrap();
    let rows = store.vms::<Document>().await.unwrap();
    assert_eq!(rows.rows.len(), 1);
    assert_eq!(rows.unreadable[0].id, bad.as_str());
    assert_eq!(store.vms::<serde_json::Value>().await.unwrap().rows.len(), 2);
}

#[tokio::test]
async fn a_vm_gets_another_name_that_nobody_has_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let name = |text: &str| -> VmName { text.parse().unwrap() };
    let (one, two) = (add(&store, "one").await, add(&store, "two").await);
    let taken = store.rename_vm(&one, &name("two"), &document("x")).await;
    assert!(matches!(taken, Err(StoreError::NameTaken { .. })));
    store.rename_vm(&one, &name("three"), &document("y")).await.unwrap();
    store.rename_vm(&two, &name("one"), &document("z")).await.unwrap();
    let rows = store.vms::<Document>().await.unwrap().rows;
    let seen: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.id.clone())).collect();
    assert_eq!(seen, [("one", two.clone()), ("three", one)]);
    store.delete_vm(&two).await.unwrap();
    let gone = store.rename_vm(&two, &name("four"), &document("")).await;
    assert!(matches!(gone, Err(StoreError::NoSuchVm { .. })));
}

#[tokio::test]
async fn names_are_taken_once_and_free_again_after_deletion() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let name: VmName = "box".parse().unwrap();
    let first = VmId::random();
    store.insert_vm(&first, &name, &document(""), Durability::Power).await.unwrap();
    let second = VmId::random();
    assert!(matches!(
        store.insert_vm(&second, &name, &document(""), Durability::Power).await,
        Err(StoreError::NameTaken { .. })
    ));
    assert!(store.delete_vm(&first).await.unwrap());
    assert!(!store.delete_vm(&first).await.unwrap());
    store.insert_vm(&second, &name, &document(""), Durability::Power).await.unwrap();
    assert!(matches!(
        store.update_vm(&first, &document(""), Durability::Process, false).await,
        Err(StoreError::NoSuchVm { .. })
    ));
}

#[tokio::test]
async fn an_intent_lasts_until_it_is_settled_or_its_vm_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let (one, two) = (add(&store, "one").await, add(&store, "two").await);
    let op_id = OperationId::random();
    for vm in [&one, &two] {
        store.intend(vm, "create_root_disk", &op_id).await.unwrap();
        store.intend(vm, "launch_vmm", &op_id).await.unwrap();
    }
    drop(store);
    let (store, _) = open(dir.path()).await;
    let intents = store.intents().await.unwrap();
    assert_eq!(intents.len(), 2);
    assert!(intents.iter().all(|intent| intent.step == "launch_vmm" && intent.op_id == op_id));
    store.update_vm(&one, &document("done"), Durability::Process, true).await.unwrap();
    store.delete_vm(&two).await.unwrap();
    assert_eq!(store.intents().await.unwrap(), []);
    assert!(store.intend(&two, "launch_vmm", &op_id).await.is_err(), "no VM, no intent");
}

#[tokio::test]
async fn a_hundred_writers_of_one_name_have_one_winner() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let store = store.clone();
        tasks.spawn(async move {
            store
                .insert_vm(
                    &VmId::random(),
                    &"box".parse().unwrap(),
                    &document(""),
                    Durability::Power,
                )
                .await
                .is_ok()
        });
    }
    let winners = tasks.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(winners, 1);
}
