//! Readable names for VMs that were given none.

use banger_types::VmName;

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "bold", "brave", "brisk", "bright", "calm", "civil", "clever", "cosy",
    "crisp", "daring", "deft", "eager", "early", "fair", "fleet", "fond", "fresh", "gentle",
    "glad", "golden", "grand", "green", "happy", "hardy", "honest", "humble", "ideal", "jolly",
    "keen", "kind", "lively", "loyal", "lucky", "mellow", "merry", "mild", "modest", "neat",
    "nimble", "noble", "patient", "plain", "polite", "prime", "proud", "quick", "quiet", "rapid",
    "ready", "sharp", "shiny", "silent", "smooth", "solid", "spry", "steady", "sunny", "swift",
    "tidy", "vivid", "warm", "witty",
];

const NOUNS: [&str; 64] = [
    "acorn", "anchor", "aspen", "badger", "basil", "beacon", "beaver", "birch", "bison", "brook",
    "cedar", "clover", "comet", "coral", "crane", "delta", "ember", "falcon", "fern", "finch",
    "fjord", "garnet", "glacier", "harbor", "hazel", "heron", "island", "ivy", "jasper", "juniper",
    "kestrel", "lagoon", "lantern", "larch", "lark", "lemur", "lily", "lynx", "maple", "marten",
    "meadow", "nectar", "oak", "olive", "opal", "orchid", "osprey", "otter", "pebble", "pine",
    "plover", "quartz", "raven", "reef", "river", "robin", "sparrow", "spruce", "summit",
    "thistle", "tulip", "walnut", "willow", "wren",
];

/// Makes a name from 64 random bits: `adjective-noun`, and with `numbered` a number behind it, for
/// when the short ones are taken.
pub(crate) fn generate(random: u64, numbered: bool) -> VmName {
    let pick = |shift: u32| usize::try_from((random >> shift) & 63).unwrap_or_default();
    let mut name = format!("{}-{}", ADJECTIVES[pick(0)], NOUNS[pick(6)]);
    if numbered {
        name.push_str(&format!("-{}", (random >> 12) & 0xffff));
    }
    name.parse().unwrap_or_else(|_| unreachable!("the words are lower-case letters"))
}

/// Returns 64 random bits.
pub(crate) fn random() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    // Some bits of a version 4 UUID are fixed; not in the low half's first 48.
    high ^ low.rotate_left(17)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_word_makes_a_valid_name_and_is_there_once() {
        for index in 0..64_u64 {
            generate(index | index << 6, true);
        }
        assert_eq!(ADJECTIVES.iter().collect::<BTreeSet<_>>().len(), 64);
        assert_eq!(NOUNS.iter().collect::<BTreeSet<_>>().len(), 64);
    }

    #[test]
    fn names_vary() {
        let names: BTreeSet<_> = (0..100).map(|_| generate(random(), false)).collect();
        assert!(names.len() > 50);
    }
}
