//! `banger vm top`: what running machines use, on the whole terminal, until `q`.
//!
//! The terminal is put back however this ends: both guards undo what they did when they are dropped.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use banger_agent_api::WindowSize;
use banger_daemon_api::routes;
use banger_daemon_api::stats::VmStats;
use banger_daemon_api::vm::Vm;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::{is_up, stats};
use crate::client::Client;
use crate::error::CliError;
use crate::interrupt::Interrupts;
use crate::streams::read_stdin;
use crate::terminal::{self, RawMode};
use crate::ui::Ui;
use crate::{daemon, table};

/// The alternate screen without a cursor, and back (xterm's control sequences, DECSET 1049 and 25).
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the top left (ECMA-48, CUP); each line then clears what was behind it (EL), the last all below (ED).
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Arguments of `banger vm top`.
#[derive(Args, Debug)]
#[command(after_help = "q, Esc or Ctrl-C ends it. banger vm stats --watch --json is for programs.")]
pub struct TopArgs {
    /// Seconds between measurements
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2,
        value_parser = clap::value_parser!(u16).range(1..))]
    interval: u16,
}

/// The alternate screen; the earlier one comes back when this is dropped.
struct Screen;

impl Screen {
    fn enter() -> Result<Self, CliError> {
        write(ENTER)?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write(LEAVE);
    }
}

fn write(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| CliError::output(&error))
}

/// Shows machines until it is told to end.
pub async fn run(ui: &Ui, args: &TopArgs) -> Result<(), CliError> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(CliError::usage("vm top needs a terminal")
            .hint("banger vm stats --all --json is for programs"));
    }
    let mut interrupts = Interrupts::install()?;
    let mut resized = signal(SignalKind::window_change())
        .map_err(|error| CliError::new("cannot be told of the window's size").because(&error))?;
    let client = daemon::connect(ui).await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(args.interval.into()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown = Vec::new();
    let _raw = RawMode::enter()?;
    let _screen = Screen::enter()?;
    let mut keys = read_stdin();
    loop {
        tokio::select! {
            _ = interrupts.next() => return Ok(()),
            key = keys.recv() => match key {
                Some(bytes) if !is_end(&bytes) => {}
                _ => return Ok(()),
            },
            _ = resized.recv() => write(&screen(&shown, terminal::size()))?,
            _ = ticks.tick() => {
                shown = measure(&client).await?;
                write(&screen(&shown, terminal::size()))?;
            }
        }
    }
}

/// `q`, Ctrl-C, or Esc alone: an arrow key begins with it, too.
fn is_end(bytes: &[u8]) -> bool {
    bytes == b"\x1b" || bytes.iter().any(|byte| matches!(byte, b'q' | b'Q' | 3))
}

/// Measures the machines that run; one that ends meanwhile is left out.
async fn measure(client: &Client) -> Result<Vec<VmStats>, CliError> {
    let vms: Vec<Vm> = client.get(routes::VMS).await.map_err(|error| client.explain(error))?;
    let measured = vms
        .iter()
        .filter(|vm| is_up(vm))
        .map(async |vm| client.get::<VmStats>(&routes::vm(&(&vm.id).into(), "/stats")).await.ok());
    Ok(futures::future::join_all(measured).await.into_iter().flatten().collect())
}

/// Draws what fits.
fn screen(machines: &[VmStats], size: WindowSize) -> String {
    let heading = ["NAME", "STATE", "CPU", "MEM", "OF", "GUEST MEM", "LOAD", "PROCS", "DISK"];
    let rows: Vec<[String; 9]> = machines.iter().map(row).collect();
    let table = table::table(heading, &rows);
    let (columns, lines) = (usize::from(size.columns), usize::from(size.rows));
    let title = format!("banger: {} running, q ends", machines.len());
    let mut all: Vec<&str> = vec![&title, ""];
    all.extend(table.lines());
    let hidden = format!("... and {} more", (all.len() + 1).saturating_sub(lines));
    if all.len() > lines {
        all.truncate(lines.saturating_sub(1));
        all.push(&hidden);
    }
    let drawn: Vec<String> = all
        .into_iter()
        .map(|line| line.chars().take(columns).collect::<String>() + CLEAR_LINE)
        .collect();
    // No line end after the last one, which could scroll the screen.
    format!("{HOME}{}{CLEAR_BELOW}", drawn.join("\r\n"))
}

fn row(machine: &VmStats) -> [String; 9] {
    let host = machine.host.as_ref();
    let guest = machine.guest.as_ref();
    [
        machine.name.to_string(),
        machine.state.to_string(),
        host.map(stats::cpu).unwrap_or_default(),
        host.map(|host| table::size(host.memory_bytes)).unwrap_or_default(),
        host.map(|host| table::size(host.memory_limit_bytes)).unwrap_or_default(),
        guest
            .map(|guest| stats::used(guest.memory_total_bytes, guest.memory_available_bytes))
            .unwrap_or_default(),
        guest.map(stats::load).unwrap_or_default(),
        guest.map(|guest| guest.processes.to_string()).unwrap_or_default(),
        table::size(machine.disks.iter().map(|disk| disk.allocated).sum()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(name: &str) -> VmStats {
        serde_json::from_value(serde_json::json!({
            "id": "0123456789abcdef0123456789abcdef", "name": name, "state": "running",
            "measured_at": "1970-01-01T00:00:00Z",
            "host": {
                "pid": 7, "cpu_time_ms": 12_034, "cpu_milli": 1504, "vcpus": 2,
                "memory_bytes": 268_435_456, "memory_limit_bytes": 1_073_741_824,
            },
            "guest": {
                "load_milli": 1234, "processes": 60,
                "memory_total_bytes": 1_073_741_824, "memory_available_bytes": 805_306_368,
                "root_total_bytes": 8_589_934_592_u64, "root_free_bytes": 7_516_192_768_u64,
                "work_total_bytes": 8_589_934_592_u64, "work_free_bytes": 8_589_934_592_u64,
            },
            "disks": [],
        }))
        .unwrap()
    }

    fn lines(machines: &[VmStats], columns: u16, rows: u16) -> Vec<String> {
        let drawn = screen(machines, WindowSize { columns, rows });
        let text = drawn.strip_prefix(HOME).unwrap().strip_suffix(CLEAR_BELOW).unwrap();
        text.split("\r\n").map(|line| line.strip_suffix(CLEAR_LINE).unwrap().to_owned()).collect()
    }

    #[test]
    fn machines_are_drawn() {
        insta::assert_snapshot!(lines(&[machine("box")], 100, 30).join("\n"), @r"
        banger: 1 running, q ends

        NAME  STATE    CPU    MEM   OF  GUEST MEM  LOAD  PROCS  DISK
        box   running  150 %  256M  1G  256M       1.23  60     0B
        ");
    }

    #[test]
    fn nothing_is_drawn_beyond_the_window() {
        let many: Vec<VmStats> = (0..20).map(|n| machine(&format!("box-{n}"))).collect();
        for (columns, rows) in [(80, 24), (20, 5), (1, 1), (200, 23)] {
            let lines = lines(&many, columns, rows);
            assert!(lines.len() <= usize::from(rows), "{columns} {rows}");
            assert!(lines.iter().all(|line| line.chars().count() <= usize::from(columns)));
        }
        assert_eq!(lines(&many, 80, 6).last().unwrap(), "... and 18 more");
        assert_eq!(lines(&many, 80, 23).len(), 23);
    }

    #[test]
    fn what_ends_it() {
        for (keys, ends) in
            [(&b"q"[..], true), (b"\x03", true), (b"\x1b", true), (b"\x1b[A", false), (b"x", false)]
        {
            assert_eq!(is_end(keys), ends, "{keys:?}");
        }
    }
}
