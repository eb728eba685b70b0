//! What must hold of whatever a guest asks the name server, and of whatever a name server outside
//! answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use banger_dns::{Asker, Host, Outcome, Zone, answer, leads_inside};
use banger_types::{Subnet, VmId};

/// The name of the target.
pub const TARGET: &str = "dns";

const HEADER: usize = 12;
/// Types of records with an address, and their lengths.
const ADDRESSES: [(u16, usize); 2] = [(1, 4), (28, 16)];

fn subnet() -> Subnet {
    "10.0.0.1/24".parse().unwrap()
}

/// A message with one question for `name`, and records of a type and data each.
fn message(flags: u16, name: &str, kind: u16, records: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let count = u16::try_from(records.len()).unwrap();
    let header = [77, flags, 1, count, 0, 0];
    let mut bytes: Vec<u8> = header.iter().flat_map(|number| number.to_be_bytes()).collect();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend([kind.to_be_bytes(), [0, 1]].concat());
    for (kind, data) in records {
        // The question's name once more, by a pointer.
        bytes.extend([0xc0, 12]);
        bytes.extend([kind.to_be_bytes(), [0, 1], [0, 0], [0, 60]].concat());
        bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
    }
    bytes
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let questions = [
        ("web.vm", 1),
        ("web.vm", 255),
        ("vm", 6),
        ("vm", 252),
        ("2.0.0.10.in-addr.arpa", 12),
        ("0.0.10.in-addr.arpa", 6),
        ("example.org", 28),
    ];
    let mut seeds: Vec<Vec<u8>> =
        questions.map(|(name, kind)| message(0x0100, name, kind, &[])).to_vec();
    let alias = (5, b"\x03web\x02vm\0".to_vec());
    let mapped: Ipv6Addr = "::ffff:10.0.0.2".parse().unwrap();
    for records in [
        vec![(1, vec![9, 9, 9, 9])],
        vec![(1, vec![10, 0, 0, 2])],
        vec![alias.clone(), (1, vec![127, 0, 0, 1])],
        vec![alias, (1, vec![9, 9, 9, 9]), (28, mapped.octets().to_vec())],
        vec![(28, Ipv6Addr::LOCALHOST.octets().to_vec())],
        vec![(65, [&[0, 1, 0, 0, 4, 0, 4][..], &[10, 0, 0, 2]].concat())],
        vec![(16, b"\x04text".to_vec())],
    ] {
        seeds.push(message(0x8180, "evil.example", 1, &records));
    }
    seeds
}

/// Reads over a name and returns where it ends; what it points to is not looked at.
fn after_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0..=0xff => return bytes.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

/// The addresses of all records, by the header's own counts; none where they are not all there.
fn addresses(bytes: &[u8]) -> Option<Vec<IpAddr>> {
    let number = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let mut at = HEADER;
    for _ in 0..number(4)? {
        at = after_name(bytes, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..u32::from(number(6)?) + u32::from(number(8)?) + u32::from(number(10)?) {
        at = after_name(bytes, at)?;
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = bytes.get(at + 10..at + 10 + length)?;
        if ADDRESSES.contains(&(kind, length)) {
            let v4 = <[u8; 4]>::try_from(data).map(IpAddr::from);
            found.extend(v4.or_else(|_| <[u8; 16]>::try_from(data).map(IpAddr::from)));
        }
        at += 10 + length;
    }
    Some(found)
}

/// Whether an address is one that no name outside may have, said as plainly as can be.
fn is_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            matches!(address.octets(), [0 | 127, ..] | [169, 254, ..] | [10, 0, 0, _])
        }
        IpAddr::V6(address) => match address.segments() {
            [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                let inner = (u32::from(high) << 16) | u32::from(low);
                is_inside(Ipv4Addr::from(inner).into())
            }
            [first, ..] => (0xfe80..=0xfebf).contains(&first),
        },
    }
}

/// Holds what the name server makes of some bytes, as a question and as an answer, against what they
/// say when they are read plainly. Returns whether they are an answer that leads inside.
///
/// # Panics
/// A property does not hold.
pub fn check(data: &[u8]) -> bool {
    let zone = Zone::default();
    zone.set_subnet(subnet());
    for (number, name, nat) in [(2, "web", true), (3, "db", false)] {
        zone.add(Host {
            vm: VmId::random(),
            name: name.parse().unwrap(),
            address: Some(Ipv4Addr::new(10, 0, 0, number)),
            group: None,
            nat,
        });
    }
    for number in [1, 2, 3, 9] {
        let asker = zone.asker(Ipv4Addr::new(10, 0, 0, number).into());
        match answer(&zone, &asker, data) {
            Outcome::Silence => {}
            Outcome::Reply(reply) => {
                assert!(reply.len() <= 512 && reply[2] & 0x80 != 0, "{reply:?}");
                assert_eq!(reply[..2], data[..2]);
                // A guest sees no address but its own.
                let own = IpAddr::from([10, 0, 0, number]);
                let host = number == 1;
                let gateway = IpAddr::from([10, 0, 0, 1]);
                for address in addresses(&reply).expect("our replies are whole") {
                    assert!(host || address == own || address == gateway, "{address} for {own}");
                }
            }
            Outcome::Forward(failure) => {
                assert!(matches!(&asker, Asker::Guest(guest) if guest.nat));
                assert_eq!(failure[3] & 15, 2);
            }
        }
    }
    let leads = leads_inside(data, Some(subnet()));
    let found = addresses(data).unwrap_or_default();
    let bad: Vec<&IpAddr> = found.iter().filter(|address| is_inside(**address)).collect();
    assert!(leads || bad.is_empty(), "{bad:?} are passed on");
    leads
}
