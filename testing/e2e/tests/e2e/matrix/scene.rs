//! A host of its own for the real command line, daemon, helper and VMMs, whose guests never run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use banger_engine::Action;
use banger_harness::{
    BUSYBOX_IMAGE, Contents, Environment, Finished, Inventory, Invocation, Process, firecrackers,
    skip, wait_for,
};
use banger_privileged_tests::vmm::{programs, put_programs, tiny_kernel};
use banger_privileged_tests::{enter_own_mounts, enter_own_network};
use rustix::mount::{MountFlags, mount};
use rustix::process::Signal;
use serde_json::Value;

use super::cell::{Cell, Fault};

/// How long an operation, or the host, may take to come to rest.
pub const REST: Duration = Duration::from_secs(120);
/// How long what the kernel takes down later may be seen.
const LATER: Duration = Duration::from_secs(20);
const BOX: &str = "box";

/// What became of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The fault struck, and nothing was lost or left.
    Recovered,
    /// There was nothing to strike: the step was not taken, or there was no such process yet.
    NothingThere,
}

pub struct Scene {
    pub environment: Environment,
    bangerd: PathBuf,
    vmm: &'static str,
    /// Without a machine, and with one that does not run.
    before: Inventory,
    resting: Inventory,
}

impl Scene {
    /// Makes one; `None` with a word where it cannot be.
    pub fn new(vmm: &'static str) -> Option<Self> {
        let Some(bangerd) = std::env::var_os("BANGER_TEST_FAULT_BANGERD").map(PathBuf::from) else {
            skip("fault-hooks", "BANGER_TEST_FAULT_BANGERD names no bangerd built with them");
            return None;
        };
        let programs = programs()?;
        let environment = Environment::new(Contents::Busybox).in_callers_network();
        enter_own_network();
        enter_own_mounts();
        put_programs(&programs);
        // Those of the helpers of other tests are not seen, nor they ours. Not the helpers' own
        // folders: one that is removed elsewhere takes what is mounted there with it.
        for folder in ["/var/lib", "/run"] {
            mount("tmpfs", folder, "tmpfs", MountFlags::empty(), c"mode=755").unwrap();
        }
        environment.hold_guests(&tiny_kernel(b"held\n"));
        let mut scene = Self {
            environment,
            bangerd,
            vmm,
            before: Inventory::default(),
            resting: Inventory::default(),
        };
        // What the first machine makes once for all is there from here on.
        scene.act(Action::Create).ok();
        assert_eq!(scene.show().unwrap()["runtime"]["vmm"], vmm);
        scene.act(Action::Delete).ok();
        scene.before = Inventory::take(scene.environment.base());
        Some(scene)
    }

    pub fn banger(&self, arguments: &[&str]) -> Invocation {
        self.environment.banger(arguments).env("BANGER_BANGERD", &self.bangerd)
    }

    pub fn act(&self, action: Action) -> Invocation {
        match action {
            Action::Create => self.create(BOX),
            Action::Start => self.banger(&["vm", "start", BOX]),
            Action::Stop => self.banger(&["vm", "stop", BOX]),
            Action::Delete => self.banger(&["vm", "delete", BOX]),
        }
    }

    pub fn create(&self, name: &str) -> Invocation {
        let words = ["vm", "run", "-d", "--image", BUSYBOX_IMAGE, "--name", name];
        self.banger(&[&words[..], &["--memory", "256M", "--vmm", self.vmm]].concat())
    }

    pub fn list(&self) -> Vec<Value> {
        let list = self.banger(&["vm", "list", "--json"]).ok().json();
        list.as_array().cloned().expect("a list")
    }

    fn show(&self) -> Option<Value> {
        self.list().into_iter().find(|vm| vm["name"] == BOX)
    }

    /// Its VMMs that run.
    pub fn vmms(&self) -> Vec<Process> {
        let mut found = self.environment.processes();
        found.retain(|process| process.program().starts_with("qemu"));
        found.extend(firecrackers().into_iter().filter(|it| it.program() == "firecracker"));
        found
    }

    /// A process of ours by its program's name.
    pub fn service(&self, name: &str) -> Option<Process> {
        let state = self.environment.state().display().to_string();
        let is_it = |process: &Process| {
            process.program() == name
                && process.command.contains("--state-dir")
                && process.command.contains(&state)
        };
        self.environment.processes().into_iter().find(is_it)
    }

    /// Brings the machine to where the action begins.
    fn prepare(&mut self, action: Action) {
        let state = self.show().map(|vm| vm["state"].as_str().unwrap_or_default().to_owned());
        match (action, state.is_some()) {
            (Action::Create, true) => drop(self.act(Action::Delete).ok()),
            (Action::Create, false) => {}
            (_, false) => {
                self.act(Action::Create).ok();
                self.act(Action::Stop).ok();
                self.resting = Inventory::take(self.environment.base());
            }
            (_, true) => {}
        }
        match action {
            Action::Create => {}
            // Either is nothing where it is so already.
            Action::Start => drop(self.act(Action::Stop).ok()),
            Action::Stop | Action::Delete => drop(self.act(Action::Start).ok()),
        }
    }

    /// Strikes one cell; fails unless everything recovers.
    pub fn play(&mut self, cell: Cell) -> Outcome {
        self.prepare(cell.action);
        let outcome = self.strike(cell);
        self.recover(cell);
        outcome
    }

    fn strike(&self, cell: Cell) -> Outcome {
        let state = self.environment.state();
        let (hook, struck) = (state.join("fault"), state.join("fault.struck"));
        let _ = fs::remove_file(&struck);
        fs::write(&hook, cell.hook()).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o644)).unwrap();
        let run = self.act(cell.action).spawn();
        let mut outcome = Outcome::NothingThere;
        let client = run.process();
        wait_for("the fault, or the end", REST, || {
            (struck.exists() || !client.is_alive()).then_some(())
        });
        if struck.exists() {
            outcome = match cell.fault {
                Fault::KillClient => kill(Some(&client)),
                // The next command has to start it.
                Fault::KillHelper => kill(self.service("bangerd-root").as_ref()),
                Fault::KillVmm => kill(self.vmms().first()),
                _ => Outcome::Recovered,
            };
        }
        fs::remove_file(&hook).unwrap();
        let finished = run.finish();
        check_words(cell, &finished);
        outcome
    }

    /// What must be true after any fault. What is left may only be what is told of, and a new daemon
    /// has to remove it: nothing is repaired before the host is compared.
    fn recover(&self, cell: Cell) {
        let mut known = self.rest(cell);
        if known.iter().any(is_not_cleaned) {
            self.banger(&["daemon", "stop"]).ok();
            known = self.rest(cell);
            assert!(!known.iter().any(is_not_cleaned), "{cell}: not cleaned: {known:?}");
        }
        match known.as_slice() {
            [] => self.assert_nothing_beyond(&self.before, &[], cell),
            [vm] if vm["state"] == "running" => {}
            // One that was made and lost its VMM afterwards is at rest, with its disks.
            [vm] if cell.action == Action::Create => {
                let disks = self.environment.state().join("vms").join(vm["id"].as_str().unwrap());
                let disks = format!("file {}", disks.display());
                self.assert_nothing_beyond(&self.before, &[disks], cell);
            }
            [_] => self.assert_nothing_beyond(&self.resting, &[], cell),
            more => panic!("{cell}: more machines than there should be: {more:?}"),
        }
        if !known.is_empty() {
            // It is whole: with its disks it starts, and in any state it can be deleted.
            if matches!(cell.action, Action::Start | Action::Stop) {
                self.act(Action::Start).ok();
                self.act(Action::Stop).ok();
                assert_eq!(self.list().len(), 1, "{cell}");
                return self.assert_nothing_beyond(&self.resting, &[], cell);
            }
            self.act(Action::Delete).ok();
        }
        assert!(
            self.list().is_empty() && !matches!(cell.action, Action::Start | Action::Stop),
            "{cell}: there are other machines than there should be"
        );
        self.assert_clean(cell);
    }

    /// Waits until nothing is under way and each machine that runs has its VMM; returns the machines that there are.
    fn rest(&self, cell: Cell) -> Vec<Value> {
        let end = Instant::now() + REST;
        loop {
            let known = self.list();
            let moves = |vm: &Value| {
                ["starting", "stopping", "creating"].iter().any(|state| vm["state"] == *state)
            };
            // A deletion that failed stays one until it is asked for again.
            let is_deleting = known.iter().any(|vm| vm["state"] == "deleting");
            let failed = known.iter().any(|vm| !vm["last_error"].is_null());
            let running = known.iter().filter(|vm| vm["state"] == "running").count();
            // The end of a VMM is noticed a moment later.
            let vmms = self.vmms();
            if !known.iter().any(moves) && (!is_deleting || failed) && vmms.len() == running {
                return known;
            }
            assert!(Instant::now() < end, "{cell}: no rest: {vmms:?} for {known:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asserts that nothing is left of any machine.
    pub fn assert_clean(&self, what: impl std::fmt::Display) {
        assert_eq!(self.list(), [Value::Null; 0], "{what}");
        self.assert_nothing_beyond(&self.before, &[], what);
    }

    /// Asserts that there is nothing but what was there before, and these.
    fn assert_nothing_beyond(
        &self,
        before: &Inventory,
        but: &[String],
        what: impl std::fmt::Display,
    ) {
        let end = Instant::now() + LATER;
        loop {
            let mut left = Inventory::take(self.environment.base()).beyond(before);
            left.retain(|one| !but.contains(one));
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "{what}: left behind: {left:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the scene.
    pub fn finish(self) {
        if self.show().is_some() {
            self.act(Action::Delete).ok();
        }
        self.assert_clean("at the end");
        self.banger(&["daemon", "stop"]).ok();
        let _ = fs::remove_file(self.environment.state().join("fault.struck"));
        self.environment.finish();
    }
}

/// Whether something of a machine that does not run may be left, as `vm list` tells.
fn is_not_cleaned(vm: &Value) -> bool {
    vm["state"] == "deleting" || !vm["notes"]["leftovers"].is_null()
}

/// Kills a process and waits until it is gone.
pub fn kill(process: Option<&Process>) -> Outcome {
    let Some(process) = process else { return Outcome::NothingThere };
    process.signal(Signal::KILL);
    wait_for("its death", REST, || (!process.is_alive()).then_some(()));
    Outcome::Recovered
}

/// Whatever fails is said clearly.
fn check_words(cell: Cell, finished: &Finished) {
    if finished.exit_code().is_some_and(|code| code != 0) {
        let words = finished.err();
        assert!(words.contains("error"), "{cell}: {words}");
        assert!(!words.contains("panicked"), "{cell}: {words}");
    }
}
