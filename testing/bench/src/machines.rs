//! Machines of Firecracker's through `bangerd` and `bangerd-root`: from a request to the guest's first
//! word, against the bare jailer with the same files, one at a time and four at once.
//!
//! The guest is some bytes that say one byte at the serial port, which any KVM can run; what its agent
//! would answer the daemon says itself, which is therefore the release build with fault hooks. Both
//! sides end with the same byte in a log.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use banger_harness::{BUSYBOX_IMAGE, Contents, Environment, Invocation};
use banger_privileged_tests::vmm::tiny_kernel;
use banger_privileged_tests::{enter_own_mounts, enter_own_network};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

use crate::helper::{bare_tap, can_launch};
use crate::jailer::{self, Bare, Parts};
use crate::number::{Limit, Number, median_ms};
use crate::{api, keep_place, say};

/// What the guest says: no text of Firecracker's has it.
const WORD: u8 = 1;
/// Machines at once.
const AT_ONCE: usize = 4;
/// Turns of each side in a round.
const TURNS: u32 = 4;
/// Between two looks at a log.
const STEP: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(60);
/// Before each turn.
const REST: Duration = Duration::from_millis(100);
/// Where the helper of direct mode has its jails.
const JAILS: &str = "/var/lib/banger-root/jail-direct/firecracker";

/// Measures it where it can be; `bangerd` is the release build with fault hooks.
pub(crate) fn measure(bangerd: &Path, rounds: u32) -> Result<Vec<Number>> {
    if !banger_harness::is_root() {
        say("skipped: machines: only root can start the root helper");
        return Ok(Vec::new());
    }
    // Namespaces are a thread's, and of the processes that it starts.
    let bangerd = bangerd.to_owned();
    let thread = std::thread::spawn(move || in_own_world(bangerd, rounds));
    thread.join().map_err(|_| anyhow!("what the machines are measured with could not be made"))?
}

fn in_own_world(bangerd: PathBuf, rounds: u32) -> Result<Vec<Number>> {
    enter_own_network();
    enter_own_mounts();
    if !can_launch()? {
        return Ok(Vec::new());
    }
    // The records of other daemons' helpers; jails lie beside the state, where disks are linked. Both in
    // memory: an ext4 passes over the inodes of the last five seconds' deletions one by one whenever it
    // makes a file (`recently_deleted` in fs/ext4/ialloc.c), so that what has ended slows what begins.
    for place in ["/run", "/var"] {
        let mounted = mount("tmpfs", place, "tmpfs", MountFlags::empty(), c"mode=755");
        mounted.with_context(|| format!("mount {place}"))?;
    }
    for place in ["/var/tmp", "/var/lib"] {
        fs::create_dir(place).with_context(|| format!("make {place}"))?;
    }
    // Without a network it is the jailer and Firecracker alone; with one, the tap and its rules too.
    let mut numbers = compare(World::new(&bangerd, false)?, rounds)?;
    if Path::new("/usr/sbin/nft").exists() {
        numbers.extend(compare(World::new(&bangerd, true)?, rounds)?);
    } else {
        say("skipped: machines with a tap: there is no /usr/sbin/nft for the bridge's rules");
    }
    Ok(numbers)
}

/// Both sides in turns: one start, one creation, four starts at once.
fn compare(world: World, rounds: u32) -> Result<Vec<Number>> {
    let has_tap = world.bridge.is_some();
    let (mut starts, mut bare_starts) = (vec![], vec![]);
    let (mut creations, mut bare_creations) = (vec![], vec![]);
    let (mut fours, mut bare_fours) = (vec![], vec![]);
    for round in 0..rounds {
        for _ in 0..TURNS {
            starts.push(rested(|| world.start(1))?);
            bare_starts.push(rested(|| world.start_bare(1))?);
            creations.push(rested(|| world.create())?);
            bare_creations.push(rested(|| world.create_bare())?);
            fours.push(rested(|| world.start(AT_ONCE))?);
            bare_fours.push(rested(|| world.start_bare(AT_ONCE))?);
        }
        say(format_args!(
            "machines{}, round {round}: start {:.1} ms, bare {:.1} ms; creation {:.1} ms, bare {:.1} ms; {AT_ONCE} at once {:.1} ms, bare {:.1} ms",
            if has_tap { " with a tap" } else { "" },
            median_ms(&starts),
            median_ms(&bare_starts),
            median_ms(&creations),
            median_ms(&bare_creations),
            median_ms(&fours),
            median_ms(&bare_fours)
        ));
    }
    world.environment.finish();
    let number = |name: &str, ours: &[_], peer: &str, bares: &[_]| Number {
        name: format!(
            "machines: {name}{}, request to the guest's first byte",
            if has_tap { " with a tap" } else { "" }
        ),
        ours: median_ms(ours),
        peer: Some((peer.to_owned(), median_ms(bares))),
        unit: "ms",
        // The helper reads the rules back, and changes one machine's at a time.
        limit: if has_tap { Limit::None } else { Limit::AtMostTimes(1.5) },
    };
    let bare = match has_tap {
        true => "the bare jailer with the same files, a tap by system calls and its rules by `nft`",
        false => "the bare jailer with the same files",
    };
    Ok(vec![
        number("a start", &starts, bare, &bare_starts),
        number("a creation", &creations, "the same, and `cp` of both disks", &bare_creations),
        number("four starts at once", &fours, "four of the bare jailer at once", &bare_fours),
    ])
}

/// Measures when the kernel is done with what the turn before has ended: mounts, taps, processes.
fn rested(turn: impl FnOnce() -> Result<Duration>) -> Result<Duration> {
    std::thread::sleep(REST);
    turn()
}

/// A stopped machine of ours, and the same for the bare jailer.
#[derive(Debug)]
struct Pair {
    name: String,
    log: PathBuf,
    tap: Option<Tap>,
    parts: Parts,
}

/// A machine's tap, as its `vm.json` and the daemon tell of it.
#[derive(Debug)]
struct Tap {
    name: String,
    mac: String,
    ip: String,
}

/// Stopped machines; what is measured starts them.
struct World {
    environment: Environment,
    bangerd: PathBuf,
    /// Of the taps, where the machines have one.
    bridge: Option<String>,
    pairs: Vec<Pair>,
    /// What another machine is created of.
    wanted: Value,
}

impl World {
    fn new(bangerd: &Path, has_taps: bool) -> Result<Self> {
        let programs = banger_harness::repository().join("target/release");
        let environment =
            Environment::new(Contents::Busybox).with_programs(programs).in_callers_network();
        keep_place(environment.base());
        environment.hold_guests(&tiny_kernel(&[WORD]));
        let mut world = Self {
            environment,
            bangerd: bangerd.to_owned(),
            bridge: None,
            pairs: Vec::new(),
            wanted: Value::Null,
        };
        if !has_taps {
            world.banger(&["config", "set", "network.mode", "user"]).ok();
        }
        for at in 0..AT_ONCE {
            let pair = world.pair(&format!("pair-{at}"))?;
            world.pairs.push(pair);
        }
        let shown = world.environment.show(&world.pairs[0].name);
        world.wanted = json!({
            "name": "new", "image": shown["image"], "kernel": shown["kernel"], "spec": shown["spec"],
        });
        if has_taps {
            let mut bridges = Command::new("/usr/sbin/ip");
            let bridges = bridges.args(["-o", "link", "show", "type", "bridge"]);
            let found = bridges.output().context("list the bridges")?;
            let found = String::from_utf8_lossy(&found.stdout).into_owned();
            let name = found.split(": ").nth(1).context("the bridge of the machines")?;
            world.bridge = Some(name.to_owned());
        }
        for pair in &world.pairs {
            world.banger(&["vm", "stop", &pair.name]).ok();
        }
        Ok(world)
    }

    fn banger(&self, words: &[&str]) -> Invocation {
        self.environment.banger(words).env("BANGER_BANGERD", &self.bangerd)
    }

    /// Makes a machine, and copies of all that is in its jail.
    fn pair(&self, name: &str) -> Result<Pair> {
        let words = ["vm", "run", "-d", "--image", BUSYBOX_IMAGE, "--name", name];
        let shape = ["--memory", "256M", "--vmm", "firecracker"];
        self.banger(&[&words[..], &shape].concat()).ok();
        let shown = serde_json::from_str::<Value>(
            &self.banger(&["vm", "show", name, "--json"]).ok().out(),
        )?;
        let id = shown["id"].as_str().context("an id")?;
        let jail = Path::new(JAILS).join(id).join("root");
        let machine = fs::read(jail.join("vm.json")).context("read a machine's vm.json")?;
        let parsed: Value = serde_json::from_slice(&machine).context("a vm.json is JSON")?;
        let nic = &parsed["network-interfaces"][0];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let tap = (text(&nic["host_dev_name"]).zip(text(&nic["guest_mac"])))
            .zip(text(&shown["address"]))
            .map(|((name, mac), ip)| Tap { name, mac, ip });
        let place = self.environment.base().join("bare").join(name);
        fs::create_dir_all(&place).context("make a folder")?;
        let mut paths = vec![&parsed["boot-source"]["kernel_image_path"]];
        paths.push(&parsed["boot-source"]["initrd_path"]);
        let drives = parsed["drives"].as_array().context("drives")?;
        paths.extend(drives.iter().map(|drive| &drive["path_on_host"]));
        let mut files = Vec::new();
        for path in paths.into_iter().filter_map(Value::as_str) {
            let inside = path.trim_start_matches('/').to_owned();
            let copy = place.join(&inside);
            copy_file(&jail.join(&inside), &copy)?;
            files.push((copy, inside));
        }
        Ok(Pair {
            name: name.to_owned(),
            log: self.environment.state().join("vms").join(id).join("console.log"),
            tap,
            parts: Parts {
                base: self.environment.base().join("bare"),
                owner: fs::metadata(jail.join("vm.json")).context("its owner")?.uid(),
                files,
                machine,
                log: place.join("log"),
            },
        })
    }

    fn socket(&self) -> PathBuf {
        self.environment.runtime().join("bangerd.sock")
    }

    /// Starts some machines at once by the daemon's own API, and stops them again.
    fn start(&self, count: usize) -> Result<Duration> {
        let pairs = &self.pairs[..count];
        let took = at_once(pairs, |pair| {
            let before = length(&pair.log);
            let began = Instant::now();
            let path = format!("/v1/vms/{}/start", pair.name);
            let started = api::send(&self.socket(), "POST", &path, None)?.json()?;
            wait_for_word(&pair.log, before)?;
            Ok((began, Instant::now(), started))
        })?;
        for (_, _, started) in &took {
            api::follow(&self.socket(), started, |operation| operation["state"] == "succeeded")?;
        }
        let names = pairs.iter().map(|pair| pair.name.as_str());
        self.banger(&["vm", "stop"].into_iter().chain(names).collect::<Vec<_>>()).ok();
        span(&took)
    }

    /// The same by the bare jailer.
    fn start_bare(&self, count: usize) -> Result<Duration> {
        let took = at_once(&self.pairs[..count], |pair| {
            let before = length(&pair.parts.log);
            let began = Instant::now();
            let bare = self.launch_bare(pair)?;
            wait_for_word(&pair.parts.log, before)?;
            Ok((began, Instant::now(), bare))
        })?;
        let span = span(&took)?;
        for ((_, _, bare), pair) in took.into_iter().zip(&self.pairs) {
            end_bare(bare, pair)?;
        }
        Ok(span)
    }

    fn launch_bare(&self, pair: &Pair) -> Result<Bare> {
        self.launch_parts(pair, &pair.parts)
    }

    fn launch_parts(&self, pair: &Pair, parts: &Parts) -> Result<Bare> {
        if let (Some(tap), Some(bridge)) = (&pair.tap, &self.bridge) {
            bare_tap::check_guest("add", &tap.name, &tap.mac, &tap.ip)?;
            bare_tap::create(&tap.name, bridge, parts.owner)?;
        }
        jailer::launch(parts, &pair.name)
    }

    /// Creates a machine, disks and all, and deletes it.
    fn create(&self) -> Result<Duration> {
        let began = Instant::now();
        let started = api::send(&self.socket(), "POST", "/v1/vms", Some(&self.wanted))?.json()?;
        let id = started["operation"]["vm"].as_str().context("the new machine's id")?;
        wait_for_word(&self.environment.state().join("vms").join(id).join("console.log"), 0)?;
        let took = began.elapsed();
        api::follow(&self.socket(), &started, |operation| operation["state"] == "succeeded")?;
        self.banger(&["vm", "delete", "new"]).ok();
        Ok(took)
    }

    /// The same by hand: copies of the writable disks, and the bare jailer.
    fn create_bare(&self) -> Result<Duration> {
        let pair = &self.pairs[0];
        let copied = |(from, name): &(PathBuf, String)| {
            let is_disk = ["root", "work"].iter().any(|role| name.contains(role));
            let to = if is_disk { from.with_extension("new") } else { from.clone() };
            (from.clone(), to, name.clone())
        };
        let files: Vec<_> = pair.parts.files.iter().map(copied).collect();
        ensure!(files.iter().filter(|(from, to, _)| from != to).count() == 2, "two disks");
        let mut parts = pair.parts.clone();
        parts.files = files.iter().map(|(_, to, name)| (to.clone(), name.clone())).collect();
        let before = length(&parts.log);
        let began = Instant::now();
        for (from, to, _) in files.iter().filter(|(from, to, _)| from != to) {
            copy_file(from, to)?;
        }
        let bare = self.launch_parts(pair, &parts)?;
        wait_for_word(&parts.log, before)?;
        let took = began.elapsed();
        end_bare(bare, pair)?;
        for (_, to, _) in files.iter().filter(|(from, to, _)| from != to) {
            fs::remove_file(to).context("remove a copy")?;
        }
        Ok(took)
    }
}

fn end_bare(bare: Bare, pair: &Pair) -> Result<()> {
    bare.end()?;
    let Some(tap) = &pair.tap else { return Ok(()) };
    bare_tap::delete(&tap.name)?;
    bare_tap::check_guest("delete", &tap.name, &tap.mac, &tap.ip)
}

/// Copies a file with its holes, owner and mode.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("/bin/cp");
    command.args(["--preserve=mode,ownership", "--sparse=always", "--"]).args([from, to]);
    ensure!(command.status().context("run cp")?.success(), "copy {}", from.display());
    Ok(())
}

fn length(log: &Path) -> u64 {
    fs::metadata(log).map_or(0, |found| found.len())
}

/// Waits until the guest has said its word behind the first `before` bytes.
fn wait_for_word(log: &Path, before: u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let said = || -> std::io::Result<bool> {
        let mut file = fs::File::open(log)?;
        file.seek(SeekFrom::Start(before))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes.contains(&WORD))
    };
    while !said().unwrap_or(false) {
        ensure!(Instant::now() < end, "the guest said nothing in {}", log.display());
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// When something began and when it was done, and what there is then.
type Turn<T> = (Instant, Instant, T);

/// Does something with all of them at once.
fn at_once<T: Send>(
    pairs: &[Pair],
    act: impl Fn(&Pair) -> Result<Turn<T>> + Sync,
) -> Result<Vec<Turn<T>>> {
    std::thread::scope(|scope| {
        let act = &act;
        let threads: Vec<_> = pairs.iter().map(|pair| scope.spawn(move || act(pair))).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|done| done.map_err(|_| anyhow!("a machine could not be measured"))?).collect()
    })
}

/// From the first beginning to the last end.
fn span<T>(turns: &[Turn<T>]) -> Result<Duration> {
    let first = turns.iter().map(|(began, _, _)| *began).min().context("a turn")?;
    let last = turns.iter().map(|(_, ended, _)| *ended).max().context("a turn")?;
    Ok(last - first)
}
