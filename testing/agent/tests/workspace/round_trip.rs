//! Random repository states: prepare, edit, export and apply lead to identical trees.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use banger_workspace::{Change, Options, Workspace};
use proptest::prelude::*;

use crate::support::{Guest, Repository, apply, files};

/// What a file is to be; a name is one of few, so that edits meet what is there.
#[derive(Clone, Debug)]
enum Edit {
    Text(String),
    Binary(Vec<u8>),
    Script(String),
    Link(String),
    Gone,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        b"a".to_vec(),
        b"b".to_vec(),
        b"d/a".to_vec(),
        b"d/e/f".to_vec(),
        b"d".to_vec(),
        b"with space".to_vec(),
        b"line\nend".to_vec(),
        b"\"quote\"\\".to_vec(),
        b"raw-\xff\xfe".to_vec(),
        b"-x".to_vec(),
        b"sub/target/out".to_vec(),
        b"x.o".to_vec(),
    ])
}

fn edit() -> impl Strategy<Value = Edit> {
    let lines = prop::collection::vec("[a-c]{0,3}(\r)?", 0..8).prop_map(|lines| lines.join("\n"));
    prop_oneof![
        3 => lines.clone().prop_map(Edit::Text),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Edit::Binary),
        1 => lines.prop_map(Edit::Script),
        1 => "[a-z/.]{1,12}".prop_map(Edit::Link),
        2 => Just(Edit::Gone),
    ]
}

fn edits(most: usize) -> impl Strategy<Value = Vec<(Vec<u8>, Edit)>> {
    prop::collection::vec((name(), edit()), 0..most)
}

fn make(top: &Path, edits: &[(Vec<u8>, Edit)]) {
    for (name, edit) in edits {
        let path = top.join(OsStr::from_bytes(name));
        // A file in the place of a directory, or the other way round, is a change like any other.
        for parent in path.ancestors().skip(1).take_while(|parent| *parent != top) {
            if parent.symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
                fs::remove_file(parent).unwrap();
            }
        }
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path).unwrap(),
            Ok(_) => fs::remove_file(&path).unwrap(),
            Err(_) => {}
        }
        if !matches!(edit, Edit::Gone) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        match edit {
            Edit::Text(text) => fs::write(&path, text).unwrap(),
            Edit::Binary(bytes) => fs::write(&path, bytes).unwrap(),
            Edit::Script(text) => {
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            Edit::Link(target) => symlink(target, &path).unwrap(),
            Edit::Gone => {}
        }
    }
}

/// What git would take of a directory: all but what `.gitignore` names.
fn taken(top: &Path) -> BTreeMap<Vec<u8>, (u32, Vec<u8>)> {
    let mut found = files(top);
    found.retain(|name, _| !name.ends_with(b".o") && !name.starts_with(b"sub/target/"));
    found
}

/// What a file is: git's mode of it and its content.
type Content = (u32, Vec<u8>);
type Files = BTreeMap<Vec<u8>, Content>;

/// What docs/workspaces.md says of a guest that follows the host and works itself.
struct Model {
    /// What was carried.
    carried: Files,
    /// Names of which it is not said whether they were: one side has a file where the other has a
    /// directory with something of its own.
    unsure: BTreeSet<Vec<u8>>,
    /// Every file that the host ever had, by name.
    hosts: BTreeSet<(Vec<u8>, Content)>,
}

impl Model {
    fn new(carried: Files) -> Self {
        let mut model = Self { carried, unsure: BTreeSet::new(), hosts: BTreeSet::new() };
        model.hosts.extend(model.carried.clone());
        model
    }

    /// Returns the names that a guest has changed.
    fn work(&self, guest: &Files) -> BTreeSet<Vec<u8>> {
        let names = guest.keys().chain(self.carried.keys());
        names.filter(|name| guest.get(*name) != self.carried.get(*name)).cloned().collect()
    }

    /// Compares what the guest has after a round with what it had before, and what was left.
    fn round(
        &mut self,
        host: &Files,
        before: &Files,
        after: &Files,
        left: &BTreeSet<Vec<u8>>,
    ) -> Result<(), String> {
        self.hosts.extend(host.clone());
        let work = self.work(before);
        let all = host.keys().chain(before.keys()).chain(after.keys()).chain(self.carried.keys());
        let all: BTreeSet<Vec<u8>> = all.chain(left).cloned().collect();
        let (mut carried, mut unsure) = (self.carried.clone(), self.unsure.clone());
        for name in &all {
            let (was, is) = (before.get(name), after.get(name));
            let (old, new) = (self.carried.get(name), host.get(name));
            let wrong = |why: &str| {
                let name = String::from_utf8_lossy(name);
                Err(format!("{name}: {why}: {old:?}, host {new:?}, guest {was:?} to {is:?}"))
            };
            if was != is && is != new {
                return wrong("neither as it was nor as the host has it");
            }
            if self.unsure.contains(name) {
                let is_own =
                    was.is_some_and(|file| !self.hosts.contains(&(name.clone(), file.clone())));
                if is_own && was != is {
                    return wrong("the guest's own is overwritten");
                }
                continue;
            }
            let meets = |other: &Vec<u8>| {
                let (short, long) =
                    if other.len() < name.len() { (other, name) } else { (name, other) };
                long.starts_with(short) && long.get(short.len()) == Some(&b'/')
            };
            let is_entangled = work.union(&self.unsure).any(meets);
            let is_work = work.contains(name);
            if is_work && was != is {
                return wrong("the guest's work is overwritten");
            }
            if !is_work && !is_entangled && is != new {
                return wrong("it is not carried");
            }
            let is_conflict = is_work && new != old && was != new;
            if !is_entangled && is_conflict != left.contains(name) {
                return wrong("it is told wrongly");
            }
            if is_entangled && new != old {
                unsure.insert(name.clone());
            } else if !is_conflict {
                match new {
                    Some(file) => carried.insert(name.clone(), file.clone()),
                    None => carried.remove(name),
                };
            }
        }
        (self.carried, self.unsure) = (carried, unsure);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        // Each runs git some fifty times.
        cases: 12,
        max_shrink_iters: 12,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn work_comes_back_as_it_was_done(
        committed in edits(8),
        staged in edits(4),
        dirty in edits(5),
        first in edits(6),
        later in edits(4),
        second in edits(6),
    ) {
        let repository = Repository::new();
        repository.write(".gitignore", "*.o\ntarget/\n");
        make(&repository.path(), &committed);
        repository.commit();
        make(&repository.path(), &staged);
        repository.git(&["add", "--all"]);
        make(&repository.path(), &dirty);
        let open = || {
            let options = Options { include_untracked: true, ..Options::default() };
            Workspace::open(&repository.path(), &options).unwrap()
        };
        let Some(mut guest) = Guest::new() else { return Ok(()) };
        guest.prepare(open());
        prop_assert_eq!(taken(&guest.path()), taken(&repository.path()));

        make(&guest.path(), &first);
        apply(&repository.path(), &guest.patch());
        prop_assert_eq!(taken(&repository.path()), taken(&guest.path()));

        // What the host has by now is nothing to lose. The host goes on, and the guest follows; then
        // the guest goes on.
        guest.prepare(open());
        make(&repository.path(), &later);
        guest.prepare(open());
        prop_assert_eq!(taken(&guest.path()), taken(&repository.path()));
        make(&guest.path(), &second);
        apply(&repository.path(), &guest.patch());
        prop_assert_eq!(taken(&repository.path()), taken(&guest.path()));
    }

    #[test]
    fn a_guest_follows_whatever_the_host_does(
        committed in edits(8),
        rounds in prop::collection::vec(edits(4), 1..5),
    ) {
        let repository = Repository::new();
        repository.write(".gitignore", "*.o\ntarget/\n");
        make(&repository.path(), &committed);
        repository.commit();
        let Some(mut guest) = Guest::new() else { return Ok(()) };
        let options = Options { include_untracked: true, ..Options::default() };
        let mut mirror = guest.sync(&repository, options, false);
        mirror.whole(mirror.open().unwrap()).unwrap();
        for edits in rounds {
            make(&repository.path(), &edits);
            // As a watch tells: the directories in which something comes or goes, too.
            let names = edits.iter().map(|(name, _)| Path::new(OsStr::from_bytes(name)));
            let changed = names.flat_map(Path::ancestors).filter(|path| *path != Path::new(""));
            let round = mirror.some(&changed.map(Path::to_owned).collect()).unwrap();
            let round = match round {
                Some(round) => round,
                None => mirror.whole(mirror.open().unwrap()).unwrap(),
            };
            prop_assert!(round.prepared.left.is_empty(), "{:?}", round.prepared.left);
            prop_assert_eq!(taken(&guest.path()), taken(&repository.path()));
        }
        mirror.finish().unwrap();
        prop_assert_eq!(guest.work().changes().len(), 0);
    }

    #[test]
    fn a_guest_that_works_meanwhile_loses_nothing_and_gets_the_rest(
        committed in edits(8),
        rounds in prop::collection::vec((edits(4), edits(3), any::<bool>()), 1..6),
    ) {
        let repository = Repository::new();
        repository.write(".gitignore", "*.o\ntarget/\n");
        make(&repository.path(), &committed);
        repository.commit();
        let Some(mut guest) = Guest::new() else { return Ok(()) };
        let options = Options { include_untracked: true, ..Options::default() };
        let mut mirror = guest.sync(&repository, options, false);
        mirror.whole(mirror.open().unwrap()).unwrap();
        let mut model = Model::new(taken(&repository.path()));
        for (here, there, is_whole) in rounds {
            make(&repository.path(), &here);
            make(&guest.path(), &there);
            let (host, before) = (taken(&repository.path()), files(&guest.path()));
            let names = here.iter().map(|(name, _)| Path::new(OsStr::from_bytes(name)));
            let changed = names.flat_map(Path::ancestors).filter(|path| *path != Path::new(""));
            let changed = changed.map(Path::to_owned).collect();
            let some = if is_whole { None } else { mirror.some(&changed).unwrap() };
            let round = match some {
                Some(round) => round,
                None => mirror.whole(mirror.open().unwrap()).unwrap(),
            };
            let left = round.prepared.left.into_iter().collect();
            let judged = model.round(&host, &before, &files(&guest.path()), &left);
            prop_assert!(judged.is_ok(), "{}", judged.unwrap_err());
        }
        mirror.finish().unwrap();
        // What was carried is known to all commands: the guest's work is what is different from it.
        let work = guest.work();
        let names = |change: &Change| [Some(change.name.clone()), change.from.clone()];
        let told: BTreeSet<Vec<u8>> = work.changes().iter().flat_map(names).flatten().collect();
        let expected = model.work(&taken(&guest.path()));
        let sure = |names: &BTreeSet<Vec<u8>>| -> BTreeSet<Vec<u8>> {
            names.difference(&model.unsure).cloned().collect()
        };
        prop_assert_eq!(sure(&told), sure(&expected));
    }
}

#[test]
fn a_file_in_the_place_of_a_carried_directory_stays() {
    let repository = Repository::new();
    repository.write("other", "1");
    repository.commit();
    repository.write("d/a", "dirty");
    let open = || {
        let options = Options { include_untracked: true, ..Options::default() };
        Workspace::open(&repository.path(), &options).unwrap()
    };
    let Some(mut guest) = Guest::new() else { return };
    guest.prepare(open());
    make(&guest.path(), &[(b"d".to_vec(), Edit::Text("a file".to_owned()))]);
    apply(&repository.path(), &guest.patch());
    for _ in 0..2 {
        guest.prepare(open());
        assert_eq!(fs::read_to_string(guest.path().join("d")).unwrap(), "a file");
    }
    // It is the guest's alone where the host has neither.
    make(&repository.path(), &[(b"d/a".to_vec(), Edit::Text("again".to_owned()))]);
    guest.prepare(open());
    make(&guest.path(), &[(b"d".to_vec(), Edit::Text("the guest's".to_owned()))]);
    fs::remove_dir_all(repository.path().join("d")).unwrap();
    guest.prepare(open());
    assert_eq!(fs::read_to_string(guest.path().join("d")).unwrap(), "the guest's");
}
