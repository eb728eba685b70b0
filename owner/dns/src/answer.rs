//! What one packet comes to. Pure.
//!
//! RFC 1034 and 1035; RFC 2308 for what is not there; RFC 6891 for EDNS; RFC 8020: nothing is below
//! a name that is not there.

use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, NS, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::zone::{Asker, Zone};

/// Seconds that an answer may be kept: a VM may be gone, or there, at the next question.
const TIME_TO_LIVE: u32 = 5;
/// The largest packet that is sent over UDP: what passes any link whole (DNS flag day 2020).
const LARGEST_PACKET: u16 = 1232;
/// A header.
const HEADER: usize = 12;
/// Each reverse zone is of so many bits, whatever the subnet's prefix, and its name has so many labels.
const REVERSE_PREFIX: u8 = 24;
const REVERSE_LABELS: usize = 5;
/// No VM can have this name.
const SERVER_NAME: &str = "_dns.vm.";

/// What a packet comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This is sent back.
    Reply(Vec<u8>),
    /// Others are asked; this is sent back if none answers.
    Forward(Vec<u8>),
    /// Nothing is said.
    Silence,
}

/// Decides about one packet.
#[must_use]
pub fn answer(zone: &Zone, asker: &Asker, packet: &[u8]) -> Outcome {
    let message = match Message::from_vec(packet) {
        Ok(message) if message.metadata.message_type == MessageType::Query => message,
        Ok(_) => return Outcome::Silence,
        Err(_) => return malformed(packet),
    };
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    let may_recurse = matches!(asker, Asker::Guest(guest) if guest.nat);
    reply.metadata.recursion_available = may_recurse;
    if let Some(edns) = &message.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(LARGEST_PACKET);
        reply.set_edns(ours);
        if edns.version() > 0 {
            reply.add_queries(message.queries.first().cloned());
            return refuse(reply, ResponseCode::BADVERS);
        }
    }
    if message.metadata.op_code != OpCode::Query {
        return refuse(reply, ResponseCode::NotImp);
    }
    let [query] = message.queries.as_slice() else {
        return refuse(reply, ResponseCode::FormErr);
    };
    reply.add_query(query.clone());
    if *asker == Asker::Stranger || query.query_class() != DNSClass::IN {
        return refuse(reply, ResponseCode::Refused);
    }
    // A transfer of the zone is nobody's.
    if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return refuse(reply, ResponseCode::Refused);
    }
    match found(zone, asker, query) {
        Found::Ours(code, records) => {
            reply.metadata.authoritative = true;
            reply.metadata.response_code = code;
            match (code, records.is_empty()) {
                (ResponseCode::NoError, false) => reply.add_answers(records),
                _ => reply.add_authorities(soa(zone, apex(query.name()))),
            };
            Outcome::Reply(bytes(&reply))
        }
        Found::Others if may_recurse => {
            reply.metadata.response_code = ResponseCode::ServFail;
            Outcome::Forward(bytes(&reply))
        }
        Found::Others => refuse(reply, ResponseCode::Refused),
    }
}

fn refuse(mut reply: Message, code: ResponseCode) -> Outcome {
    reply.metadata.response_code = code;
    if let Some(edns) = &mut reply.edns {
        edns.set_rcode_high(code.high());
    }
    Outcome::Reply(bytes(&reply))
}

fn bytes(reply: &Message) -> Vec<u8> {
    reply.to_vec().unwrap_or_default()
}

/// What cannot be read is said to be so, if it could have been a question.
fn malformed(packet: &[u8]) -> Outcome {
    let Some(header) = packet.get(..HEADER) else { return Outcome::Silence };
    if header[2] & 0x80 != 0 {
        return Outcome::Silence;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let mut reply = Message::response(id, OpCode::Query);
    reply.metadata.response_code = ResponseCode::FormErr;
    Outcome::Reply(bytes(&reply))
}

enum Found {
    /// It is for us to say, with these records.
    Ours(ResponseCode, Vec<Record>),
    /// It is not.
    Others,
}

fn found(zone: &Zone, asker: &Asker, query: &Query) -> Found {
    let wanted = query.query_type();
    let record = |data| Record::from_rdata(query.name().clone(), TIME_TO_LIVE, data);
    // `some`: what is there of another type than the one that is wanted, is said by no records.
    let some = |kind, data: Option<RData>| {
        let is_wanted = wanted == kind || wanted == RecordType::ANY;
        let data = data.filter(|_| is_wanted);
        Found::Ours(ResponseCode::NoError, data.map(record).into_iter().collect())
    };
    let none = || Found::Ours(ResponseCode::NXDomain, Vec::new());
    let at_apex = || match wanted {
        RecordType::SOA => {
            some(RecordType::SOA, soa(zone, query.name().clone()).map(|soa| soa.data))
        }
        RecordType::NS | RecordType::ANY => some(wanted, server().map(|name| RData::NS(NS(name)))),
        _ => some(RecordType::NS, None),
    };
    let labels: Vec<&[u8]> = query.name().iter().collect();
    let address = |address| Some(RData::A(A(address)));
    match labels.as_slice() {
        [.., last] if !last.eq_ignore_ascii_case(b"vm") => {}
        [_] => return at_apex(),
        [label, _] if label.eq_ignore_ascii_case(b"_dns") => {
            let gateway = zone.subnet().map(|subnet| subnet.gateway());
            return some(RecordType::A, gateway.and_then(address));
        }
        [label, _] => {
            return match zone.by_name(label, asker) {
                Some(host) => some(RecordType::A, host.address.and_then(address)),
                None => none(),
            };
        }
        [] => return Found::Others,
        _ => return none(),
    }
    if let Some(network) = reverse_zone(&labels)
        && zone.subnet().is_some_and(|subnet| subnet.overlaps(network, REVERSE_PREFIX))
    {
        return at_apex();
    }
    let Some(asked) = reverse(&labels) else { return Found::Others };
    if zone.subnet().is_none_or(|subnet| !subnet.contains(asked)) {
        return Found::Others;
    }
    if zone.subnet().is_some_and(|subnet| subnet.gateway() == asked) {
        return some(RecordType::PTR, server().map(|name| RData::PTR(PTR(name))));
    }
    match zone.by_address(asked, asker) {
        Some(host) => {
            let name = Name::from_ascii(format!("{}.vm.", host.name)).ok();
            some(RecordType::PTR, name.map(|name| RData::PTR(PTR(name))))
        }
        None => none(),
    }
}

/// Reads `0.16.172.in-addr.arpa`, a zone of 256 addresses; returns the first of them.
fn reverse_zone(labels: &[&[u8]]) -> Option<Ipv4Addr> {
    let [c, b, a, in_addr, arpa] = *labels else { return None };
    reverse(&[b"0", c, b, a, in_addr, arpa])
}

/// Reads `2.0.16.172.in-addr.arpa`.
fn reverse(labels: &[&[u8]]) -> Option<Ipv4Addr> {
    let [d, c, b, a, in_addr, arpa] = labels else { return None };
    if !in_addr.eq_ignore_ascii_case(b"in-addr") || !arpa.eq_ignore_ascii_case(b"arpa") {
        return None;
    }
    let octet = |label: &[u8]| std::str::from_utf8(label).ok()?.parse::<u8>().ok();
    Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?))
}

fn server() -> Option<Name> {
    Name::from_ascii(SERVER_NAME).ok()
}

/// Returns the zone that a name of ours is in: `vm`, or that of an address.
fn apex(name: &Name) -> Name {
    let is_vm = name.iter().next_back().is_some_and(|label| label.eq_ignore_ascii_case(b"vm"));
    name.trim_to(if is_vm { 1 } else { REVERSE_LABELS })
}

/// A zone's own record; in an answer of nothing it says how long that may be believed (RFC 2308, 3),
/// for which it must be of a zone that the name is in.
fn soa(zone: &Zone, apex: Name) -> Option<Record> {
    let contact = Name::from_ascii("root.vm.").ok()?;
    let data = SOA::new(server()?, contact, zone.serial(), 3600, 600, 86400, TIME_TO_LIVE);
    Some(Record::from_rdata(apex, TIME_TO_LIVE, RData::SOA(data)))
}
