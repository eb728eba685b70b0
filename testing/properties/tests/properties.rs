//! The properties of gates and frames on the tables and on what comes near them; and that each gate
//! is fuzzed.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends by it")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use banger_properties::{GATES, frames, seeds, targets};

/// How often each seed is changed.
const ROUNDS: usize = 100;

/// A small, repeatable stream of numbers (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end).unwrap()).unwrap()
    }

    /// Changes bytes, leaves some out, doubles some, and takes some from another.
    fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len() + 1);
        let end = (at + self.below(4)).min(bytes.len());
        match self.below(4) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.insert(at, u8::try_from(self.below(256)).unwrap()),
            2 => bytes.extend_from_within(at..end),
            _ => {
                let from = self.below(other.len() + 1);
                bytes.splice(at..end, other[from..].iter().take(3).copied());
            }
        }
    }
}

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

#[test]
fn every_gate_of_the_trust_list_is_here_and_fuzzed() {
    let page = include_str!("../../../docs/privileges.md");
    let (_, section) = page.split_once("## The trust list\n").unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let named = rows.map(|row| row.split('|').nth(1).unwrap());
    let named: BTreeSet<&str> = named.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let here: BTreeSet<&str> = GATES.iter().map(|gate| gate.name).collect();
    assert_eq!(named, here);
    assert!(here.len() > 20);

    let manifest = std::fs::read_to_string(folder("fuzz/Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let programs = manifest["bin"].as_array().unwrap().iter();
    let fuzzed: BTreeSet<String> =
        programs.map(|program| program["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(fuzzed, targets().into_iter().collect());
    for target in &fuzzed {
        let source = folder(&format!("fuzz/fuzz_targets/{target}.rs"));
        let source = std::fs::read_to_string(source).unwrap();
        assert!(source.contains(&format!("target!({target});")), "{target}: {source}");
        assert!(!seeds(target).is_empty(), "{target} begins with nothing");
    }
}

#[test]
fn gates_say_what_their_rules_say() {
    let mut numbers = Numbers(0x5eed);
    for gate in GATES {
        let seeds = seeds(&gate.target());
        let outcomes: Vec<Option<bool>> = seeds.iter().map(|seed| (gate.check)(seed)).collect();
        for outcome in [true, false] {
            assert!(outcomes.contains(&Some(outcome)), "{}: no input is {outcome}", gate.name);
        }
        for (at, seed) in seeds.iter().enumerate() {
            // Long ones are told apart by their length alone.
            for _ in 0..if seed.len() > 1000 { 1 } else { ROUNDS } {
                let mut bytes = seed.clone();
                for _ in 0..=numbers.below(3) {
                    numbers.change(&mut bytes, &seeds[(at * 7 + 1) % seeds.len()]);
                }
                (gate.check)(&bytes);
            }
        }
    }
}

#[test]
fn frames_come_to_what_they_say() {
    let mut numbers = Numbers(0xfeed);
    let seeds = seeds(frames::TARGET);
    let mut acts = 0;
    for (at, seed) in seeds.iter().enumerate() {
        acts += frames::check(seed).unwrap();
        for _ in 0..10 {
            let mut bytes = seed.clone();
            for _ in 0..=numbers.below(3) {
                numbers.change(&mut bytes, &seeds[(at * 7 + 1) % seeds.len()]);
            }
            acts += frames::check(&bytes).unwrap();
        }
    }
    assert!(acts > 100, "{acts} acts");
}

#[test]
fn archives_hold_what_they_say_also_with_flipped_bytes() {
    let mut numbers = Numbers(0xa2c);
    for seed in seeds(banger_properties::archives::TARGET) {
        banger_properties::archives::check(&seed);
        for _ in 0..300 {
            let mut bytes = seed.clone();
            for _ in 0..4 {
                let at = numbers.below(bytes.len());
                bytes[at] ^= 1 << numbers.below(8);
            }
            banger_properties::archives::check(&bytes);
        }
    }
}

#[test]
fn a_registrys_documents_are_what_they_say_however_they_are_bent() {
    for seed in seeds(banger_properties::manifests::TARGET) {
        banger_properties::manifests::check(&seed);
        for at in 0..seed.len() {
            let mut bent = seed.clone();
            bent[at] = bent[at].wrapping_add(1);
            banger_properties::manifests::check(&bent);
            banger_properties::manifests::check(&seed[..at]);
        }
    }
}

#[test]
fn name_servers_messages_come_to_what_they_say() {
    let mut numbers = Numbers(0xd45);
    let seeds = seeds(banger_properties::names::TARGET);
    let (mut inside, mut outside) = (0, 0);
    for (at, seed) in seeds.iter().enumerate() {
        for round in 0..2000 {
            let mut bytes = seed.clone();
            for _ in 0..round.min(numbers.below(4)) {
                numbers.change(&mut bytes, &seeds[(at * 7 + 1) % seeds.len()]);
            }
            if banger_properties::names::check(&bytes) {
                inside += 1;
            } else {
                outside += 1;
            }
        }
    }
    assert!(inside > 1000 && outside > 1000, "{inside} lead inside, {outside} do not");
}
