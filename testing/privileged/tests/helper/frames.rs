//! A hundred thousand frames that are malformed, or good but for what a gate refuses, from a seed.

use std::time::Duration;

use banger_gate_tables::{Expect, Places, base, fit, inputs, parameters};
use banger_helper_api::{LONGEST_FRAME, Method};
use banger_privileged_tests::running::{RunningHelper, request};

use crate::snapshot::Snapshot;
use crate::{enter_own_world, is_not_root};

const FRAMES: u32 = 100_000;
/// How many are on their way before answers are read.
const BATCH: u32 = 16;

/// A generator of which a test needs no more than that it is the same again (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

/// Changes a frame so that it cannot be a good one: its method's parameters gain a field that there
/// is not, and then anything may happen to the bytes.
fn malformed(random: &mut Random, frames: &[String]) -> Vec<u8> {
    let frame = &frames[random.below(frames.len())];
    let mut bytes = frame.replacen("\"params\":{", "\"params\":{\"\\u0000\":0,", 1).into_bytes();
    for _ in 0..random.below(8) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] = random.next().to_le_bytes()[0],
            1 => bytes.truncate(at.max(1)),
            2 => bytes.insert(at, b"{}[]\",:\\0"[random.below(9)]),
            3 => drop(bytes.remove(at)),
            _ => {
                let slice = bytes[at..(at + random.below(64)).min(bytes.len())].to_vec();
                bytes.extend(slice);
            }
        }
        if bytes.is_empty() {
            bytes.push(b'x');
        }
    }
    bytes.retain(|byte| *byte != b'\n');
    bytes.push(b'\n');
    bytes
}

/// Good frames but for one value, which a gate refuses.
fn refused(places: &Places) -> Vec<String> {
    let mut frames = Vec::new();
    for &method in Method::ALL {
        for parameter in parameters(method) {
            let inputs = inputs(parameter.kind, places);
            for input in inputs.iter().filter(|input| input.expect == Expect::Refuse) {
                let mut params = base(method, places);
                fit(method, parameter.pointer, &mut params, &input.value);
                *params.pointer_mut(parameter.pointer).unwrap() = input.value.clone();
                let frame = request(method, &params);
                if frame.len() < LONGEST_FRAME {
                    frames.push(frame);
                }
            }
        }
    }
    frames
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
#[allow(clippy::print_stdout, reason = "a failure is repeated from the seed")]
fn malformed_frames_change_nothing() {
    if is_not_root() {
        return;
    }
    enter_own_world();
    let helper = RunningHelper::start();
    let given = std::env::var("BANGER_FRAMES_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| std::process::id().into());
    println!("BANGER_FRAMES_SEED={seed}");
    let mut random = Random(seed);
    let places = helper.places();
    let frames: Vec<String> =
        Method::ALL.iter().map(|method| request(*method, &base(*method, &places))).collect();
    let refused = refused(&places);
    assert!(refused.len() > 1000, "{} of the tables", refused.len());
    let mut peer = helper.connect();
    let mut send = |random: &mut Random, count: u32| {
        let mut sent = Vec::new();
        for _ in 0..count {
            if random.below(2) == 0 {
                sent.extend(malformed(random, &frames));
            } else {
                sent.extend(format!("{}\n", refused[random.below(refused.len())]).into_bytes());
            }
        }
        peer.send(&sent).unwrap();
        for _ in 0..count {
            let answer = peer.answer().expect("an answer");
            assert_eq!(answer["ok"], false, "{answer}");
        }
    };
    send(&mut random, BATCH);
    let before = Snapshot::take(&helper.directories);
    let (memory, open) = (resident_kib(helper.pid()), descriptors(helper.pid()));
    for _ in 0..FRAMES / BATCH {
        send(&mut random, BATCH);
    }
    assert_eq!(before, Snapshot::take(&helper.directories));
    // What the last request had open is closed after its answer.
    banger_harness::wait_for("what was opened is closed", Duration::from_secs(10), || {
        (descriptors(helper.pid()) <= open).then_some(())
    });
    let grown = resident_kib(helper.pid()).saturating_sub(memory);
    assert!(grown < 1024, "{grown} KiB more than {memory}");
    assert!(!helper.log().contains("panicked"));
}
