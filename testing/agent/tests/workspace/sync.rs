//! A guest follows the host, and keeps its own work.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use banger_workspace::{
    Mirror, Options, Round, Seen, Stop, Told, Watch, Workspace, WorkspaceError, follow,
};

use crate::support::{Guest, Repository, apply, files, git};

/// How long a change may take to arrive, on a machine that does other things.
const DEADLINE: Duration = Duration::from_secs(60);

fn untracked() -> Options {
    Options { include_untracked: true, ..Options::default() }
}

/// A watch on a thread of its own.
struct Following {
    rounds: Receiver<Round>,
    troubles: Receiver<String>,
    thread: JoinHandle<Result<(), WorkspaceError>>,
    stop: Stop,
}

impl Following {
    fn begin(mut sync: Mirror, include_untracked: bool) -> Self {
        let (mut watch, stop) = Watch::new(include_untracked).unwrap();
        let ((tell, rounds), (complain, troubles)) = (channel(), channel());
        let thread = std::thread::spawn(move || {
            follow(&mut sync, &mut watch, &mut |told| match told {
                Told::Round(round, _) => tell.send(round).unwrap(),
                Told::Trouble(error) => complain.send(error.to_string()).unwrap(),
            })
        });
        let following = Self { rounds, troubles, thread, stop };
        following.next();
        following
    }

    fn next(&self) -> Round {
        self.rounds.recv_timeout(DEADLINE).unwrap()
    }

    /// Takes rounds until something holds; returns them.
    fn until(&self, holds: impl Fn() -> bool) -> Vec<Round> {
        let deadline = Instant::now() + DEADLINE;
        let mut rounds = Vec::new();
        while !holds() {
            let left = deadline.saturating_duration_since(Instant::now());
            rounds.push(self.rounds.recv_timeout(left).expect("it arrives"));
        }
        rounds
    }

    /// Takes troubles until one says this.
    fn trouble(&self, what: &str) {
        while !self.troubles.recv_timeout(DEADLINE).expect("it is told").contains(what) {}
    }

    fn end(self) {
        drop(self.stop);
        self.thread.join().unwrap().unwrap();
    }
}

fn same(repository: &Repository, guest: &Guest) -> bool {
    files(&repository.path()) == files(&guest.path())
}

#[test]
fn what_changes_on_the_host_arrives() {
    let repository = Repository::new();
    repository.write("a", "1");
    repository.write("d/b", "1");
    repository.write("script", "x");
    repository.commit();
    let Some(guest) = Guest::new() else { return };
    let following = Following::begin(guest.sync(&repository, untracked(), false), true);
    assert!(same(&repository, &guest));
    let top = repository.path();

    repository.write("a", "2");
    following.until(|| same(&repository, &guest));
    // As editors save: another file takes the name.
    repository.write(".a.swp", "3");
    fs::rename(top.join(".a.swp"), top.join("a")).unwrap();
    following.until(|| same(&repository, &guest));
    fs::set_permissions(top.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    following.until(|| same(&repository, &guest));
    symlink("a", top.join("link")).unwrap();
    fs::remove_file(top.join("script")).unwrap();
    following.until(|| same(&repository, &guest));
    // New directories, and what is made in them later.
    repository.write("new/deep/c", "1");
    following.until(|| same(&repository, &guest));
    repository.write("new/deep/c", "2");
    repository.write("new/deep/er/e", "1");
    following.until(|| same(&repository, &guest));
    fs::rename(top.join("new"), top.join("renamed")).unwrap();
    following.until(|| same(&repository, &guest));
    repository.write("renamed/deep/c", "3");
    fs::rename(top.join("d"), top.join("renamed/d")).unwrap();
    following.until(|| same(&repository, &guest));
    // A file where a directory was, and back.
    fs::remove_dir_all(top.join("renamed/deep")).unwrap();
    repository.write("renamed/deep", "a file");
    following.until(|| same(&repository, &guest));
    fs::remove_file(top.join("renamed/deep")).unwrap();
    repository.write("renamed/deep/again", "1");
    following.until(|| same(&repository, &guest));
    assert!(!guest.path().join("new").exists() && !guest.path().join("d").exists());

    // What is ignored from now on goes; a commit comes with its objects.
    repository.write("noise.log", "1");
    following.until(|| same(&repository, &guest));
    repository.write(".gitignore", "*.log\n");
    following.until(|| !guest.path().join("noise.log").exists());
    repository.commit();
    let head = || git(&repository.path(), &["rev-parse", "HEAD"]).stdout;
    following.until(|| git(&guest.path(), &["rev-parse", "HEAD"]).stdout == head());
    git(&guest.path(), &["fsck", "--strict"]);
    assert_eq!(git(&guest.path(), &["status", "--porcelain"]).stdout, b"");
    repository.write("ignored/x.log", "1");
    repository.write("last", "1");
    following.until(|| guest.path().join("last").exists());
    assert!(!guest.path().join("ignored").exists());
    following.end();
}

#[test]
fn tracked_files_alone_are_followed_where_untracked_ones_stay() {
    let repository = Repository::new();
    repository.write("d/a", "1");
    repository.commit();
    let Some(guest) = Guest::new() else { return };
    let following = Following::begin(guest.sync(&repository, Options::default(), false), false);
    repository.write("d/untracked", "1");
    repository.write("e/other", "1");
    repository.write("d/a", "2");
    let is = |content: &str| fs::read_to_string(guest.path().join("d/a")).unwrap() == content;
    following.until(|| is("2"));
    assert!(!guest.path().join("d/untracked").exists());
    // Once it is added, it is followed.
    repository.git(&["add", "e/other"]);
    following.until(|| guest.path().join("e/other").exists());
    repository.write("e/other", "22");
    following.until(|| fs::read_to_string(guest.path().join("e/other")).unwrap() == "22");
    // A directory that goes and comes back.
    fs::remove_dir_all(repository.path().join("d")).unwrap();
    following.until(|| !guest.path().join("d").exists());
    repository.write("d/a", "3");
    following.until(|| guest.path().join("d/a").exists() && is("3"));
    repository.write("d/a", "4");
    following.until(|| is("4"));
    assert!(!guest.path().join("d/untracked").exists());
    following.end();
}

#[test]
fn a_burst_is_one_look() {
    let repository = Repository::new();
    repository.write("a", "1");
    repository.commit();
    let Some(guest) = Guest::new() else { return };
    let following = Following::begin(guest.sync(&repository, untracked(), false), true);
    let begun = Instant::now();
    for number in 0..10_000 {
        repository.write(&format!("d{}/f{number}", number % 40), number.to_string());
    }
    let took = begun.elapsed();
    let rounds = following.until(|| {
        // Counting is enough until all may be there.
        files(&guest.path()).len() == 10_001 && same(&repository, &guest)
    });
    // What comes while a round is under way is gathered for the next one.
    let few = 4 + took.as_secs();
    assert!(rounds.len() as u64 <= few, "{} rounds for {} ms", rounds.len(), took.as_millis());
    for number in 0..10_000 {
        fs::remove_file(repository.path().join(format!("d{}/f{number}", number % 40))).unwrap();
    }
    following.until(|| files(&guest.path()).len() == 1);
    following.end();
}

#[test]
fn what_changes_within_forty_milliseconds_is_seen_at_once() {
    let repository = Repository::new();
    repository.write("a", "1");
    repository.commit();
    let (mut watch, _stop) = Watch::new(true).unwrap();
    watch.cover(&Workspace::open(&repository.path(), &untracked()).unwrap()).unwrap();
    let begun = Instant::now();
    let (mut looks, mut all) = (0, BTreeSet::new());
    std::thread::scope(|scope| {
        scope.spawn(|| (0..1_000).for_each(|number| repository.write(&format!("f{number}"), "x")));
        while all.len() < 1_000 {
            let Seen::Names(names) = watch.wait().unwrap() else { panic!("names") };
            all.extend(names);
            looks += 1;
        }
    });
    let took = begun.elapsed();
    assert!(took >= looks * Duration::from_millis(40), "{looks} looks in {} ms", took.as_millis());
}

#[test]
fn a_repository_in_the_place_of_another_is_followed() {
    let repository = Repository::new();
    repository.write("d/a", "1");
    repository.commit();
    let aside = tempfile::tempdir().unwrap();
    let (top, other) = (repository.path(), aside.path().join("other"));
    let Some(guest) = Guest::new() else { return };
    let following = Following::begin(guest.sync(&repository, untracked(), false), true);

    // At once.
    git(aside.path(), &["clone", "--quiet", top.to_str().unwrap(), "other"]);
    fs::write(other.join("d/a"), "2").unwrap();
    fs::rename(&top, aside.path().join("first")).unwrap();
    fs::rename(&other, &top).unwrap();
    following.until(|| same(&repository, &guest));
    repository.write("d/a", "3");
    following.until(|| same(&repository, &guest));

    // Moved away or deleted, and another one later.
    for (content, is_moved) in [("4", true), ("5", false)] {
        if is_moved {
            fs::rename(&top, aside.path().join("second")).unwrap();
        } else {
            fs::remove_dir_all(&top).unwrap();
        }
        following.trouble("as a workspace");
        git(aside.path(), &["clone", "--quiet", "first", top.to_str().unwrap()]);
        following.until(|| guest.path().join("d/a").exists() && same(&repository, &guest));
        repository.write("d/a", content);
        repository.write("new/b", content);
        following.until(|| same(&repository, &guest));
    }

    // Its own directory alone.
    fs::remove_dir_all(top.join(".git")).unwrap();
    following.trouble("is not in the working tree");
    repository.git(&["init", "--quiet", "--initial-branch=main"]);
    repository.write("last", "1");
    following.until(|| same(&repository, &guest));
    following.end();
}

#[test]
fn a_repository_around_one_that_is_gone_is_not_carried() {
    let outer = Repository::new();
    outer.write("outer", "1");
    outer.commit();
    outer.write("inner/a", "1");
    let inner = outer.path().join("inner");
    let init = || git(&inner, &["init", "--quiet", "--initial-branch=main"]);
    init();
    let Some(guest) = Guest::new() else { return };
    let following = Following::begin(guest.sync_path(inner.clone(), untracked(), false), true);
    assert!(guest.path().join("a").exists());
    fs::remove_dir_all(inner.join(".git")).unwrap();
    following.trouble("is not in the working tree");
    outer.write("inner/b", "1");
    following.trouble("is not in the working tree");
    assert!(!guest.path().join("outer").exists() && !guest.path().join("inner").exists());
    init();
    following.until(|| guest.path().join("b").exists());
    assert!(!guest.path().join("outer").exists() && !guest.path().join("inner").exists());
    following.end();
}

#[test]
fn more_events_than_the_kernel_keeps_are_a_whole_look() {
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let most: usize = most.trim().parse().unwrap();
    let repository = Repository::new();
    repository.write("a", "1");
    repository.commit();
    let (mut watch, stop) = Watch::new(true).unwrap();
    let workspace = Workspace::open(&repository.path(), &untracked()).unwrap();
    assert!(watch.cover(&workspace).unwrap());
    assert!(!watch.cover(&workspace).unwrap());
    // Two names in turn, for events that are alike and follow each other are one.
    for number in 0..=most {
        repository.write(["a", "b"][number % 2], "x");
    }
    assert_eq!(watch.wait().unwrap(), Seen::Everything);
    repository.write("a", "y");
    let Seen::Names(names) = watch.wait().unwrap() else { panic!("one name") };
    assert!(names.iter().any(|name| name.as_os_str() == "a"), "{names:?}");
    drop(stop);
    assert_eq!(watch.wait().unwrap(), Seen::Stopped);
}

#[test]
fn the_machines_work_is_left_alone_and_told_once() {
    let repository = Repository::new();
    for name in ["mine", "both", "d/inner", "deleted"] {
        repository.write(name, "1\n");
    }
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    let following = Following::begin(guest.sync(&repository, untracked(), false), true);
    guest.write("both", "guest\n");
    fs::remove_dir_all(guest.path().join("d")).unwrap();
    guest.write("d", "guest\n");
    fs::remove_file(guest.path().join("deleted")).unwrap();
    guest.write("own", "guest\n");
    let read = |name: &str| fs::read_to_string(guest.path().join(name)).unwrap_or_default();
    let mut told: Vec<Vec<u8>> = Vec::new();
    for round in ["2\n", "3\n"] {
        for name in ["both", "d/inner", "deleted", "own", "mine"] {
            repository.write(name, round);
        }
        let rounds = following.until(|| read("mine") == round);
        told.extend(rounds.into_iter().flat_map(|round| round.left_anew));
    }
    // They may have come in rounds of their own.
    repository.write("mine", "4\n");
    let rounds = following.until(|| read("mine") == "4\n");
    told.extend(rounds.into_iter().flat_map(|round| round.left_anew));
    told.sort();
    let expected: [&[u8]; 4] = [b"both", b"d/inner", b"deleted", b"own"];
    assert_eq!(told, expected);
    assert_eq!(
        (&read("both")[..], &read("d")[..], &read("own")[..]),
        ("guest\n", "guest\n", "guest\n")
    );
    assert!(!guest.path().join("deleted").exists());
    // What both have in the end is nobody's work.
    repository.write("both", "guest\n");
    repository.write("mine", "5\n");
    following.until(|| read("mine") == "5\n");
    repository.write("both", "6\n");
    following.until(|| read("both") == "6\n");
    following.end();

    let work = guest.work();
    let names: Vec<String> =
        work.changes().iter().map(|c| String::from_utf8_lossy(&c.name).into_owned()).collect();
    assert_eq!(names, ["d", "d/inner", "deleted", "own"]);
    drop(work);
    let refused =
        guest.try_prepare(Workspace::open(&repository.path(), &untracked()).unwrap(), false);
    assert!(matches!(refused, Err(WorkspaceError::NewerWork { .. })), "{refused:?}");
    let mut forced = guest.sync(&repository, untracked(), true);
    let opened = forced.open().unwrap();
    assert_eq!(forced.whole(opened).unwrap().prepared.left.len(), 0);
    assert!(same(&repository, &guest));
}

#[test]
fn what_is_left_alone_is_fetched_when_the_machine_has_changed_it() {
    let repository = Repository::new();
    repository.write("both", "1\n");
    repository.commit();
    let Some(guest) = Guest::new() else { return };
    let mut sync = guest.sync(&repository, untracked(), false);
    sync.whole(Workspace::open(&repository.path(), &untracked()).unwrap()).unwrap();
    // The others are new in the machine, so that nothing of them is to be fetched.
    let mut some = |names: &[&str]| {
        // A change after this one shows in a file's times.
        std::thread::sleep(Duration::from_millis(50));
        guest.calls();
        let changed = names.iter().map(Into::into).collect();
        let round = sync.some(&changed).unwrap().expect("no whole look");
        let fetches = guest.calls().into_iter().filter(|call| *call == "get entries").count();
        (fetches, round)
    };
    guest.write("both", "guest\n");
    repository.write("both", "2\n");
    let (fetches, round) = some(&["both"]);
    assert_eq!((fetches, round.left_anew), (1, vec![b"both".to_vec()]));
    for other in ["first", "second", "third"] {
        repository.write(other, "1\n");
        let (fetches, round) = some(&[other]);
        assert_eq!((fetches, round.prepared.sent, round.left_anew.len()), (0, 1, 0));
        assert_eq!(round.prepared.left, [b"both"]);
    }
    // Nor when the host saves that one.
    repository.write("both", "3\n");
    let (fetches, round) = some(&["both"]);
    assert_eq!((fetches, round.prepared.sent, round.prepared.left.len()), (0, 0, 1));
    guest.write("both", "guest again\n");
    repository.write("fourth", "1\n");
    let (fetches, round) = some(&["fourth"]);
    assert_eq!((fetches, round.prepared.sent, round.prepared.left.len()), (1, 1, 1));
    // As it was carried it is nobody's work, and as the host has it neither.
    guest.write("both", "1\n");
    repository.write("fifth", "1\n");
    let (fetches, round) = some(&["fifth"]);
    assert_eq!((fetches, round.prepared.sent, round.prepared.left.len()), (1, 2, 0));
    assert!(same(&repository, &guest));
    guest.write("both", "as one\n");
    repository.write("both", "as one\n");
    let (fetches, round) = some(&["both"]);
    assert_eq!((fetches, round.prepared.sent, round.prepared.left.len()), (1, 0, 0));
    repository.write("both", "4\n");
    let (fetches, round) = some(&["both"]);
    assert_eq!((fetches, round.prepared.sent), (0, 1), "what it is was noted");
    assert!(same(&repository, &guest));
}

#[test]
fn a_repository_with_commits_of_its_own_is_left_alone_and_gets_the_files() {
    let repository = Repository::new();
    repository.write("a", "1\n");
    repository.write("b", "1\n");
    repository.commit();
    let Some(guest) = Guest::new() else { return };
    let mut sync = guest.sync(&repository, Options::default(), false);
    sync.whole(repository.open()).unwrap();
    guest.write("b", "guest\n");
    git(&guest.path(), &["commit", "--quiet", "-a", "-m", "the guest's"]);
    let head = git(&guest.path(), &["rev-parse", "HEAD"]).stdout;
    repository.write("a", "2\n");
    repository.commit();
    let round = sync.whole(repository.open()).unwrap();
    assert_eq!(round.branches_anew, ["main"]);
    assert!(round.left_anew.is_empty(), "the host has not touched b");
    assert_eq!(git(&guest.path(), &["rev-parse", "HEAD"]).stdout, head);
    assert_eq!(fs::read(guest.path().join("a")).unwrap(), b"2\n");
    assert_eq!(fs::read(guest.path().join("b")).unwrap(), b"guest\n");
    let round = sync.whole(repository.open()).unwrap();
    assert!(round.branches_anew.is_empty(), "told once");
    // A round of some names does not look at them, and says that they are left: the record of what the
    // machine has goes by that.
    for content in ["3\n", "3\n"] {
        repository.write("a", content);
        let changed = ["a".into()].into_iter().collect();
        let round = sync.some(&changed).unwrap().expect("no whole look");
        assert_eq!(round.prepared.left_branches, ["main"]);
        assert!(round.branches_anew.is_empty(), "told once");
    }
    assert_eq!(fs::read(guest.path().join("a")).unwrap(), b"3\n");
}

#[test]
fn a_round_asks_for_what_changed_and_for_nothing_else() {
    let repository = Repository::new();
    for number in 0..300 {
        repository.write(&format!("d{}/f{number}", number % 7), number.to_string());
    }
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    let mut sync = guest.sync(&repository, untracked(), false);
    sync.whole(Workspace::open(&repository.path(), &untracked()).unwrap()).unwrap();
    guest.calls();
    for (name, content) in [("d1/f1", "x"), ("d1/new", "y"), ("d1/f1", "z")] {
        repository.write(name, content);
        let changed = [name.into()].into_iter().collect();
        let round = sync.some(&changed).unwrap().expect("no whole look");
        assert_eq!((round.prepared.sent, round.prepared.bytes), (1, 1), "{name}");
        let calls = guest.calls();
        assert!(!calls.contains(&"list tree"), "{calls:?}");
    }
    fs::remove_dir_all(repository.path().join("d2")).unwrap();
    let round = sync.some(&["d2".into()].into_iter().collect()).unwrap().expect("no whole look");
    assert_eq!(round.prepared.removed, 44, "43 files and their directory");
    assert!(same(&repository, &guest));
    // Nothing to do is nothing to ask.
    guest.calls();
    let round = sync.some(&["d1/f1".into()].into_iter().collect()).unwrap().expect("no whole look");
    assert_eq!((round.prepared.sent, guest.calls().len()), (0, 0));
    sync.finish().unwrap();
    // Another command's prepare is noticed.
    repository.write("d3/f3", "other");
    guest.prepare(Workspace::open(&repository.path(), &untracked()).unwrap());
    assert!(sync.some(&["d3/f3".into()].into_iter().collect()).unwrap().is_none());
}

#[test]
fn many_rounds_leave_few_packs_and_the_patch_is_the_guests() {
    let repository = Repository::new();
    repository.write("a", "0\n");
    repository.commit();
    let Some(mut guest) = Guest::new() else { return };
    let mut sync = guest.sync(&repository, untracked(), false);
    sync.whole(Workspace::open(&repository.path(), &untracked()).unwrap()).unwrap();
    for number in 0..80 {
        repository.write("a", format!("{number}\n"));
        sync.some(&["a".into()].into_iter().collect()).unwrap().expect("no whole look");
    }
    let packs = fs::read_dir(guest.kept_file("base.git/objects/pack")).unwrap();
    let packs = packs.filter(|entry| {
        entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "pack")
    });
    let count = packs.count();
    assert!((2..=65).contains(&count), "{count} packs after 80 rounds");
    sync.finish().unwrap();
    guest.write("a", "the guest's\n");
    apply(&repository.path(), &guest.patch());
    assert!(same(&repository, &guest));
}
