//! A gibibyte through `cat` with flat memory on every side.

use std::io::{Read, Write};
use std::process::Stdio;

use banger_harness::{Contents, Environment};

/// Bytes that go through the guest and back.
const VOLUME: u64 = 1 << 30;
/// How much any process on the way may grow, in bytes.
const GROWTH: u64 = 24 << 20;

/// A byte of the stream by its position, so that loss and reordering show.
fn pattern(offset: u64) -> u8 {
    let word = (offset >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word.to_le_bytes()[usize::try_from(offset & 7).unwrap()]
}

fn fill(buffer: &mut [u8], offset: u64) {
    for (byte, position) in buffer.iter_mut().zip(offset..) {
        *byte = pattern(position);
    }
}

/// Resident memory of the agent in the guest, in KiB, its highest so far.
fn agent_peak(environment: &Environment) -> u64 {
    let script = "for s in /proc/[0-9]*/status; do
        if grep -q '^Name:.*banger' $s; then grep VmHWM $s; fi; done 2>/dev/null";
    let text = environment.exec("box", ["sh", "-c", script]).ok().out();
    text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

#[test]
fn a_gibibyte_goes_both_ways_with_flat_memory() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    environment.exec("box", ["cat"]).input(vec![7; 4 << 20]).ok();
    let daemon = environment.daemon().unwrap();
    let (daemon_before, agent_before) = (daemon.peak_resident().unwrap(), agent_peak(&environment));
    assert!(agent_before > 0, "the agent is a process of the guest");

    let mut command = environment.command(["vm", "exec", "box", "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let client = banger_harness::Process { pid: child.id(), command: String::new() };
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < VOLUME {
            fill(&mut buffer, offset);
            stdin.write_all(&buffer).unwrap();
            offset += buffer.len() as u64;
        }
    });
    let mut stdout = child.stdout.take().unwrap();
    let (mut buffer, mut expected) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let (mut offset, mut client_peak) = (0_u64, 0);
    loop {
        let count = stdout.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        fill(&mut expected[..count], offset);
        assert!(buffer[..count] == expected[..count], "the stream differs near byte {offset}");
        offset += count as u64;
        client_peak = client.peak_resident().unwrap_or(client_peak);
    }
    writer.join().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(offset, VOLUME);

    let (daemon_after, agent_after) = (daemon.peak_resident().unwrap(), agent_peak(&environment));
    assert!(client_peak < 48 << 20, "the client peaked at {client_peak} bytes");
    assert!(
        daemon_after < daemon_before + GROWTH,
        "bangerd grew from {daemon_before} to {daemon_after} bytes"
    );
    assert!(
        agent_after < agent_before + 2048,
        "the agent grew from {agent_before} to {agent_after} KiB"
    );
    environment.finish();
}

#[test]
fn a_slow_reader_slows_the_guest_and_nothing_piles_up() {
    let environment = Environment::new(Contents::Busybox);
    environment.start_busybox("box");
    let daemon = environment.daemon().unwrap();
    let before = daemon.peak_resident().unwrap();
    let mut command = environment.command(["vm", "exec", "box", "--", "cat", "/dev/zero"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 4096];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(3));
    // While one client does not read, another is served.
    environment.exec("box", ["echo", "served"]).ok();
    let after = daemon.peak_resident().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(after < before + GROWTH, "bangerd grew from {before} to {after} bytes");
    // The command of the client that is gone ends in the guest.
    banger_harness::wait_for("the end of the command", banger_harness::GUEST_DEADLINE, || {
        let left =
            environment.exec("box", ["sh", "-c", "ps | grep -c '[c]at /dev/zero'"]).run().out();
        (left.trim() == "0").then_some(())
    });
    environment.finish();
}
