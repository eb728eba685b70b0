//! Which subnet is free. Pure.

use std::net::Ipv4Addr;

use banger_types::Subnet;

/// A network that the host has an address in or a route to, and the length of its prefix.
pub type Taken = (Ipv4Addr, u8);

/// A shorter prefix is a default route, or half of one, as VPNs make them: it takes nothing.
const SHORTEST: u8 = 8;

/// Reads `/proc/net/fib_trie`, which has every routing table of the host, its own addresses among
/// them.
#[must_use]
pub fn taken(fib_trie: &str) -> Vec<Taken> {
    let (mut taken, mut address) = (Vec::new(), None);
    for line in fib_trie.lines().map(str::trim_start) {
        if let Some(text) = line.strip_prefix("|-- ") {
            address = text.trim().parse::<Ipv4Addr>().ok();
        } else if let (Some(leaf), Some(address)) = (line.strip_prefix('/'), address) {
            let mut words = leaf.split_whitespace();
            let prefix = words.next().and_then(|word| word.parse::<u8>().ok());
            let is_broadcast = words.any(|word| word == "BROADCAST");
            let network = prefix.filter(|prefix| !is_broadcast && (SHORTEST..=32).contains(prefix));
            taken.extend(network.map(|prefix| (address, prefix)));
        }
    }
    taken
}

/// Returns the first network that a subnet overlaps with.
#[must_use]
pub fn overlap(subnet: &Subnet, taken: &[Taken]) -> Option<Taken> {
    overlaps(subnet, taken).next()
}

/// Returns the first network beside the bridge's own that overlaps with its subnet, in the table of a
/// host that has the bridge: an address or a route of somebody else's, which came later.
#[must_use]
pub fn collision(fib_trie: &str, own: &Subnet) -> Option<Taken> {
    let own_route = (own.network(), own.prefix());
    // The local table and the main one are printed one after the other, and may be one and the same.
    let tables = fib_trie.split_inclusive('\n').fold(Vec::<String>::new(), |mut tables, line| {
        let begins = !line.starts_with(char::is_whitespace);
        match tables.last_mut().filter(|_| !begins) {
            Some(table) => table.push_str(line),
            None => tables.push(line.to_owned()),
        }
        tables
    });
    tables.iter().find_map(|table| {
        let mut routes = 0;
        overlaps(own, &taken(table)).find(|network| {
            if *network == own_route {
                // A second route to the same network is another interface's.
                routes += 1;
                return routes > 1;
            }
            *network != (own.gateway(), 32)
        })
    })
}

fn overlaps(subnet: &Subnet, taken: &[Taken]) -> impl Iterator<Item = Taken> {
    taken.iter().copied().filter(|(network, prefix)| subnet.overlaps(*network, *prefix))
}

/// Returns the free subnets, in the order in which they are tried: first the usual one, then where
/// few others are.
pub fn free(taken: &[Taken]) -> impl Iterator<Item = Subnet> {
    let near = (0..=255).map(|number| [172, 16, number, 1]);
    let far = (128..=255).map(|number| [10, 213, number, 1]);
    let home = (200..=254).map(|number| [192, 168, number, 1]);
    let candidates = near.chain(far).chain(home);
    candidates
        .filter_map(|gateway| Subnet::new(Ipv4Addr::from(gateway), 24).ok())
        .filter(|subnet| overlap(subnet, taken).is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 4
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 172.16.0.0/13 2 0 2
        |-- 172.16.0.0
           /23 link UNICAST
        |-- 172.17.0.0
           /16 link UNICAST
Local:
  +-- 127.0.0.0/8 2 0 2
     |-- 127.0.0.0
        /32 link BROADCAST
        /8 host LOCAL
     |-- 172.16.2.9
        /32 host LOCAL
Id 52:
     |-- 128.0.0.0
        /1 universe UNICAST
     |-- 172.16.3.0
        /24 universe UNICAST
";

    /// The table of a host with the bridge, and with what `more` says, in the main table and the local.
    fn with_bridge(main: &str, local: &str) -> String {
        format!(
            "Main:\n     |-- 172.16.0.0\n        /24 link UNICAST\n{main}Local:\n     |-- 172.16.0.0\n        \
             /32 link BROADCAST\n     |-- 172.16.0.1\n        /32 host LOCAL\n{local}"
        )
    }

    #[test]
    fn what_comes_later_collides_and_the_bridge_itself_does_not() {
        let own: Subnet = "172.16.0.1/24".parse().unwrap();
        let collides = |main: &str, local: &str| collision(&with_bridge(main, local), &own);
        assert_eq!(collides("", ""), None);
        assert_eq!(collides("     |-- 172.16.1.0\n        /24 link UNICAST\n", ""), None);
        let address = ([172, 16, 0, 77].into(), 32);
        assert_eq!(collides("", "     |-- 172.16.0.77\n        /32 host LOCAL\n"), Some(address));
        let same = "        /24 universe UNICAST\n";
        assert_eq!(collides(same, ""), Some(([172, 16, 0, 0].into(), 24)));
        let wider = "     |-- 172.16.0.0\n        /12 universe UNICAST\n";
        assert_eq!(collides(wider, ""), Some(([172, 16, 0, 0].into(), 12)));
        let half = "     |-- 172.16.0.128\n        /25 universe UNICAST\n";
        assert_eq!(collides(half, ""), Some(([172, 16, 0, 128].into(), 25)));
        // Without rules of its own the host has one table, printed twice.
        let one = with_bridge("", "").replace("Main:\n", "").replace("Local:\n", "");
        assert_eq!(collision(&format!("Main:\n{one}Local:\n{one}"), &own), None);
    }

    #[test]
    fn every_table_and_address_counts_and_a_default_route_does_not() {
        let expected: Vec<Taken> = [
            ([172, 16, 0, 0], 23),
            ([172, 17, 0, 0], 16),
            ([127, 0, 0, 0], 8),
            ([172, 16, 2, 9], 32),
            ([172, 16, 3, 0], 24),
        ]
        .map(|(network, prefix)| (network.into(), prefix))
        .to_vec();
        assert_eq!(taken(TRIE), expected);
        let first = free(&expected).next().unwrap();
        assert_eq!(first.to_string(), "172.16.4.1/24");
        let set: Subnet = "172.17.9.1/24".parse().unwrap();
        assert_eq!(overlap(&set, &expected), Some(([172, 17, 0, 0].into(), 16)));
        assert_eq!(free(&[]).next().unwrap().to_string(), "172.16.0.1/24");
    }

    #[test]
    fn rubbish_takes_nothing() {
        for text in ["", "/24 link UNICAST", "|-- x\n/24 link", "|-- 10.0.0.0\n/99 link\n/x\n/"] {
            assert_eq!(taken(text), [], "{text:?}");
        }
    }

    #[test]
    fn this_host_has_a_loopback() {
        let trie = std::fs::read_to_string("/proc/net/fib_trie").unwrap();
        let loopback = Ipv4Addr::LOCALHOST;
        assert!(taken(&trie).contains(&(loopback, 32)) || trie.trim().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_free_overlaps_with_nothing(
            networks in prop::collection::vec((any::<u32>(), 8_u8..=32), 0..40)
        ) {
            let taken: Vec<Taken> = networks
                .into_iter()
                .map(|(address, prefix)| (Ipv4Addr::from(address), prefix))
                .collect();
            for subnet in free(&taken).take(3) {
                let own = |address: Ipv4Addr| subnet.contains(address);
                for (network, prefix) in &taken {
                    let size = 1_u64 << (32 - u32::from(*prefix));
                    let begin = u64::from(u32::from(*network)) / size * size;
                    let theirs = |address: Ipv4Addr| {
                        (begin..begin + size).contains(&u64::from(u32::from(address)))
                    };
                    let last = u32::try_from(begin + size - 1).unwrap();
                    let begin = u32::try_from(begin).unwrap();
                    prop_assert!(!own(begin.into()) && !own(last.into()));
                    prop_assert!(!theirs(subnet.gateway()));
                }
            }
        }
    }
}
