//! Jailers that are not what they should be: what the helper gives them, and what it believes of
//! what they leave.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use banger_host::{HostError, chain};
use banger_privileged_sys::as_file_user;
use banger_privileged_tests::OWNER;
use banger_privileged_tests::vmm::{Idle, PROGRAMS, Scene, elf, scene, set_mode, wait_until_gone};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use crate::processes::program;

/// Between the file's first byte and its code, and where all of it lies in memory: see [`elf`].
const CODE: u32 = 0x10_0000 + 120;

/// Puts a program in the jailer's place.
fn replace_jailer(program: &[u8]) {
    let jailer = Path::new(PROGRAMS).join("jailer");
    fs::remove_file(&jailer).unwrap();
    fs::write(&jailer, program).unwrap();
    set_mode(&jailer, 0o755);
}

/// A program that ends with 40 more than its `no_new_privs`.
fn tells_of_privileges() -> Vec<u8> {
    elf(&[
        0xb8, 157, 0, 0, 0, 0xbf, 39, 0, 0, 0, // prctl(PR_GET_NO_NEW_PRIVS,
        0x31, 0xf6, 0x31, 0xd2, 0x4d, 0x31, 0xd2, 0x4d, 0x31, 0xc0, // 0, 0, 0, 0)
        0x0f, 0x05, // syscall
        0x8d, 0x78, 40, // lea edi, [rax + 40]
        0xb8, 60, 0, 0, 0, 0x0f, 0x05, // exit
    ])
}

/// A program that gives a file a second name (link(2); nothing where that fails), writes a text into
/// a new file and ends well: what a jailer leaves behind, as far as the helper looks at it.
fn leaves(file: &Path, copy: &Path, pid_file: &Path, text: &str) -> Vec<u8> {
    // Each `mov REGISTER, NUMBER` is 5 bytes and each `syscall` 2.
    let length = u32::try_from(3 * 5 + 2 + 4 * 5 + 2 + 2 + 3 * 5 + 2 + 2 * 5 + 2).unwrap();
    let mut data = Vec::new();
    let mut place = |bytes: &[u8]| {
        let at = CODE + length + u32::try_from(data.len()).unwrap();
        data.extend(bytes);
        data.push(0);
        at
    };
    let [file, copy, pid_file] =
        [file, copy, pid_file].map(|path| place(path.to_str().unwrap().as_bytes()));
    let (text, count) = (place(text.as_bytes()), u32::try_from(text.len()).unwrap());
    let mut code = Vec::new();
    let (eax, edi, esi, edx) = (0xb8, 0xbf, 0xbe, 0xba);
    let mut call = |registers: &[(u8, u32)]| {
        for (register, number) in registers {
            code.push(*register);
            code.extend(number.to_le_bytes());
        }
        code.extend([0x0f, 0x05]);
        // mov edi, eax: what was opened is what is written to.
        if registers[0] == (eax, 2) {
            code.extend([0x89, 0xc7]);
        }
    };
    call(&[(eax, 86), (edi, file), (esi, copy)]);
    // O_WRONLY | O_CREAT | O_TRUNC, mode 0600
    call(&[(eax, 2), (edi, pid_file), (esi, 0o1101), (edx, 0o600)]);
    call(&[(eax, 1), (esi, text), (edx, count)]);
    call(&[(eax, 60), (edi, 0)]);
    assert_eq!(code.len(), usize::try_from(length).unwrap());
    elf(&[code, data].concat())
}

/// The programs of these tests, which the owner can execute.
struct Programs {
    /// What comes to lie in the jail as its Firecracker.
    firecracker: PathBuf,
    /// Another one that does nothing either.
    another: PathBuf,
}

impl Programs {
    fn new(scene: &Scene) -> Self {
        Self { firecracker: program(scene, "firecracker"), another: program(scene, "another") }
    }
}

/// Has the next launch's jailer leave a text as Firecracker's pid, and `firecracker` in the jail.
fn leave(scene: &Scene, programs: &Programs, text: &str) {
    let root = scene.jail("one").join("root");
    let (copy, pid_file) = (root.join("firecracker"), root.join("firecracker.pid"));
    replace_jailer(&leaves(&programs.firecracker, &copy, &pid_file, text));
}

fn launch_fails(scene: &Scene) -> String {
    let error = scene.launch(scene.params("one")).unwrap_err();
    assert!(matches!(error, HostError::Failed { .. }), "{error:?}");
    chain(&error)
}

/// Firecracker sets it too, later: so it is the jailer that is asked.
#[test]
fn the_jailer_and_all_after_it_get_no_new_privileges() {
    let Some(scene) = scene() else { return };
    replace_jailer(&tells_of_privileges());
    let own = || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("NoNewPrivs:\t0\n"), "{status}");
    };
    own();
    let error = launch_fails(&scene);
    assert!(error.contains("exit status: 41"), "{error}");
    // It is for ever, and not for the helper itself.
    own();
    scene.assert_clean();
}

/// A process whose parent is a shell, and not the helper.
struct Grandchild {
    shell: Child,
    pid: i32,
}

impl Grandchild {
    fn start(program: &Path) -> Self {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", "\"$0\" >/dev/null & echo $!; wait"])
            .arg(program)
            .uid(OWNER)
            .gid(OWNER)
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap();
        executes(pid, program, OWNER);
        Self { shell, pid }
    }
}

impl Drop for Grandchild {
    fn drop(&mut self) {
        if let Ok(None) = self.shell.try_wait() {
            let group = Pid::from_child(&self.shell);
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
            let _ = self.shell.wait();
        }
    }
}

/// Waits until a user's process executes a program.
fn executes(pid: i32, program: &Path, uid: u32) {
    let link = format!("/proc/{pid}/exe");
    // Others may not see that, this test included.
    let read = || as_file_user(uid, uid, || fs::read_link(&link));
    let is_it = || read().ok().filter(|path| path == program).map(drop);
    banger_harness::wait_for("exec", Duration::from_secs(10), is_it);
}

#[test]
fn a_pid_of_no_child_of_the_helpers_is_not_taken_over() {
    let Some(scene) = scene() else { return };
    let programs = Programs::new(&scene);
    for text in ["", "x", "0", "-1", "4194305", "99999999999", "1 2"] {
        leave(&scene, &programs, text);
        let error = launch_fails(&scene);
        assert!(error.contains("no process has the pid that it wrote"), "{text:?}: {error}");
        scene.assert_clean();
    }
    // Of the owner, and executing what lies in the jail: but for its parent it would be the machine.
    let mut decoy = Grandchild::start(&programs.firecracker);
    leave(&scene, &programs, &decoy.pid.to_string());
    let error = launch_fails(&scene);
    assert!(error.contains("not of a child of the helper"), "{error}");
    // Whatever executes a jail's file is ended with that jail.
    let mut has_ended = || decoy.shell.try_wait().unwrap();
    banger_harness::wait_for("the end of both", Duration::from_secs(10), &mut has_ended);
    // The helper itself is nobody's machine either.
    leave(&scene, &programs, &std::process::id().to_string());
    let error = launch_fails(&scene);
    assert!(error.contains("not of a child of the helper"), "{error}");
    scene.assert_clean();
}

/// The record of the launch that is under way: whose process it has.
fn recorded(scene: &Scene) -> Value {
    let record = scene.fixture.own.join("records/launch.one.json");
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    record["process"]["pid"].clone()
}

/// Whether a thread of the helper's waits for the end of a process that is taken over.
fn has_watcher() -> bool {
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut names = threads.flat_map(|thread| fs::read_to_string(thread.path().join("comm")));
    names.any(|name| name == "vmm\n")
}

/// Launches a machine whose pid is said to be that of a child which does nothing, looks at the record
/// while the helper waits for it, and then ends the child. Returns the recorded pid and the error.
fn launch_with_child(
    scene: &Scene,
    programs: &Programs,
    mut child: Idle,
    is_its: bool,
) -> (Value, String) {
    let pid = child.pid();
    leave(scene, programs, &pid.to_string());
    std::thread::scope(|scope| {
        let launch = scope.spawn(|| launch_fails(scene));
        let is_begun = || scene.fixture.own.join("records/launch.one.json").exists().then_some(());
        banger_harness::wait_for("the launch", Duration::from_secs(20), is_begun);
        let is_watched = || (has_watcher() == is_its).then_some(());
        banger_harness::wait_for("the watcher", Duration::from_secs(20), is_watched);
        if is_its {
            let is_known = || (recorded(scene) != Value::Null).then_some(());
            banger_harness::wait_for("the record", Duration::from_secs(20), is_known);
        } else {
            // Many times as long as the jailer, and the helper for one look at its child, take.
            std::thread::sleep(Duration::from_millis(500));
        }
        let known = recorded(scene);
        assert_eq!(has_watcher(), is_its);
        let held = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        pidfd_send_signal(&held, Signal::KILL).unwrap();
        let error = launch.join().unwrap();
        if is_its {
            wait_until_gone(pid);
            std::mem::forget(child);
        } else {
            // Whose child it is reaps it: a tool's pid that is free too soon is somebody else's when
            // the tool's time is up.
            assert_eq!(child.0.wait().unwrap().signal(), Some(9));
        }
        let has_none = || (!has_watcher()).then_some(());
        banger_harness::wait_for("the watcher's end", Duration::from_secs(10), has_none);
        (known, error)
    })
}

#[test]
fn a_child_that_is_not_the_jails_firecracker_is_not_taken_over() {
    let Some(scene) = scene() else { return };
    let programs = Programs::new(&scene);
    let start = |program: &Path, uid| {
        let child = Idle::start(program, &[], uid);
        executes(child.pid(), program, uid);
        child
    };
    for (program, uid) in
        [(&programs.another, OWNER), (&programs.firecracker, OWNER + 1), (&programs.firecracker, 0)]
    {
        let child = start(program, uid);
        let (known, error) = launch_with_child(&scene, &programs, child, false);
        assert_eq!(known, Value::Null, "{program:?} of {uid}: {error}");
        assert!(error.contains("it ended at once"), "{program:?} of {uid}: {error}");
        scene.assert_clean();
    }
    // The neighbour: but that it does not answer, nothing tells it from a Firecracker.
    let child = start(&programs.firecracker, OWNER);
    let pid = child.pid();
    let (known, error) = launch_with_child(&scene, &programs, child, true);
    assert_eq!(known, pid, "{error}");
    assert!(error.contains("it ended") && !error.contains("at once"), "{error}");
    scene.assert_clean();
}
