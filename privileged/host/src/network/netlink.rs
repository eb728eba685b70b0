//! Links, addresses and routes by rtnetlink(7), and rules of nf_tables: the few messages that bridges
//! and taps need, packed by hand.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use libc::{
    IFA_ADDRESS, IFA_LOCAL, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND, IFLA_LINKINFO, RTA_DST, RTA_GATEWAY, RTA_MULTIPATH, RTA_OIF, RTM_DELADDR,
    RTM_DELLINK, RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWLINK, RTN_BLACKHOLE,
    RTN_LOCAL, RTN_PROHIBIT, RTN_UNICAST, RTN_UNREACHABLE,
};
pub(super) use libc::{IFLA_ADDRESS, IFLA_IFALIAS, IFLA_MASTER};
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::{During, Result};

// <linux/netlink.h>, <linux/rtnetlink.h>
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const HEADER: usize = 16;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
/// The kernel's own bound to what it sends at once to one who asks for no more.
const LONGEST_DATAGRAM: usize = 32 << 10;

/// Parts of the kernel; the first has the number 0.
pub(super) const ROUTE: Option<Protocol> = None;
pub(super) const FIREWALL: Option<Protocol> = Some(NETFILTER);

// <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_BATCH_GENID: u16 = 1;
const NFPROTO_INET: u8 = 1;
const NFT_MSG_NEWRULE: u16 = 0xa06;
const NFT_MSG_GETRULE: u16 = 0xa07;
const NFT_MSG_DELRULE: u16 = 0xa08;
const NFT_MSG_GETGEN: u16 = 0xa10;
const NFTA_GEN_ID: u16 = 1;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_POSITION: u16 = 6;
const NFTA_RULE_USERDATA: u16 = 7;

// <linux/if_link.h>: attributes of links, of their kinds, and of ports.
pub(super) const IFLA_BR_STP_STATE: u16 = 5;
pub(super) const IFLA_BR_GROUP_FWD_MASK: u16 = 9;
pub(super) const IFLA_BRPORT_ISOLATED: u16 = 33;
pub(super) const IFLA_TUN_OWNER: u16 = 1;
pub(super) const IFLA_TUN_GROUP: u16 = 2;
pub(super) const IFLA_TUN_TYPE: u16 = 3;
pub(super) const IFLA_TUN_VNET_HDR: u16 = 5;
pub(super) const IFLA_TUN_PERSIST: u16 = 6;

/// The attributes of the kind of a part, and of what that kind has.
type Part = (u16, u16);
pub(super) const BRIDGE: Part = (IFLA_INFO_KIND, IFLA_INFO_DATA);
pub(super) const PORT: Part = (IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA);

/// A list of attributes, to be sent or as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes(BTreeMap<u16, Vec<u8>>);

impl Attributes {
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.insert(kind, value.to_vec());
        self
    }

    /// A number of one, two or four bytes.
    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        match **self.0.get(&kind)? {
            [a] => Some(a.into()),
            [a, b] => Some(u16::from_ne_bytes([a, b]).into()),
            [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d])),
            _ => None,
        }
    }

    pub(super) fn bytes(&self, kind: u16) -> &[u8] {
        self.0.get(&kind).map_or(&[], Vec::as_slice)
    }

    pub(super) fn text(&self, kind: u16) -> String {
        String::from_utf8_lossy(self.bytes(kind)).trim_end_matches('\0').to_owned()
    }

    fn address(&self, kind: u16) -> Option<Ipv4Addr> {
        <[u8; 4]>::try_from(self.bytes(kind)).ok().map(Ipv4Addr::from)
    }

    fn nested(&self, kind: u16) -> Self {
        Self::read(self.bytes(kind))
    }

    fn read(mut bytes: &[u8]) -> Self {
        let mut read = BTreeMap::new();
        while let [a, b, c, d, ..] = *bytes {
            let length = usize::from(u16::from_ne_bytes([a, b]));
            let Some(value) = bytes.get(4..length) else { break };
            // The two upper bits say "nested" and "in network order".
            read.insert(u16::from_ne_bytes([c, d]) & 0x3fff, value.to_vec());
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Self(read)
    }

    /// The bytes as they are sent.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, value) in &self.0 {
            let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
            bytes.extend(length.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }
}

/// A network interface as the kernel shows it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) is_up: bool,
    pub(super) attributes: Attributes,
    /// `bridge`, `tun`, `veth`; empty for a device without a kind.
    pub(super) kind: String,
    /// What its kind has.
    pub(super) data: Attributes,
    /// What it has as a port.
    pub(super) port: Attributes,
}

impl Link {
    fn read(body: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            body.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_ne_bytes)
        };
        let attributes = Attributes::read(body.get(16..)?);
        let info = attributes.nested(IFLA_LINKINFO);
        Some(Self {
            index: number(4)?,
            name: attributes.text(IFLA_IFNAME),
            is_up: number(8)? & IFF_UP != 0,
            kind: info.text(IFLA_INFO_KIND),
            data: info.nested(IFLA_INFO_DATA),
            port: info.nested(IFLA_INFO_SLAVE_DATA),
            attributes,
        })
    }

    /// The bridge that it is a port of.
    pub(super) fn master(&self) -> Option<u32> {
        self.attributes.number(IFLA_MASTER)
    }
}

/// An IPv4 network, or a gateway, and an interface that it is behind.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) network: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) interface: Option<u32>,
}

/// What becomes of a rule of the firewall: it goes, or goes before another of its chain.
#[derive(Debug)]
pub(super) struct Change {
    /// Its family, table and chain: `ip filter FORWARD`.
    pub(super) chain: String,
    pub(super) handle: u64,
    pub(super) before: Option<u64>,
}

/// A socket to a part of the kernel ([`ROUTE`], [`FIREWALL`]), in the network namespace of the thread.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open(part: Option<Protocol>) -> Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, part)
            .map(Self)
            .during("open", "a netlink socket")
    }

    fn send(&self, messages: &[u8]) -> Result<(), Errno> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.0, messages, SendFlags::empty(), &kernel).map(drop)
    }

    /// Sends one request and returns the bodies of what comes until the kernel says that it is done.
    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
        self.send(&message(kind, flags | NLM_F_ACK, body))?;
        let (mut answers, mut buffer) = (Vec::new(), vec![0; LONGEST_DATAGRAM]);
        loop {
            let received = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?.0;
            let mut rest = buffer.get(..received).unwrap_or_default();
            while let [a, b, c, d, e, f, ..] = *rest {
                let length = u32::from_ne_bytes([a, b, c, d]);
                let length = usize::try_from(length).map_err(|_| Errno::BADMSG)?;
                let body = rest.get(HEADER..length).ok_or(Errno::BADMSG)?;
                match u16::from_ne_bytes([e, f]) {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let code = body.get(..4).and_then(|code| code.try_into().ok());
                        return match code.map(i32::from_ne_bytes) {
                            Some(0) => Ok(answers),
                            code => Err(Errno::from_raw_os_error(-code.unwrap_or(-5))),
                        };
                    }
                    _ => answers.push(body.to_vec()),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    fn find(&self, index: u32, attributes: &Attributes) -> Result<Option<Link>, Errno> {
        let found = self.ask(RTM_GETLINK, 0, &link_body(index, 0, attributes));
        Ok(unless(found, Errno::NODEV)?.and_then(|found| Link::read(found.first()?)))
    }

    /// The interface of a name; none if there is none.
    pub(super) fn link(&self, name: &str) -> Result<Option<Link>> {
        let attributes = Attributes::default().with(IFLA_IFNAME, &terminated(name));
        self.find(0, &attributes).during("look up", name)
    }

    /// The interface of a number.
    pub(super) fn link_at(&self, index: u32) -> Result<Option<Link>> {
        self.find(index, &Attributes::default()).during("look up interface", index)
    }

    /// All interfaces.
    pub(super) fn links(&self) -> Result<Vec<Link>> {
        let answers = self.ask(RTM_GETLINK, NLM_F_DUMP, &link_body(0, 0, &Attributes::default()));
        let answers = answers.during("list", "the host's interfaces")?;
        Ok(answers.iter().filter_map(|body| Link::read(body)).collect())
    }

    /// Whether a bridge has a port.
    pub(super) fn has_ports(&self, bridge: u32) -> Result<bool> {
        Ok(self.links()?.iter().any(|link| link.master() == Some(bridge)))
    }

    /// Makes a bridge; EEXIST if the name is taken.
    pub(super) fn create_bridge(&self, name: &str, attributes: Attributes) -> Result<(), Errno> {
        let info = Attributes::default().with(IFLA_INFO_KIND, b"bridge");
        let attributes = attributes.with(IFLA_IFNAME, &terminated(name));
        let body = link_body(0, 0, &attributes.with(IFLA_LINKINFO, &info.write()));
        self.ask(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body).map(drop)
    }

    /// Changes an interface's attributes, and brings it up if `is_up`.
    pub(super) fn change(&self, index: u32, is_up: bool, new: &Attributes) -> Result<(), Errno> {
        let flags = if is_up { IFF_UP } else { 0 };
        self.ask(RTM_NEWLINK, 0, &link_body(index, flags, new)).map(drop)
    }

    /// Changes what an interface has as a bridge ([`BRIDGE`]) or as a port of one ([`PORT`]).
    pub(super) fn change_info(&self, at: u32, part: Part, data: &Attributes) -> Result<(), Errno> {
        let info = Attributes::default().with(part.0, b"bridge").with(part.1, &data.write());
        self.change(at, false, &Attributes::default().with(IFLA_LINKINFO, &info.write()))
    }

    /// Ends an interface; whether there was one.
    pub(super) fn delete(&self, index: u32) -> Result<bool, Errno> {
        let deleted = self.ask(RTM_DELLINK, 0, &link_body(index, 0, &Attributes::default()));
        Ok(unless(deleted, Errno::NODEV)?.is_some())
    }

    /// All IPv4 addresses: the interface's number, the address, the length of its prefix.
    pub(super) fn addresses(&self) -> Result<Vec<(u32, Ipv4Addr, u8)>> {
        let answers = self.ask(RTM_GETADDR, NLM_F_DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
        let answers = answers.during("list", "the host's addresses")?;
        let read = answers.iter().filter_map(|body| {
            let [AF_INET, prefix, _, _, a, b, c, d, ..] = **body else { return None };
            let attributes = Attributes::read(body.get(8..)?);
            let address = attributes.address(IFA_LOCAL).or(attributes.address(IFA_ADDRESS))?;
            Some((u32::from_ne_bytes([a, b, c, d]), address, prefix))
        });
        Ok(read.collect())
    }

    /// Adds an address to an interface.
    pub(super) fn add_address(&self, index: u32, ip: Ipv4Addr, prefix: u8) -> Result<(), Errno> {
        self.ask(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &address_body(index, ip, prefix))
            .map(drop)
    }

    /// Takes an address from an interface, which need not have it.
    pub(super) fn remove_address(&self, index: u32, ip: Ipv4Addr, prefix: u8) -> Result<(), Errno> {
        let removed = self.ask(RTM_DELADDR, 0, &address_body(index, ip, prefix));
        unless(removed, Errno::ADDRNOTAVAIL).map(drop)
    }

    /// The IPv4 routes of all tables that lead to an interface, those to the host itself included, and
    /// those that forbid the way and lead to none; and their gateways, to which no route need lead.
    pub(super) fn routes(&self) -> Result<Vec<Route>> {
        let mut body = [0; 12];
        body[0] = AF_INET;
        let answers = self.ask(RTM_GETROUTE, NLM_F_DUMP, &body);
        let answers = answers.during("list", "the host's routes")?;
        let read = answers.iter().filter_map(|body| {
            let [AF_INET, prefix, _, _, _, _, _, kind, ..] = **body else { return None };
            // Of no interest: broadcast, anycast, multicast, and what says to look elsewhere.
            let of_interest = [RTN_LOCAL, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT];
            (kind == RTN_UNICAST || of_interest.contains(&kind)).then_some(())?;
            let attributes = Attributes::read(body.get(12..)?);
            let network = attributes.address(RTA_DST).unwrap_or(Ipv4Addr::UNSPECIFIED);
            let mut hops = vec![(attributes.number(RTA_OIF), attributes.address(RTA_GATEWAY))];
            // `struct rtnexthop`: length, two bytes, the interface, attributes.
            let mut several = attributes.bytes(RTA_MULTIPATH);
            while let [a, b, _, _, c, d, e, f, ..] = *several {
                let length = usize::from(u16::from_ne_bytes([a, b])).max(8);
                let hop = Attributes::read(several.get(8..length).unwrap_or_default());
                hops.push((Some(u32::from_ne_bytes([c, d, e, f])), hop.address(RTA_GATEWAY)));
                several = several.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
            let first = usize::from(hops.len() > 1);
            Some(hops.into_iter().skip(first).flat_map(move |(interface, gateway)| {
                let gateway = gateway.map(|network| Route { network, prefix: 32, interface });
                gateway.into_iter().chain([Route { network, prefix, interface }])
            }))
        });
        Ok(read.flatten().collect())
    }

    fn ask_firewall(&self, kind: u16, body: &[u8]) -> Result<Attributes, Errno> {
        let answers = self.ask(kind, 0, body)?;
        Ok(Attributes::read(answers.first().and_then(|it| it.get(4..)).unwrap_or_default()))
    }

    /// The number of the firewall's rules as they are: every change makes it another.
    pub(super) fn generation(&self) -> Result<Vec<u8>, Errno> {
        Ok(self.ask_firewall(NFT_MSG_GETGEN, &[0; 4])?.bytes(NFTA_GEN_ID).to_vec())
    }

    /// Deletes rules, or moves them, all or none; ERESTART if they are no more of this generation.
    pub(super) fn change_rules(&self, generation: &[u8], changes: &[Change]) -> Result<(), Errno> {
        // `struct nfgenmsg` with the number of nf_tables.
        let end = message(NFNL_MSG_BATCH_END, 0, &[0, 0, 0, 10]);
        let id = Attributes::default().with(NFNL_BATCH_GENID, generation);
        let mut batch = message(NFNL_MSG_BATCH_BEGIN, 0, &[vec![0, 0, 0, 10], id.write()].concat());
        for Change { chain, handle, before } in changes {
            let mut words = chain.split(' ');
            let family = if words.next() == Some("inet") { NFPROTO_INET } else { AF_INET };
            let mut next = || terminated(words.next().unwrap_or_default());
            let place = Attributes::default().with(NFTA_RULE_TABLE, &next());
            let place = place.with(NFTA_RULE_CHAIN, &next());
            let body = |rule: Attributes| [vec![family, 0, 0, 0], rule.write()].concat();
            let old = body(place.clone().with(NFTA_RULE_HANDLE, &handle.to_be_bytes()));
            if let Some(before) = before {
                let rule = self.ask_firewall(NFT_MSG_GETRULE, &old)?;
                let mut new = place.with(NFTA_RULE_POSITION, &before.to_be_bytes());
                for kind in [NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA] {
                    new = new.with(kind, rule.bytes(kind));
                }
                batch.extend(message(NFT_MSG_NEWRULE, NLM_F_CREATE, &body(new)));
            }
            batch.extend(message(NFT_MSG_DELRULE, 0, &old));
        }
        self.send(&[batch, end].concat())?;
        // What speaks against it comes before this answer.
        self.generation().map(drop)
    }
}

/// What came of a request; nothing where the kernel does not have what it is about.
fn unless<T>(answer: Result<T, Errno>, absent: Errno) -> Result<Option<T>, Errno> {
    answer.map(Some).or_else(|errno| if errno == absent { Ok(None) } else { Err(errno) })
}

/// A request as it is sent.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// `struct ifinfomsg` and attributes; `flags` are set, none is cleared.
fn link_body(index: u32, flags: u32, attributes: &Attributes) -> Vec<u8> {
    let words = [0, index, flags, flags];
    let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    body.extend(attributes.write());
    body
}

/// `struct ifaddrmsg` and the address.
fn address_body(index: u32, ip: Ipv4Addr, prefix: u8) -> Vec<u8> {
    let mut body = vec![AF_INET, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    let attributes = Attributes::default().with(IFA_LOCAL, &ip.octets());
    body.extend(attributes.with(IFA_ADDRESS, &ip.octets()).write());
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_sent_and_a_cut_list_ends() {
        let sent = Attributes::default().with(3, b"abc\0").with(10, &7_u32.to_ne_bytes());
        let bytes = sent.write();
        let read = Attributes::read(&bytes);
        assert_eq!((read.text(3), read.number(10)), ("abc".to_owned(), Some(7)));
        for length in 0..bytes.len() {
            Attributes::read(&bytes[..length]);
        }
        assert!(Attributes::read(&[0, 0, 1, 0, 9, 9]).0.is_empty(), "a length below its header");
        assert!(Link::read(&[0; 15]).is_none());
    }
}
