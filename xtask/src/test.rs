//! `cargo xtask test`: the tests, tier by tier, counted.
//!
//! A tier that runs fewer tests than `testing/floors.toml` says fails, and so
//! does a test that skipped itself for want of something this machine has.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::junit::{self, Case, Outcome};
use crate::process::{cargo, cargo_with, find_program, installed, must_succeed};
use crate::{check, fuzz, kernel, kvm_host, mutants, races, say};

/// The version that is installed where there is none.
const NEXTEST: &str = "0.9.143";

/// Where the `bangerd` with fault hooks is kept.
const FAULT_BANGERD: &str = "target/fault-hooks/bangerd";

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only this tier (may be given more than once)
    #[arg(long, value_enum)]
    tier: Vec<Tier>,
    /// Also what is too long for every change
    #[arg(long)]
    long: bool,
    /// Leave out `cargo xtask check`
    #[arg(long)]
    no_check: bool,
    /// A nextest filter that narrows the tiers; floors do not apply then
    #[arg(long)]
    filter: Option<String>,
    /// Only build what the tiers run
    #[arg(long)]
    no_run: bool,
}

/// Tests that need the same things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Tier {
    /// In-process: parsers, state machines, builders
    Pure,
    /// Real processes, sockets and file systems of this machine, no guest
    Kernel,
    /// Real Linux guests
    Guest,
    /// Inside the KVM host: systemd, device-mapper, jailed Firecracker guests; its filter is a part
    /// of a test's name
    KvmHost,
    /// The same guests under banger's own kernel, which is built first, and what only that can;
    /// with --long or by name
    OwnKernel,
}

impl Tier {
    const ALL: [Self; 5] = [Self::Pure, Self::Kernel, Self::Guest, Self::KvmHost, Self::OwnKernel];

    /// Whether a run takes the tier in that names none.
    fn is_default(self, options: &Options) -> bool {
        match self {
            Self::OwnKernel => options.long,
            // Its tests are not nextest's, and neither is its filter.
            Self::KvmHost => options.filter.is_none(),
            Self::Pure | Self::Kernel | Self::Guest => true,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Kernel => "kernel",
            Self::Guest => "guest",
            Self::KvmHost => "kvm-host",
            Self::OwnKernel => "own-kernel",
        }
    }

    /// The nextest filter that selects the tier; `testing/e2e` has a module each.
    fn filter(self) -> &'static str {
        match self {
            Self::Pure => {
                "not package(banger-e2e) and not package(banger-privileged-tests) \
                 and not binary_id(banger-kvm-host::inside) \
                 and not binary_id(/^banger-kvm-host::(tool|reboot)$/)"
            }
            // Those inside the machine are run by `banger-kvm-host`.
            Self::KvmHost => "binary_id(/^banger-kvm-host::(tool|reboot)$/)",
            Self::Kernel => {
                "package(banger-privileged-tests) \
                 or (package(banger-e2e) and not test(/^(guest|own_kernel)::/))"
            }
            Self::Guest => "package(banger-e2e) and test(/^guest::/)",
            Self::OwnKernel => "package(banger-e2e) and test(/^(guest|own_kernel)::/)",
        }
    }
}

/// The least number of executed tests per tier.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Floors {
    root: BTreeMap<String, usize>,
    user: BTreeMap<String, usize>,
}

impl Floors {
    fn read(root: &Path) -> Result<Self> {
        let path = root.join("testing/floors.toml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    fn of(&self, tier: Tier, is_root: bool) -> usize {
        let floors = if is_root { &self.root } else { &self.user };
        floors.get(tier.name()).copied().unwrap_or(0)
    }
}

/// Passed, failed and skipped tests.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Count {
    fn of(cases: &[Case]) -> Self {
        let mut count = Self::default();
        for case in cases {
            match case.outcome {
                Outcome::Passed => count.passed += 1,
                Outcome::Failed => count.failed += 1,
                Outcome::Skipped(_) => count.skipped += 1,
            }
        }
        count
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Whether this machine has what a test said it was missing.
///
/// A skip reads `SKIP: capability: more words`; a capability that is not in
/// this list is taken at the test's word.
fn is_here(reason: &str, is_root: bool) -> bool {
    let capability = reason.split([':', ' ']).next().unwrap_or_default();
    match capability {
        "root" => is_root,
        "user" => !is_root,
        "qemu" => find_program("qemu-system-x86_64").is_some(),
        "mmdebstrap" => find_program("mmdebstrap").is_some(),
        "e2fsprogs" => find_program("mke2fs").is_some() && find_program("e2fsck").is_some(),
        "busybox" => find_program("busybox").is_some(),
        "docker-registry" => {
            find_program("docker-registry").is_some() && find_program("skopeo").is_some()
        }
        "nft" => find_program("nft").is_some(),
        "strace" => find_program("strace").is_some(),
        "vmm-binaries" => banger_harness::vmm_binaries().is_some(),
        "zstd" => find_program("zstd").is_some(),
        "useradd" => is_root && find_program("useradd").is_some(),
        _ => false,
    }
}

/// Installs nextest below `target/tools` where it is missing; its folder.
pub(crate) fn nextest(root: &Path) -> Result<Option<std::path::PathBuf>> {
    installed(root, "cargo-nextest", NEXTEST)
}

/// Fetches the image and the kernel that the tests share, outside any test's
/// deadline; returns the package of the kernel. Where the mirror has a newer one by now, there is
/// none, and the test that wants it skips itself.
fn fetch_shared_images() -> Result<Option<std::path::PathBuf>> {
    banger_harness::ensure_assets()?;
    let package = banger_harness::kernel_package();
    Ok(package.inspect_err(|error| say(format_args!("no kernel package: {error:#}"))).ok())
}

/// Builds the programs that the tests start. For the crash matrix there is a second `bangerd`,
/// which fails where a test says; it is set aside, so that no other test meets it, and returned.
pub(crate) fn build_programs(
    root: &Path,
    with_fault_hooks: bool,
) -> Result<Option<std::path::PathBuf>> {
    let build = |more: &[&str]| {
        let packages = ["banger-cli", "banger-daemon", "banger-helper"];
        let packages = packages.iter().flat_map(|name| ["--package", name]);
        let mut command = cargo();
        command.args(["build", "--locked"]).args(packages).args(more).current_dir(root);
        must_succeed(&mut command)
    };
    let aside = root.join(FAULT_BANGERD);
    if with_fault_hooks {
        say("building a bangerd with fault hooks");
        build(&["--features", "banger-daemon/fault-hooks"])?;
        let folder = aside.parent().context("a folder for it")?;
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        std::fs::copy(root.join("target/debug/bangerd"), &aside)
            .with_context(|| format!("copy bangerd to {}", aside.display()))?;
    }
    say("building banger, bangerd and bangerd-root");
    build(&[])?;
    Ok(with_fault_hooks.then_some(aside))
}

/// What one run needs to know.
struct Run<'a> {
    root: &'a Path,
    tools: Option<std::path::PathBuf>,
    options: &'a Options,
    is_root: bool,
    /// What a real kernel is taken from in the pure tier, when there is a mirror anyway.
    kernel_package: Option<std::path::PathBuf>,
}

impl Run<'_> {
    /// `cargo nextest run` on the whole workspace.
    fn nextest(&self) -> Result<Command> {
        let mut command = cargo_with(self.tools.as_deref())?;
        command.args(["nextest", "run", "--workspace", "--locked"]).current_dir(self.root);
        Ok(command)
    }

    /// Builds the tests and runs none.
    fn build(&self, tiers: &[Tier]) -> Result<()> {
        if tiers.contains(&Tier::KvmHost) {
            kvm_host::test_program()?;
        }
        must_succeed(self.nextest()?.arg("--no-run"))
    }

    fn tier(&self, tier: Tier) -> Result<Vec<Case>> {
        let report = self.root.join("target/nextest").join(tier.name()).join("junit.xml");
        let _ = std::fs::remove_file(&report);
        let mut inside = Vec::new();
        if tier == Tier::KvmHost {
            inside = kvm_host::tests(&report, self.options.filter.as_deref())?;
            // The filter is for names of tests inside the machine, and not one of nextest's.
            if self.options.filter.is_some() {
                return Ok(inside);
            }
            let _ = std::fs::remove_file(&report);
        }
        let mut command = self.nextest()?;
        let mut filter = tier.filter().to_owned();
        if let Some(narrower) = &self.options.filter {
            filter = format!("({filter}) and ({narrower})");
        }
        command.args(["--no-fail-fast", "--no-tests", "pass"]);
        command.args(["--profile", tier.name(), "--filterset", &filter]);
        if tier == Tier::OwnKernel {
            command.env("BANGER_TEST_KERNEL", kernel::ensure(kernel::jobs())?.package()?);
        } else if self.options.long {
            command
                .args(["--run-ignored", "all"])
                .env("BANGER_RACE_ROUNDS", races::ALL.to_string());
        }
        if let (Tier::Pure, Some(package)) = (tier, &self.kernel_package) {
            command.env("BANGER_TEST_KERNEL_DEB", package);
        }
        if matches!(tier, Tier::Kernel | Tier::Guest) {
            command.env("BANGER_TEST_FAULT_BANGERD", self.root.join(FAULT_BANGERD));
        }
        let status = command.status().context("run cargo nextest")?;
        let cases = junit::cases(&std::fs::read_to_string(&report).unwrap_or_default());
        let failed = Count::of(&cases).failed;
        if !status.success() && failed == 0 {
            bail!("cargo nextest failed before it had run the tier {}: {status}", tier.name());
        }
        inside.extend(cases);
        Ok(inside)
    }

    /// The faults of a tier that are not failed tests.
    fn faults(&self, tier: Tier, cases: &[Case], floors: &Floors) -> Vec<String> {
        let mut faults = Vec::new();
        for case in cases {
            if let Outcome::Skipped(reason) = &case.outcome {
                say(format_args!("SKIP {}: {reason}", case.name));
                if is_here(reason, self.is_root) {
                    faults.push(format!(
                        "{} skipped although this machine can run it: {reason}",
                        case.name
                    ));
                }
            }
        }
        let count = Count::of(cases);
        let executed = count.passed + count.failed;
        // A machine that cannot have a KVM host has said so above.
        let is_elsewhere = tier == Tier::KvmHost && executed == 0 && count.skipped > 0;
        let floor = floors.of(tier, self.is_root);
        if self.options.filter.is_none() && !is_elsewhere && executed < floor {
            faults.push(format!(
                "tier {} executed {executed} tests, its floor is {floor}",
                tier.name()
            ));
        }
        faults
    }
}

/// The documentation's examples, among them those that must not compile.
fn doc_tests() -> Result<Count> {
    let output = cargo()
        .args(["test", "--quiet", "--doc", "--workspace", "--locked"])
        .output()
        .context("run cargo test --doc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut count = Count::default();
    for line in text.lines().filter(|line| line.starts_with("test result: ")) {
        let number = |what: &str| {
            let end = line.find(what).unwrap_or(0);
            line[..end]
                .split_whitespace()
                .last()
                .and_then(|word| word.parse::<usize>().ok())
                .unwrap_or(0)
        };
        count.add(Count {
            passed: number(" passed"),
            failed: number(" failed"),
            skipped: number(" ignored"),
        });
    }
    if !output.status.success() {
        say(&text);
        say(String::from_utf8_lossy(&output.stderr));
        count.failed = count.failed.max(1);
    }
    Ok(count)
}

/// Each target of the fuzzing counts as a test.
fn fuzzed(faults: &mut Vec<String>) -> Count {
    let none = Count::default();
    if let Some(hindrance) = fuzz::hindrance() {
        say(format_args!("SKIP fuzz: {hindrance}"));
        return Count { skipped: 1, ..none };
    }
    match fuzz::all(&fuzz::Options::default()) {
        Ok(passed) => Count { passed, ..none },
        Err(error) => {
            faults.push(format!("fuzz: {error:#}"));
            Count { failed: 1, ..none }
        }
    }
}

fn summary(root: &Path) -> std::path::PathBuf {
    root.join("target/test-summary.txt")
}

fn remember(root: &Path, total: Count) -> Result<()> {
    let path = summary(root);
    std::fs::write(&path, format!("{total}\n")).with_context(|| format!("write {}", path.display()))
}

/// Runs the tiers and ends with the plain count on the last line.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = crate::root()?;
    let started = Instant::now();
    let floors = Floors::read(&root)?;
    let is_root = rustix::process::geteuid().is_root();
    let mut faults = Vec::new();
    // That of an earlier run is not this one's.
    let _ = std::fs::remove_file(summary(&root));

    let mut total = Count::default();
    let mut tiers = options.tier.clone();
    if tiers.is_empty() {
        tiers.extend(Tier::ALL.iter().filter(|tier| tier.is_default(options)));
    }
    let with_fault_hooks = tiers.iter().any(|tier| *tier != Tier::Pure);
    build_programs(&root, with_fault_hooks)?;
    let mut run =
        Run { root: &root, tools: nextest(&root)?, options, is_root, kernel_package: None };
    if options.no_run {
        return run.build(&tiers);
    }
    if !options.no_check
        && let Err(error) = check::run()
    {
        total.failed += 1;
        faults.push(format!("{error:#}"));
    }
    let mut lines = Vec::new();
    let wants_images = tiers.iter().any(|tier| *tier != Tier::Pure);
    if wants_images {
        match fetch_shared_images() {
            Ok(package) => run.kernel_package = package,
            Err(error) => {
                total.failed += 1;
                faults.push(format!("{error:#}"));
            }
        }
    }
    if is_root && tiers.contains(&Tier::Kernel) {
        say("fetching firecracker and jailer for tests where they are missing");
        if let Err(error) = kvm_host::vmm_binaries() {
            total.failed += 1;
            faults.push(format!("fetch firecracker and jailer: {error:#}"));
        }
    }
    for tier in tiers {
        let began = Instant::now();
        say(format_args!("tier {}", tier.name()));
        // A tier that could not run is a failure, and takes nothing from the others.
        let cases = run.tier(tier).unwrap_or_else(|error| {
            faults.push(format!("{error:#}"));
            let name = format!("tier {}", tier.name());
            vec![Case { name, outcome: Outcome::Failed, flaky: false }]
        });
        faults.extend(run.faults(tier, &cases, &floors));
        let mut count = Count::of(&cases);
        if tier == Tier::Pure && options.filter.is_none() {
            count.add(doc_tests()?);
            if let Err(error) = mutants::of_this_commit() {
                faults.push(format!("mutants: {error:#}"));
            }
        }
        for case in cases.iter().filter(|case| case.outcome == Outcome::Failed) {
            faults.push(format!("failed: {}", case.name));
        }
        for case in cases.iter().filter(|case| case.flaky) {
            lines.push(format!("FLAKY {}: passed at a later try", case.name));
        }
        let floor = floors.of(tier, is_root);
        lines.push(format!(
            "{:<7} {count}, floor {floor}, {} s",
            tier.name(),
            began.elapsed().as_secs()
        ));
        total.add(count);
    }
    if options.long && options.tier.is_empty() && options.filter.is_none() {
        let count = fuzzed(&mut faults);
        lines.push(format!("fuzz    {count}"));
        total.add(count);
    }
    for line in &lines {
        say(line);
    }
    for fault in &faults {
        say(format_args!("FAULT {fault}"));
    }
    // A fault that is no failed test still makes the run fail, and is counted.
    if total.failed == 0 {
        total.failed = faults.len();
    }
    remember(&root, total)?;
    let verdict = if total.failed == 0 { "ok" } else { "FAILED" };
    say(format_args!("Summary [{:>8.3}s] {verdict}", started.elapsed().as_secs_f64()));
    say(total);
    if total.failed > 0 {
        bail!("{} faults", faults.len().max(total.failed));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_for_want_of_what_is_here_is_a_fault() {
        assert!(is_here("root: mounts a tmpfs", true));
        assert!(!is_here("root: mounts a tmpfs", false));
        assert!(is_here("user", false));
        assert!(!is_here("kvm: no vmx", true));
        assert!(!is_here("", true));
    }

    #[test]
    fn floors_are_per_tier_and_user() {
        let floors: Floors = toml::from_str("[root]\npure = 3\n[user]\npure = 2\n").unwrap();
        assert_eq!(floors.of(Tier::Pure, true), 3);
        assert_eq!(floors.of(Tier::Pure, false), 2);
        assert_eq!(floors.of(Tier::Guest, false), 0);
        assert!(toml::from_str::<Floors>("[root]\n[user]\n[other]\n").is_err());
    }

    #[test]
    fn the_floors_of_this_repository_name_known_tiers() {
        let floors = Floors::read(&crate::root().unwrap()).unwrap();
        for name in floors.root.keys().chain(floors.user.keys()) {
            assert!(Tier::ALL.iter().any(|tier| tier.name() == name), "{name}");
        }
    }
}
