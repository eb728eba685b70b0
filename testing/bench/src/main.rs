//! The numbers of docs/benchmarks.md, each measured side by side with its peer
//! in one run: both take turns, so that what else the machine does hits both.
#![forbid(unsafe_code)]

mod api;
mod bare;
mod boot;
mod copy;
mod disks;
mod exec;
mod helper;
mod image;
mod jailer;
mod kernel;
mod kvm_host;
mod machines;
mod network;
mod number;
mod pull;
mod record;
mod sizes;
mod ssh;
mod workspace;

use std::any::Any;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use banger_harness::{Contents, Environment};
use clap::{Parser, ValueEnum};

use crate::kvm_host::Programs;
use crate::number::Number;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// From nothing to the end of `true` in a new guest
    Boot,
    /// Files into a guest and out of it
    Copy,
    /// One command in a running guest
    Exec,
    /// New root disks over a small and a large image, by each back end
    Disks,
    /// The root helper: its answers, taps, launches and memory; needs root
    Helper,
    /// From a tar to a finished ext4
    Image,
    /// banger's own kernel against Debian's
    Kernel,
    /// The KVM host's part of `make test`
    KvmHost,
    /// Machines under Firecracker through the daemon, one and four at once; needs root
    Machines,
    /// The guests' network: NAT and names; needs root
    Network,
    /// From an image in a registry to a finished ext4
    Pull,
    /// Memory and files
    Sizes,
    /// A repository into a guest
    Workspace,
    /// All of them
    All,
}

impl What {
    /// The parts in the order of the page; the longest is last.
    const PARTS: [Self; 13] = [
        Self::Boot,
        Self::Exec,
        Self::Copy,
        Self::Workspace,
        Self::Helper,
        Self::Machines,
        Self::Network,
        Self::Disks,
        Self::Image,
        Self::Pull,
        Self::Sizes,
        Self::Kernel,
        Self::KvmHost,
    ];

    /// The word of the command line, which is a heading of the page.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Where the real programs run; what is there ends with this process.
static PLACES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Set when this process is told to end: no other part begins.
static STOPPED: AtomicBool = AtomicBool::new(false);

#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    #[arg(value_enum, default_value = "all")]
    what: What,
    /// Write the results into docs/benchmarks.md; what is not measured now stays there
    #[arg(long)]
    record: bool,
    /// How often each side is measured
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// The package of banger's own kernel; without it, that is left out
    #[arg(long)]
    own_kernel: Option<PathBuf>,
    /// The program that runs the KVM host; without it, what is measured there is left out
    #[arg(long)]
    kvm_host: Option<PathBuf>,
    /// The program of `cargo xtask`, which runs the KVM host's tests as `make test` does
    #[arg(long)]
    xtask: Option<PathBuf>,
    /// A `bangerd` built for release with fault hooks; without it, `machines` are left out
    #[arg(long)]
    held_bangerd: Option<PathBuf>,
    /// Measure nothing: be the echo that the root helper is compared with, at this socket
    #[arg(long, hide = true, requires = "answer")]
    answer_at: Option<PathBuf>,
    /// What the echo answers
    #[arg(long, hide = true)]
    answer: Option<String>,
}

/// Prints one line.
fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// What is at a place ends with this process.
fn keep_place(base: &Path) {
    PLACES.lock().unwrap_or_else(PoisonError::into_inner).push(base.to_owned());
}

/// A place with the release build and the default image; its machines have a network of QEMU's own.
fn environment() -> Environment {
    let programs = banger_harness::repository().join("target/release");
    let environment = Environment::new(Contents::Debian).with_programs(programs);
    keep_place(environment.base());
    // The bare VMM beside it starts from the same command line, in which a tap is an open descriptor.
    environment.banger(["config", "set", "network.mode", "user"]).ok();
    environment.stop_daemon();
    environment
}

/// Makes what waits for a guest's answers.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")
}

/// A part that is left out, and why.
fn left_out(why: &str) -> Result<Vec<Number>> {
    say(format_args!("left out: {why}"));
    Ok(Vec::new())
}

/// Measures one part.
fn measure(part: What, arguments: &Arguments) -> Result<Vec<Number>> {
    match part {
        What::Boot => boot::measure(arguments.rounds),
        What::Copy => copy::measure(arguments.rounds),
        What::Exec => exec::measure(arguments.rounds),
        What::Helper => helper::measure(arguments.rounds),
        What::Disks => disks::measure(arguments.rounds, arguments.kvm_host.as_deref()),
        What::Machines => match &arguments.held_bangerd {
            Some(bangerd) => machines::measure(bangerd, arguments.rounds),
            None => left_out("machines; `cargo xtask bench machines` measures them"),
        },
        What::Network => network::measure(arguments.rounds),
        What::Image => image::measure(arguments.rounds.min(3)),
        What::Pull => pull::measure(arguments.rounds.min(3)),
        What::Sizes => sizes::measure(),
        What::Workspace => workspace::measure(arguments.rounds.min(3)),
        What::Kernel => match &arguments.own_kernel {
            Some(package) => kernel::measure(package, arguments.rounds),
            None => left_out("banger's own kernel; `cargo xtask kernel` builds it"),
        },
        What::KvmHost => match (&arguments.kvm_host, &arguments.xtask) {
            (Some(kvm_host), Some(xtask)) => kvm_host::measure(&Programs { kvm_host, xtask }),
            _ => left_out("the KVM host; `cargo xtask bench kvm-host` measures it"),
        },
        What::All => Ok(Vec::new()),
    }
}

/// Measures the parts one after the other. One that fails takes nothing from the others: what was
/// measured is shown and recorded, and then the failure is the result.
fn run(arguments: &Arguments) -> Result<()> {
    let wanted = |part: &&What| [**part, What::All].contains(&arguments.what);
    let parts: Vec<What> = What::PARTS.iter().filter(wanted).copied().collect();
    let mut measured = Vec::new();
    let mut faults = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let name = part.name();
        say(format_args!("measuring {name}, part {} of {}", at + 1, parts.len()));
        // What the parts stand on panics like a test.
        let result = std::panic::catch_unwind(|| measure(*part, arguments))
            .unwrap_or_else(|panic| bail!("{}", message_of(panic.as_ref())));
        match result {
            Ok(numbers) => {
                numbers.iter().for_each(say);
                if !numbers.is_empty() {
                    measured.push((name, numbers));
                }
            }
            // The fault is that what it used was ended.
            Err(_) if STOPPED.load(Ordering::SeqCst) => return Ok(()),
            Err(error) => {
                say(format_args!("FAILED {name}: {error:#}"));
                faults.push(format!("{name} could not be measured; FAILED above says why"));
            }
        }
    }
    if arguments.record {
        record::write(&measured)?;
    }
    let numbers = measured.iter().flat_map(|(_, numbers)| numbers);
    let over = numbers.filter(|number| !number.is_met());
    faults.extend(over.map(|number| format!("over the limit: {}", number.name)));
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

/// What a panic says.
fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").trim_end().to_owned()
}

/// Measures until it is done or this process is told to end; then nothing that it started is left.
fn run_until_told(arguments: Arguments) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (done, mut ended) = tokio::sync::oneshot::channel();
    runtime()?.block_on(async {
        let mut interrupted = signal(SignalKind::interrupt()).context("watch for Ctrl-C")?;
        let mut terminated = signal(SignalKind::terminate()).context("watch for an end")?;
        // A part's panic is told as its fault.
        std::panic::set_hook(Box::new(|_| ()));
        // It ends with the process; there is nothing to join where that is told to end.
        std::thread::spawn(move || done.send(run(&arguments)));
        tokio::select! {
            result = &mut ended => result.context("the measuring ended without a word")?,
            _ = interrupted.recv() => stopped(),
            _ = terminated.recv() => stopped(),
        }
    })
}

/// Ends what the measured places hold.
fn stopped() -> Result<()> {
    STOPPED.store(true, Ordering::SeqCst);
    let places = std::mem::take(&mut *PLACES.lock().unwrap_or_else(PoisonError::into_inner));
    for place in places.iter().filter(|place| place.exists()) {
        banger_harness::end_environment(place);
    }
    bail!("stopped; nothing is recorded")
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match (&arguments.answer_at, &arguments.answer) {
        (Some(socket), Some(answer)) => helper::answer_echoes(socket, answer),
        _ => run_until_told(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
