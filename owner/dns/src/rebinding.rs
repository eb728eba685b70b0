//! Answers from outside that lead inside.
//!
//! Who owns a name outside may let it have any address. Where that is one of the bridge or of the loopback,
//! a page or a program in a guest that trusts the name talks to what is there ("DNS rebinding"). A
//! private network's own resolver may rightly answer with private addresses, so only those are meant
//! that no name outside has any business with: the guests' subnet, the host or guest itself
//! (RFC 1122, 3.2.1.3; RFC 4291, 2.5), and link-local ones (RFC 3927).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use banger_types::Subnet;
use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::SVCB;
use hickory_proto::rr::rdata::svcb::SvcParamValue;

/// Returns whether an answer has an address, in whatever record and behind whatever other names, that
/// leads inside. One that cannot be read may.
#[must_use]
pub fn leads_inside(answer: &[u8], subnet: Option<Subnet>) -> bool {
    let Ok(message) = Message::from_vec(answer) else { return true };
    let sections = [&message.answers, &message.authorities, &message.additionals];
    let mut records = sections.into_iter().flatten();
    records.any(|record| match &record.data {
        RData::A(address) => is_inside(address.0.into(), subnet),
        RData::AAAA(address) => is_inside(address.0.into(), subnet),
        RData::SVCB(service) => hints_inside(service, subnet),
        RData::HTTPS(service) => hints_inside(&service.0, subnet),
        _ => false,
    })
}

/// Addresses that a service's record has so that they need not be asked for (RFC 9460, 7.3).
fn hints_inside(service: &SVCB, subnet: Option<Subnet>) -> bool {
    service.svc_params.iter().any(|(_, value)| match value {
        SvcParamValue::Ipv4Hint(hint) => hint.0.iter().any(|it| is_inside(it.0.into(), subnet)),
        SvcParamValue::Ipv6Hint(hint) => hint.0.iter().any(|it| is_inside(it.0.into(), subnet)),
        _ => false,
    })
}

/// Whether no name outside may have an address.
fn is_inside(address: IpAddr, subnet: Option<Subnet>) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.octets()[0] == 0
                || address.is_loopback()
                || address.is_link_local()
                || subnet.is_some_and(|subnet| subnet.contains(address))
        }
        IpAddr::V6(address) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
                || inner(address).is_some_and(|inner| is_inside(inner.into(), subnet))
        }
    }
}

/// Returns the IPv4 address that an IPv6 address stands for: mapped, compatible (RFC 4291, 2.5.5) or
/// translated (RFC 6052, 2.1).
fn inner(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [prefix @ .., a, b, c, d] = address.octets();
    let is_translated = prefix == [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
    if is_translated { Some(Ipv4Addr::new(a, b, c, d)) } else { address.to_ipv4() }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey};
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS};
    use hickory_proto::rr::{Name, Record};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn answer(data: impl IntoIterator<Item = RData>) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        let records =
            data.into_iter().map(|data| Record::from_rdata(name("evil.example."), 60, data));
        message.add_answers(records);
        message.to_vec().unwrap()
    }

    fn address(text: &str) -> RData {
        match text.parse::<IpAddr>().unwrap() {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        }
    }

    #[test]
    fn addresses_inside_are_told_from_those_outside() {
        let subnet = Some("172.16.0.1/24".parse().unwrap());
        for inside in [
            "172.16.0.1",
            "172.16.0.9",
            "172.16.0.255",
            "127.0.0.1",
            "127.255.0.3",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "::1",
            "::",
            "fe80::1",
            "febf::1",
            "::ffff:127.0.0.1",
            "::ffff:172.16.0.9",
            "::172.16.0.9",
            "64:ff9b::172.16.0.9",
        ] {
            assert!(leads_inside(&answer([address(inside)]), subnet), "{inside}");
            // Behind an address that is in order, and behind another name.
            let chain = RData::CNAME(CNAME(name("web.vm.")));
            let hidden = answer([chain, address("9.9.9.9"), address(inside)]);
            assert!(leads_inside(&hidden, subnet), "{inside}");
        }
        for outside in [
            "9.9.9.9",
            "172.16.1.9",
            "10.0.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "2001:db8::1",
            "fd00::1",
            "64:ff9b::9.9.9.9",
            "::ffff:192.168.1.1",
        ] {
            assert!(!leads_inside(&answer([address(outside)]), subnet), "{outside}");
        }
        assert!(!leads_inside(&answer([address("172.16.0.9")]), None), "no bridge");
        assert!(!leads_inside(&answer([]), subnet));
    }

    #[test]
    fn other_records_and_sections_hide_none() {
        let subnet = Some("172.16.0.1/24".parse().unwrap());
        let service = |hint: Ipv4Addr| {
            let value = SvcParamValue::Ipv4Hint(IpHint(vec![A(hint)]));
            let parameters = vec![(SvcParamKey::Ipv4Hint, value)];
            RData::HTTPS(HTTPS(SVCB::new(1, name("."), parameters)))
        };
        assert!(leads_inside(&answer([service([172, 16, 0, 9].into())]), subnet));
        assert!(!leads_inside(&answer([service([9, 9, 9, 9].into())]), subnet));
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        let glue = Record::from_rdata(name("mail.example."), 60, address("127.0.0.1"));
        message.add_additional(glue);
        assert!(leads_inside(&message.to_vec().unwrap(), subnet));
        for rubbish in [&[][..], &[0; 11], &[0xff; 40]] {
            assert!(leads_inside(rubbish, subnet));
        }
    }
}
