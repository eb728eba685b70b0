//! This tier's tests: built here, run in the machine, one by one.
//!
//! The tests are ordinary ones in `tests/inside.rs`; the test program and what it needs (the VMM
//! binaries, a kernel and an initrd for nested guests) are sent to `/data`. The report has the form
//! of nextest's, which `cargo xtask test` reads for every tier.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use banger_agent_api::ExitStatus;
use banger_guest_client::AgentClient;
use banger_image::{AgentBinary, CancelFlag, KernelStore, NewKernel, NoProgress, build_initrd};

use crate::cache::{Cache, Key};
use crate::host_image;
use crate::inventory::Inventory;
use crate::kept::Kept;
use crate::machine::agent;
use crate::session::{Command, Put, put};
use crate::{host, note, vmm_binaries};

/// The test program's name in `tests/`.
const PROGRAM: &str = "inside";
/// The product's programs, which are sent too.
const PROGRAMS: [&str; 3] = ["banger", "bangerd", "bangerd-root"];
/// The feature whose `bangerd` fails where a test says, where it is set aside (where `cargo xtask test`
/// has it, too), and its name in the machine.
const FAULT_HOOKS: &str = "banger-daemon/fault-hooks";
const ASIDE: &str = "target/fault-hooks/bangerd";
const FAULTY: &str = "bangerd-faulty";
/// Where everything is sent.
const FOLDER: &str = "/data";
/// Tells what was sent last, so that it is not sent again.
const MARK: &str = "/data/.sent";
/// Names the package of banger's own kernel; `cargo xtask` sets it where that is built.
const OWN_KERNEL: &str = "BANGER_OWN_KERNEL";
/// The names of that kernel and its initrd in the machine.
const OWN_VMLINUX: &str = "own-vmlinux";
const OWN_INITRD: &str = "own-initrd";
/// A folder that is there while tests run: left by a run that was ended in the middle.
const RUNNING: &str = "/data/.running";
/// Set in the machine; the tests skip themselves where it is missing.
pub const INSIDE: &str = "BANGER_KVM_HOST";
/// How long a test may take whose name begins so; the first that fits. Four to ten times what it
/// takes on a quiet machine: nested guests run under two translators.
const LIMITS: [(&str, Duration); 9] = [
    ("crash_pairs::", Duration::from_secs(300)),
    ("nested::", Duration::from_secs(120)),
    ("installed::", Duration::from_secs(240)),
    ("machines::", Duration::from_secs(300)),
    ("orphans::", Duration::from_secs(120)),
    ("removal::", Duration::from_secs(120)),
    ("root_disk::", Duration::from_secs(120)),
    ("walls::", Duration::from_secs(300)),
    ("", Duration::from_secs(90)),
];
/// How many rounds the races have; passed on, and then each test may take as long as it needs.
const ROUNDS: &str = "BANGER_RACE_ROUNDS";
const LONG: Duration = Duration::from_secs(3600);

/// A root file system of a busybox, to import.
const BUSYBOX: &str = "busybox.tar";
/// The folder of the shared kernel, as banger keeps kernels.
const KERNELS: &str = "kernels";
/// How long a small tool in the machine may take.
const MOMENT: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Leave the machine as the first test that fails leaves it: `kvm-host shell --tests`
    #[arg(long)]
    stay: bool,
    /// Write a JUnit report
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// How a test went.
#[derive(Debug)]
struct Case {
    name: String,
    seconds: f64,
    output: String,
    /// Why it failed, if it did.
    failure: Option<String>,
    /// It left something behind, which is a failure however a second try ends.
    leaked: bool,
    /// Why it failed at its first try, where it was tried again.
    first_failure: Option<String>,
}

const PASS: &str = "PASS";
const FAIL: &str = "FAIL";
const SKIP: &str = "SKIP";

impl Case {
    fn verdict(&self) -> &'static str {
        if self.failure.is_some() {
            FAIL
        } else if self.output.lines().any(|line| line.starts_with("SKIP: ")) {
            SKIP
        } else {
            PASS
        }
    }
}

/// Runs the tests; where this machine cannot have a KVM host, says so and runs none.
pub async fn run(cache: &Cache, options: &Options) -> Result<ExitCode> {
    if let Some(reason) = host_image::impossible() {
        let output = format!("SKIP: kvm-host: {reason}\n");
        say(output.trim_end());
        let case = Case {
            name: "machine".to_owned(),
            seconds: 0.0,
            output,
            failure: None,
            leaked: false,
            first_failure: None,
        };
        report(options.report.as_deref(), &[case])?;
        return Ok(ExitCode::SUCCESS);
    }
    let binaries = vmm_binaries::ensure()?;
    let program = build()?;
    let names = names(&program, options.filter.as_deref())?;
    ensure!(!names.is_empty(), "no test of the KVM host has such a name");
    let _alone = cache.lock_tests()?;
    let sent = Sent { cache, program: &program, binaries: &binaries };
    let mut cases = Vec::new();
    // What went before is told, whatever becomes of the machine.
    if let Err(error) = run_all(&names, &sent, options.stay, &mut cases).await {
        let case = Case {
            name: "machine".to_owned(),
            seconds: 0.0,
            output: String::new(),
            failure: Some(format!("{error:#}")),
            leaked: false,
            first_failure: None,
        };
        tell(&case);
        cases.push(case);
    }
    report(options.report.as_deref(), &cases)?;
    let count = |verdict| cases.iter().filter(|case| case.verdict() == verdict).count();
    let (passed, failed, skipped) = (count(PASS), count(FAIL), count(SKIP));
    say(format_args!("kvm-host: {passed} passed, {failed} failed, {skipped} skipped"));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the tests one by one; an error is the machine's.
async fn run_all(
    names: &[String],
    sent: &Sent<'_>,
    stays: bool,
    cases: &mut Vec<Case>,
) -> Result<()> {
    let mut stage = match Stage::set(host::boot(sent.cache).await?, sent).await? {
        Some(stage) => stage,
        None => {
            note("a run of tests was ended in the middle; the machine starts afresh");
            Stage::afresh(sent).await?
        }
    };
    let mut is_left = false;
    for name in names {
        let mut case = stage.attempt(name).await;
        tell(&case);
        if case.failure.is_some() && stays {
            cases.push(case);
            is_left = true;
            break;
        }
        // What a failed test left is no other test's failure, nor that of its own second try.
        if case.failure.is_some() && !case.leaked {
            stage = match Stage::afresh(sent).await {
                Ok(stage) => stage,
                Err(error) => {
                    cases.push(case);
                    return Err(error);
                }
            };
            let first = case;
            case = stage.attempt(name).await;
            tell(&case);
            case.first_failure = first.failure;
            case.output = first.output + &case.output;
        }
        let has_failed = case.failure.is_some();
        cases.push(case);
        if has_failed {
            stage = Stage::afresh(sent).await?;
        }
    }
    if is_left {
        note("the machine is as that test left it: cargo xtask kvm-host shell --tests");
    } else {
        stage.strike().await?;
    }
    Ok(())
}

/// What every machine is given before tests run in it.
#[derive(Debug)]
struct Sent<'a> {
    cache: &'a Cache,
    program: &'a Path,
    binaries: &'a Path,
}

/// A machine that is ready for tests, and held for as long as they run.
#[derive(Debug)]
struct Stage {
    kept: Kept,
    client: AgentClient,
    before: Inventory,
}

impl Stage {
    /// Makes a machine ready; `None` if tests run in it already, or have been broken off.
    async fn set(kept: Kept, sent: &Sent<'_>) -> Result<Option<Self>> {
        let client = kept.client();
        let work = async {
            // Marks the machine as one in which tests run.
            let claim = Command::new(["/bin/mkdir", RUNNING])?;
            let (_, status) = claim.collect(&client, MOMENT).await?;
            if status != Some(ExitStatus::Code(0)) {
                return Ok(None);
            }
            send(sent, &client).await?;
            Inventory::take(&client).await.map(Some)
        };
        let before = kept.during(work).await.context("make the KVM host ready for tests")?;
        Ok(before.map(|before| Self { kept, client, before }))
    }

    /// Starts the machine anew from its saved state.
    async fn afresh(sent: &Sent<'_>) -> Result<Self> {
        let kept = host::restart(sent.cache).await?;
        let stage = Self::set(kept, sent).await?;
        stage.with_context(|| format!("the saved state of the KVM host holds {RUNNING}"))
    }

    /// Runs one test; a machine that ends meanwhile is a failure of that test.
    async fn attempt(&self, name: &str) -> Case {
        let started = Instant::now();
        let run = self.kept.during(one(&self.client, name, &self.before));
        run.await.unwrap_or_else(|error| Case {
            name: name.to_owned(),
            seconds: started.elapsed().as_secs_f64(),
            output: String::new(),
            failure: Some(format!("{error:#}")),
            leaked: false,
            first_failure: None,
        })
    }

    /// Leaves the machine to whoever tests next.
    async fn strike(self) -> Result<()> {
        let remove = Command::new(["/bin/rmdir", RUNNING])?;
        self.kept.during(remove.collect(&self.client, MOMENT)).await.map(drop)
    }
}

fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

fn tell(case: &Case) {
    say(format_args!("{} [{:>7.3}s] {}", case.verdict(), case.seconds, case.name));
    if let Some(failure) = &case.failure {
        say(format_args!("{}\n{failure}", case.output.trim_end()));
    }
}

fn cargo() -> std::process::Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    command.current_dir(banger_harness::repository());
    command
}

/// Builds the test program and the product's programs; returns the first one's path.
fn build() -> Result<PathBuf> {
    let programs = |more: &[&str]| {
        let mut programs = cargo();
        programs.args(["build", "--quiet", "--locked", "--package", "banger-cli"]);
        programs.args(["--package", "banger-daemon", "--package", "banger-helper"]).args(more);
        let status = programs.status().context("run cargo")?;
        ensure!(status.success(), "banger does not build: {status}");
        Ok(())
    };
    programs(&["--features", FAULT_HOOKS])?;
    let aside = banger_harness::repository().join(ASIDE);
    if let Some(folder) = aside.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    std::fs::copy(banger_harness::program_folder().join("bangerd"), &aside)
        .with_context(|| format!("copy bangerd to {}", aside.display()))?;
    programs(&[])?;
    let mut command = cargo();
    command.args(["test", "--no-run", "--quiet", "--locked", "--package", "banger-kvm-host"]);
    command.args(["--test", PROGRAM, "--message-format", "json"]);
    command.stderr(std::process::Stdio::inherit());
    let output = command.output().context("run cargo")?;
    ensure!(output.status.success(), "the KVM host's tests do not build: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let built = text.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == PROGRAM)
            .then(|| message["executable"].as_str().map(PathBuf::from))
            .flatten()
    });
    built.context("cargo did not say where it built the KVM host's tests")
}

/// The names of the tests; the program runs here only to tell them.
fn names(program: &Path, filter: Option<&str>) -> Result<Vec<String>> {
    let output = std::process::Command::new(program)
        .args(["--list", "--format", "terse"])
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    ensure!(output.status.success(), "the KVM host's tests cannot be listed");
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|name| filter.is_none_or(|filter| name.contains(filter)))
        .map(str::to_owned)
        .collect())
}

/// Sends what is not there yet.
async fn send(sent: &Sent<'_>, client: &AgentClient) -> Result<()> {
    let (program, binaries) = (sent.program, sent.binaries);
    let machine = host::parts(sent.cache)?;
    let kernel = machine.vmlinux.parent().context("the kernel lies in a folder")?.to_owned();
    let stripped = tempfile::tempdir().context("make a folder")?;
    let own = stripped.path().join(PROGRAM);
    std::fs::rename(strip(program, stripped.path())?, &own).context("name the test program")?;
    let mut files = vec![own, binaries.join("firecracker"), binaries.join("jailer")];
    files.extend([machine.vmlinux, machine.initrd]);
    // The initrd's name tells its content; in the machine it has one name.
    let initrd = stripped.path().join("initrd");
    std::fs::copy(files.pop().context("an initrd")?, &initrd).context("copy the initrd")?;
    files.push(initrd);
    files.extend(own_kernel(stripped.path())?);
    if let Some(rootfs) = banger_harness::busybox_rootfs() {
        files.push(stripped.path().join(BUSYBOX));
        std::fs::write(stripped.path().join(BUSYBOX), rootfs)
            .context("write a root file system")?;
    }
    files.push(stripped.path().join(FAULTY));
    let faulty = strip(&banger_harness::repository().join(ASIDE), stripped.path())?;
    std::fs::rename(faulty, stripped.path().join(FAULTY)).context("name the faulty bangerd")?;
    let folder = banger_harness::program_folder();
    for name in PROGRAMS {
        files.push(strip(&folder.join(name), stripped.path())?);
    }
    let mut key = Key::default();
    for file in &files {
        key = key.with(std::fs::read(file).with_context(|| format!("read {}", file.display()))?);
    }
    let manifest = kernel.join("manifest.json");
    let manifest =
        std::fs::read(&manifest).with_context(|| format!("read {}", manifest.display()))?;
    let key = key.with(manifest).name();
    let (mark, _) = Command::new(["/bin/cat", MARK])?.collect(client, MOMENT).await?;
    if String::from_utf8_lossy(&mark).trim() == key {
        return Ok(());
    }
    // What was sent before may be more than what is sent now.
    Command::new(["/bin/rm", "-rf", MARK, OWN_VMLINUX, OWN_INITRD])?
        .folder(FOLDER)?
        .collect(client, MOMENT)
        .await?;
    let started = Instant::now();
    let marked = stripped.path().join(".sent");
    std::fs::write(&marked, &key).context("write a mark")?;
    files.push(marked);
    let mut files: Vec<Put> =
        files.into_iter().map(|local| Put { local, remote: FOLDER.to_owned() }).collect();
    files.push(Put { local: kernel, remote: format!("{FOLDER}/{KERNELS}") });
    put(client, &files).await?;
    note(format_args!("sent the tests in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Unpacks banger's own kernel with an initrd for it, where its package is there.
fn own_kernel(folder: &Path) -> Result<Vec<PathBuf>> {
    let Some(package) = std::env::var_os(OWN_KERNEL) else { return Ok(Vec::new()) };
    let package = Path::new(&package);
    let new = NewKernel {
        name: "own".parse().context("a kernel's name")?,
        source: "cargo xtask kernel".into(),
        replace: false,
    };
    let file = std::fs::File::open(package);
    let file = file.with_context(|| format!("open {}", package.display()))?;
    let store = KernelStore::open(folder.join("kernels")).context("make a place for a kernel")?;
    let kernel = store
        .import(&new, file, None, &NoProgress, &CancelFlag::default())
        .with_context(|| format!("unpack {}", package.display()))?;
    let agent = agent()?;
    let initrd = build_initrd(&AgentBinary::new(&agent), &kernel, &folder.join("initrds"))
        .context("build the initrd of banger's own kernel")?;
    let files = [(kernel.vmlinux(), OWN_VMLINUX), (initrd, OWN_INITRD)];
    let renamed = files.map(|(from, name)| {
        let to = folder.join(name);
        std::fs::rename(&from, &to).map(|()| to)
    });
    renamed.into_iter().collect::<Result<_, _>>().context("name what is sent")
}

/// Copies the program without what only a debugger reads, if the tool for that is here.
pub fn strip(program: &Path, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(program.file_name().context("a program's name")?);
    let stripped = std::process::Command::new("strip")
        .arg("--strip-debug")
        .arg("-o")
        .arg(&path)
        .arg(program)
        .output();
    if !stripped.is_ok_and(|output| output.status.success()) {
        std::fs::copy(program, &path).with_context(|| format!("copy {}", program.display()))?;
    }
    Ok(path)
}

/// Runs one test and looks at what it left.
async fn one(client: &AgentClient, name: &str, before: &Inventory) -> Result<Case> {
    let limit = LIMITS.iter().find(|(prefix, _)| name.starts_with(prefix));
    let mut limit = limit.map_or(Duration::from_secs(90), |(_, limit)| *limit);
    let started = Instant::now();
    let mut command =
        Command::new([&format!("{FOLDER}/{PROGRAM}"), "--exact", name, "--nocapture"])?
            .folder(FOLDER)?
            .variable(INSIDE, FOLDER)?
            .variable("RUST_BACKTRACE", "1")?;
    if let Ok(rounds) = std::env::var(ROUNDS) {
        command = command.variable(ROUNDS, &rounds)?;
        limit = LONG;
    }
    let (output, status) = command.collect(client, limit).await?;
    let seconds = started.elapsed().as_secs_f64();
    let mut failure = match status {
        None => Some(format!("it took longer than {} s", limit.as_secs())),
        Some(ExitStatus::Code(0)) => None,
        Some(status) => Some(format!("it ended with {status:?}")),
    };
    let left = before.leftovers(client).await?;
    // One that failed had no chance to clean up.
    let leaked = failure.is_none() && !left.is_empty();
    if !left.is_empty() {
        let words = format!("it left behind:\n  {}", left.join("\n  "));
        failure = Some(failure.map_or_else(|| words.clone(), |failure| failure + "\n" + &words));
    }
    let output = String::from_utf8_lossy(&output).into_owned();
    Ok(Case { name: name.to_owned(), seconds, output, failure, leaked, first_failure: None })
}

/// Writes a JUnit report in the form of nextest's.
fn report(path: Option<&Path>, cases: &[Case]) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    text.push_str("  <testsuite name=\"banger-kvm-host::inside\">\n");
    for case in cases {
        let (name, output) = (escaped(&case.name), escaped(&case.output));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "    <testcase name=\"{name}\" classname=\"banger-kvm-host::inside\" time=\"{:.3}\">",
            case.seconds
        );
        if let Some(failure) = &case.failure {
            let _ = writeln!(text, "      <failure>{}</failure>", escaped(failure));
        } else if let Some(failure) = &case.first_failure {
            let _ = writeln!(text, "      <flakyFailure>{}</flakyFailure>", escaped(failure));
        }
        let _ = writeln!(text, "      <system-out>{output}</system-out>\n    </testcase>");
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Text for XML: no markup, no control characters.
fn escaped(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => result.push_str("&amp;"),
            '<' => result.push_str("&lt;"),
            '>' => result.push_str("&gt;"),
            '"' => result.push_str("&quot;"),
            '\n' | '\t' => result.push(character),
            other if other.is_control() => {}
            other => result.push(other),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_holds_no_markup_of_a_test() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/junit.xml");
        let case = |name: &str, failure: Option<&str>| Case {
            name: name.to_owned(),
            seconds: 1.0,
            output: "</system-out>\u{1b}[1m & \"x\"".to_owned(),
            failure: failure.map(str::to_owned),
            leaked: false,
            first_failure: None,
        };
        report(Some(&path), &[case("a::b", None), case("c", Some("<failure"))]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches("<testcase ").count(), 2);
        assert_eq!(text.matches("<failure").count(), 1);
        assert_eq!(text.matches("</system-out>").count(), 2);
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn every_test_has_a_limit() {
        assert_eq!(LIMITS.last().map(|(prefix, _)| *prefix), Some(""));
    }
}
