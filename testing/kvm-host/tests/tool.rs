//! The tool itself, used as a person uses it, on the machine that the tier's other tests run in.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use banger_harness::{GUEST_DEADLINE, Terminal, skip, wait_for};
use banger_kvm_host::cache::Cache;
use banger_kvm_host::inventory::Inventory;
use banger_kvm_host::kept::{Keeper, Kept};
use banger_kvm_host::session::{self, MARK};
use rustix::mount::{MountFlags, UnmountFlags};

/// What the tool ends with where a command's own exit code is expected and there is none.
const TOOL_FAILED: i32 = 125;

fn tool(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger-kvm-host"));
    command.args(words).stdin(Stdio::null());
    command
}

/// Whether this machine can have a KVM host; says so where not. Waits until no other tests, such as
/// another clone's, go on, and keeps them out until this process ends.
fn can_run() -> bool {
    static ALONE: OnceLock<std::fs::File> = OnceLock::new();
    if let Some(reason) = banger_kvm_host::host_image::impossible() {
        skip("kvm-host", &reason);
        return false;
    }
    let cache = Cache::open().expect("the cache");
    let alone = || cache.lock_tests().expect("the right to test");
    ALONE.get_or_init(alone);
    true
}

fn run(words: &[&str]) -> Output {
    tool(&["run"]).args(words).output().expect("run the tool")
}

/// Tells one machine from the next, which begins in the same saved state: the first who asks in a
/// machine names it.
const NAME: &str = "f=$(mktemp -p /run) && cat /proc/sys/kernel/random/uuid > $f && \
    { ln $f /run/name 2>/dev/null; rm $f; cat /run/name; }";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_a_command_says_and_how_it_ends_is_passed_on() {
    if !can_run() {
        return;
    }
    let output = run(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(text(&output.stdout), "out\n");
    assert!(text(&output.stderr).ends_with("err\n"), "{output:?}");
    for (words, code) in [
        (["--", "sh", "-c", "kill -9 $$"].as_slice(), 128 + 9),
        (&["--", "/not/there"], 127),
        (&["--user", "nobody-of-that-name", "--", "true"], TOOL_FAILED),
    ] {
        assert_eq!(run(words).status.code(), Some(code), "{words:?}");
    }
    let output = run(&["--user", "alice", "--", "id", "-un"]);
    assert_eq!(text(&output.stdout), "alice\n", "{output:?}");
}

#[test]
fn a_flood_of_output_arrives_whole() {
    if !can_run() {
        return;
    }
    const BYTES: usize = 64 << 20;
    let output = run(&["--", "sh", "-c", &format!("yes | head -c {BYTES}")]);
    assert!(output.status.success(), "{:?}", text(&output.stderr));
    assert_eq!(output.stdout.len(), BYTES);
    assert!(output.stdout.chunks(2).all(|pair| pair == b"y\n"));
}

#[test]
fn files_and_folders_go_in_and_come_back() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let here = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(here("tree/deep")).expect("a folder");
    std::fs::write(here("tree/deep/file"), "deep").expect("a file");
    std::fs::write(here("script"), "#!/bin/sh\ncat tree/deep/file; echo made > made\n")
        .expect("a file");
    std::fs::set_permissions(here("script"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("a mode");
    let there = "/data/tool-test/of files";
    let remove = ["--", "rm", "-r", "/data/tool-test"];
    let (tree, script) = (here("tree"), here("script"));
    let put = |path: &Path| format!("{}:{there}", path.display());
    let get = |name: &str, to: &str| format!("{there}/{name}:{}", here(to).display());
    let output = run(&[
        "--put",
        &put(&tree),
        "--put",
        &put(&script),
        "--get",
        &get("made", "back"),
        "--get",
        &get("tree", "back/a/new folder"),
        "--",
        "sh",
        "-c",
        &format!("cd '{there}' && ./script"),
    ]);
    assert_eq!(text(&output.stdout), "deep", "{output:?}");
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| std::fs::read_to_string(here(name)).expect(name);
    assert_eq!(read("back/made"), "made\n");
    assert_eq!(read("back/a/new folder/tree/deep/file"), "deep");
    assert!(run(&remove).status.success());
}

#[test]
fn what_cannot_be_sent_or_fetched_is_named() {
    if !can_run() {
        return;
    }
    // Where another clone's machine runs, each command would say so as well.
    assert!(tool(&["boot"]).status().expect("run the tool").success());
    let refused = |words: &[&str], code: i32, word: &str| {
        let output = run(words);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        assert!(errors.contains(word) && errors.lines().count() == 1, "{words:?}: {errors}");
        assert!(output.stdout.is_empty(), "{words:?}: the command must not run: {output:?}");
    };
    refused(&["--put", "/not/here", "--", "echo", "ran"], TOOL_FAILED, "/not/here");
    refused(&["--put", "/etc/passwd:/etc/hostname", "--", "echo", "ran"], TOOL_FAILED, "/etc/host");
    refused(&["--get", "/not/there", "--", "true"], TOOL_FAILED, "/not/there");
    refused(&["--get", "/etc/hostname:/etc/passwd", "--", "true"], TOOL_FAILED, "/etc/passwd");
    // A command that failed says more than the file that it did not make.
    refused(&["--get", "/not/there", "--", "sh", "-c", "exit 3"], 3, "/not/there");
}

#[test]
fn a_command_ends_with_the_tool_that_ran_it() {
    if !can_run() {
        return;
    }
    // A number that no other process has among its words.
    let sleep = format!("8{:06}", std::process::id() % 1_000_000);
    let mut child = tool(&["run", "--", "sleep", &sleep]).spawn().expect("start the tool");
    let runs = || run(&["--", "pgrep", "-x", "-f", &format!("sleep {sleep}")]).status.success();
    wait_for("the command", GUEST_DEADLINE, || runs().then_some(()));
    child.kill().expect("kill the tool");
    assert_eq!(child.wait().expect("its end").signal(), Some(9));
    wait_for("the command's end", GUEST_DEADLINE, || (!runs()).then_some(()));
}

#[test]
fn a_shell_is_on_a_terminal() {
    if !can_run() {
        return;
    }
    let output = tool(&["shell"]).output().expect("run the tool");
    assert_eq!(output.status.code(), Some(TOOL_FAILED), "{output:?}");
    assert!(text(&output.stderr).contains("needs a terminal"), "{output:?}");
    let mut shell = tool(&["shell"]);
    // A terminal's command has only the variables that it is given.
    shell.envs(std::env::vars_os());
    let mut terminal = Terminal::start(&shell, 100, 30);
    terminal.send(b"stty size; echo $((6 * 7)) in; tty; exit 3\r");
    terminal.wait_for("30 100");
    terminal.wait_for("42 in");
    terminal.wait_for("/dev/pts/");
    let (status, screen) = terminal.finish();
    assert_eq!(status.code(), Some(3), "{screen}");
}

#[test]
fn two_who_boot_at_once_have_one_machine() {
    if !can_run() {
        return;
    }
    let children = [(); 2].map(|()| tool(&["boot"]).spawn().expect("start the tool"));
    for mut child in children {
        assert!(child.wait().expect("its end").success());
    }
    let names = [(); 2].map(|()| run(&["--", "sh", "-c", NAME]).stdout);
    assert!(!names[0].is_empty() && names[0] == names[1], "{names:?}");
}

/// A view of the build cache in which this test, and what it starts, sees what was built before,
/// and nobody else sees what changes: a machine of its own, which others cannot stop.
struct OwnCache {
    root: PathBuf,
    _changes: tempfile::TempDir,
}

impl OwnCache {
    /// Makes one, or says why it cannot.
    fn enter() -> Option<Self> {
        if !can_run() {
            return None;
        }
        if !banger_harness::is_root() {
            skip("root", "an overlay is mounted over the cache");
            return None;
        }
        // Others need it anyway; and so no cold boot is needed here.
        assert!(tool(&["boot"]).status().expect("run the tool").success());
        banger_privileged_tests::enter_own_mounts();
        let root = Cache::open().expect("the cache").root().to_owned();
        let changes = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let folder = |name: &str| {
            let path = changes.path().join(name);
            std::fs::create_dir(&path).expect("a folder");
            path
        };
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            root.display(),
            folder("upper").display(),
            folder("work").display()
        );
        let options = CString::new(options).expect("a path without NUL");
        rustix::mount::mount("overlay", &root, "overlay", MountFlags::empty(), options.as_c_str())
            .expect("an overlay");
        std::fs::remove_dir_all(root.join("run")).expect("forget the machine of the others");
        let _ = std::fs::remove_dir_all(root.join("run-tests"));
        Some(Self { root, _changes: changes })
    }

    /// The key of the machine that runs.
    fn key(&self) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let keeper = Keeper::of(&Cache::at(self.root.clone()).expect("the cache"));
        let info = runtime.expect("a runtime").block_on(keeper.info());
        info.expect("a machine runs").0
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.root).expect("the cache").flatten();
        let mut names: Vec<_> =
            entries.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name != "lock" && !name.ends_with(".lock") && !name.ends_with(".log"));
        names.sort();
        names
    }
}

impl Drop for OwnCache {
    fn drop(&mut self) {
        let _ = tool(&["stop"]).status();
        let _ = rustix::mount::unmount(&self.root, UnmountFlags::DETACH);
    }
}

/// Holds the machine that runs.
async fn hold() -> Kept {
    let keeper = Keeper::of(&Cache::open().expect("the cache"));
    let (key, _) = keeper.info().await.expect("a machine runs");
    keeper.hold(&key).await.expect("a keeper that can be asked").expect("it goes on")
}

fn start(words: &[&str]) -> Child {
    let mut command = tool(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("start the tool")
}

fn end(child: Child) -> Output {
    child.wait_with_output().expect("its end")
}

/// Starts a command that does not end by itself, and waits until it runs; with its pid there.
fn start_sleep(before: &[&str]) -> (Child, String) {
    let words = ["run", "--"].iter().chain(before).copied();
    let words: Vec<&str> = words.chain(["sh", "-c", "echo $$; exec sleep 1000"]).collect();
    let mut child = start(&words);
    let output = child.stdout.as_mut().expect("its output");
    let mut pid = String::new();
    BufReader::with_capacity(1, output).read_line(&mut pid).expect("it runs");
    (child, pid.trim().to_owned())
}

/// Asserts that a command was ended with the machine, and that this is what is said.
fn assert_stopped(child: Child) {
    let output = end(child);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(TOOL_FAILED), "{output:?}");
    // Before it there may be a word on how long the machine took to start.
    let last = errors.lines().last().unwrap_or_default();
    assert!(last.starts_with("kvm-host: the KVM host ended meanwhile"), "{errors}");
}

#[test]
fn who_stops_or_cleans_the_machine_of_others_leaves_them_a_clear_word_and_nothing_else() {
    let Some(cache) = OwnCache::enter() else { return };
    let built = cache.names();
    // Three who need a machine where none runs have one.
    let id = ["run", "--", "sh", "-c", NAME];
    let outputs = [&id[..], &["boot"], &id].map(start).map(end);
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    assert!(!outputs[0].stdout.is_empty() && outputs[0].stdout == outputs[2].stdout, "{outputs:?}");

    let (sleep, _) = start_sleep(&[]);
    let stops = [["stop"]; 2].map(|words| start(&words)).map(end);
    assert!(stops.iter().all(|output| output.status.success()), "{stops:?}");
    assert_stopped(sleep);
    assert_eq!(cache.names(), built, "all is there but the machine");
    let again = tool(&["stop"]).output().expect("run the tool");
    assert!(text(&again.stdout).contains("no KVM host runs"), "{again:?}");

    let (sleep, _) = start_sleep(&[]);
    let cleaned = tool(&["clean"]).output().expect("run the tool");
    assert!(cleaned.status.success() && cleaned.stdout.is_empty(), "{cleaned:?}");
    assert_stopped(sleep);
    assert_eq!(cache.names(), Vec::<String>::new());
}

#[test]
fn the_machine_of_tests_is_another_and_its_end_is_nobody_elses() {
    let Some(cache) = OwnCache::enter() else { return };
    let (mut sleep, pid) = start_sleep(&[]);
    let name = || run(&["--", "sh", "-c", NAME]).stdout;
    let name_of_tests = || run(&["--tests", "--", "sh", "-c", NAME]).stdout;
    let (ours, theirs) = (name(), name_of_tests());
    // They begin in one saved state, but not with its random numbers.
    assert!(!ours.is_empty() && !theirs.is_empty() && ours != theirs, "{}", text(&ours));
    assert_eq!((name(), name_of_tests()), (ours.clone(), theirs.clone()));
    // It ends in the middle of a command, as a machine whose test has failed does.
    let ended = run(&["--tests", "--", "sh", "-c", "echo o > /proc/sysrq-trigger; sleep 1000"]);
    assert_eq!(ended.status.code(), Some(TOOL_FAILED), "{ended:?}");
    assert!(run(&["--", "kill", "-0", &pid]).status.success());
    assert_eq!(name(), ours);
    let next = name_of_tests();
    assert!(!next.is_empty() && next != theirs, "it has nothing of the one before");
    assert!(tool(&["stop"]).status().expect("run the tool").success());
    let folders = ["run", "run-tests"].map(|it| cache.root.join(it).exists());
    assert_eq!(folders, [false, false], "stop ends both");
    assert!(sleep.wait().expect("its end").code() == Some(TOOL_FAILED));
}

#[test]
fn a_machine_that_hangs_is_ended_and_another_started() {
    let Some(_cache) = OwnCache::enter() else { return };
    let first = run(&["--", "sh", "-c", NAME]).stdout;
    // All but systemd: the agent, too, which would have to say that the command has ended.
    let mut hanging = start(&["run", "--", "sh", "-c", "kill -STOP -1"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    while runtime.block_on(async { hold().await.answers().await }) {}
    hanging.kill().expect("kill the tool");
    hanging.wait().expect("its end");
    let boot = tool(&["boot"]).output().expect("run the tool");
    let errors = text(&boot.stderr);
    assert!(boot.status.success() && errors.contains("did not answer"), "{boot:?}");
    let second = run(&["--", "sh", "-c", NAME]).stdout;
    assert!(!first.is_empty() && !second.is_empty() && first != second, "{}", text(&second));
}

/// A folder with this clone's programs and another agent, as another clone would have it.
fn other_clone() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = banger_harness::program_folder();
    let name = "agent/x86_64-unknown-linux-gnu/agent/banger-vsock-agent";
    let mut agent = std::fs::read(ours.with_file_name(name)).expect("the agent");
    agent.push(0);
    let theirs = folder.path().join(name);
    std::fs::create_dir_all(theirs.parent().expect("a folder")).expect("a folder");
    std::fs::write(theirs, agent).expect("another agent");
    std::os::unix::fs::symlink(ours, folder.path().join("debug")).expect("a link");
    folder
}

#[test]
fn another_clone_does_not_take_the_machine_from_who_holds_it() {
    let Some(_cache) = OwnCache::enter() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    assert!(tool(&["boot"]).status().expect("run the tool").success());
    let held = runtime.block_on(hold());
    let word = || {
        let command = session::Command::new(["/bin/echo", "a word"]).expect("a command");
        runtime.block_on(held.during(command.collect(&held.client(), GUEST_DEADLINE)))
    };
    assert_eq!(word().expect("it answers").0, b"a word\n");
    let clone = other_clone();
    let mut boot = tool(&["boot"]);
    let boot = boot.env("BANGER_BIN_DIR", clone.path().join("debug")).output().expect("the tool");
    assert!(!boot.status.success() && text(&boot.stderr).contains("in use by 1"), "{boot:?}");
    assert_eq!(word().expect("it goes on").0, b"a word\n");
    // Made anew of the same parts it is another one, too.
    for words in [["stop"], ["boot"]] {
        assert!(tool(&words).status().expect("run the tool").success());
    }
    let error = format!("{:#}", word().expect_err("another machine"));
    assert!(error.starts_with("the KVM host ended meanwhile"), "{error}");
}

#[test]
fn who_uses_a_machine_of_other_parts_is_told_and_where_it_is_damaged_nobody_is_let_in() {
    let Some(cache) = OwnCache::enter() else { return };
    assert!(tool(&["boot"]).status().expect("run the tool").success());
    let clone = other_clone();
    let output = tool(&["run", "--", "echo", "a word"])
        .env("BANGER_BIN_DIR", clone.path().join("debug"))
        .output()
        .expect("run the tool");
    assert_eq!(text(&output.stdout), "a word\n", "{output:?}");
    let errors = text(&output.stderr);
    assert!(errors.contains("made of other parts") && errors.contains("host boot"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert_eq!(text(&run(&["--", "true"]).stderr), "", "nor is who boots it told so");

    let key = cache.key();
    assert!(tool(&["stop"]).status().expect("run the tool").success());
    // What lies in a state's middle is some page of the machine's memory: QEMU loads anything.
    let memory = cache.root.join(format!("state-{key}/memory"));
    let file = std::fs::File::options().write(true).read(true).open(&memory).expect("the state");
    let middle = file.metadata().expect("its length").len() / 2;
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, middle).expect("read the state");
    file.write_all_at(&bytes.map(|byte| !byte), middle).expect("change the state");
    let mut boot = start(&["boot"]);
    let mut lines = BufReader::new(boot.stderr.take().expect("its errors")).lines();
    let said = lines.by_ref().map_while(Result::ok).find(|line| line.contains("is damaged"));
    let said = said.expect("what is wrong");
    // The next machine would be a cold one.
    boot.kill().expect("kill the tool");
    boot.wait().expect("its end");
    assert!(said.contains(memory.to_str().expect("a path that is text")), "{said}");
    let keeper = Keeper::of(&Cache::open().expect("the cache"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    assert_eq!(runtime.expect("a runtime").block_on(keeper.info()), None);
}

#[test]
fn a_bad_number_of_kept_keys_is_refused_before_anything_is_done() {
    for bad in ["x", "0", "-3"] {
        let mut build = tool(&["build"]);
        let output = build.env("BANGER_BUILD_CACHE_KEYS", bad).output().expect("run the tool");
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(errors.contains("BANGER_BUILD_CACHE_KEYS") && errors.contains(bad), "{errors}");
        assert!(output.stdout.is_empty() && errors.lines().count() == 1, "{output:?}");
    }
}

#[test]
fn a_command_beside_the_tests_is_not_taken_for_theirs() {
    if !can_run() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    // The tool starts it: its keeper is the tool's own program.
    assert!(tool(&["boot"]).status().expect("run the tool").success());
    let host = runtime.block_on(hold());
    let before = runtime.block_on(Inventory::take(&host.client())).expect("a look");
    let (mut beside, its_pid) = start_sleep(&[]);
    // What a test leaves behind has no such mark.
    let (mut left, left_pid) = start_sleep(&["env", "-u", MARK]);
    let found = runtime.block_on(before.new_ones(&host.client())).expect("a look");
    for child in [&mut beside, &mut left] {
        child.kill().expect("kill the tool");
        child.wait().expect("its end");
    }
    assert!(found.contains(&format!("process {left_pid} sleep")), "{found:?}");
    assert!(!found.contains(&format!("process {its_pid} sleep")), "{found:?}");
}

#[test]
fn what_is_on_its_way_out_is_waited_for_and_what_stays_is_found() {
    if !can_run() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    // The tool starts it: its keeper is the tool's own program.
    assert!(tool(&["boot"]).status().expect("run the tool").success());
    let host = runtime.block_on(hold());
    let before = runtime.block_on(Inventory::take(&host.client())).expect("a look");
    // A process, a mount and a device that stay until all are told to go.
    let script =
        "set -e; mkdir -p /data/on-its-way; cd /data/on-its-way; rm -f go; mkfifo -m 600 go
        truncate -s 1M file; loop=$(losetup -f --show file); mkdir -p mnt; mount -t tmpfs none mnt
        ip link add on-its-way type dummy; dmsetup create on-its-way --notable
        (env -u MARK setsid sh -c \"read -r _ < go; ip link delete on-its-way; losetup -d $loop; \
        dmsetup remove on-its-way; sleep 1; umount mnt\" </dev/null >/dev/null 2>&1 &)"
            .replace("MARK", MARK);
    let output = run(&["--", "sh", "-c", &script]);
    assert!(output.status.success(), "{output:?}");
    let left = runtime.block_on(before.new_ones(&host.client())).expect("a look");
    let has = |word: &str| left.iter().any(|line| line.contains(word));
    assert!(
        has("interface on-its-way")
            && has("dm device on-its-way")
            && has("on-its-way/file")
            && has("on-its-way/mnt")
            && has("process"),
        "{left:?}"
    );
    let output = run(&["--", "sh", "-c", "echo > /data/on-its-way/go"]);
    assert!(output.status.success(), "{output:?}");
    let left = runtime.block_on(before.leftovers(&host.client())).expect("a look");
    assert_eq!(left, Vec::<String>::new());
    assert!(run(&["--", "rm", "-r", "/data/on-its-way"]).status.success());
}
