//! The loopback interface and one static IPv4 address, by rtnetlink(7).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use banger_agent_api::StaticNetwork;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::{BootError, system_error};

/// The interface appears when its module has been loaded, which has just happened.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);

/// Brings up the loopback interface, which needs no module: the first command may use it.
pub(super) fn bring_up_loopback() -> Result<(), BootError> {
    let mut socket = Netlink::open().map_err(system_error("open", "a netlink socket"))?;
    socket.link_up(LOOPBACK_INDEX).map_err(system_error("bring up", "the loopback interface"))
}

/// Brings up the first virtio interface with `network`.
pub(super) fn configure(network: &StaticNetwork) -> Result<(), BootError> {
    let mut socket = Netlink::open().map_err(system_error("open", "a netlink socket"))?;
    let deadline = Instant::now() + PATIENCE;
    let index = loop {
        let found =
            socket.first_ethernet().map_err(system_error("list", "the network interfaces"))?;
        match found {
            Some(index) => break index,
            None if Instant::now() < deadline => std::thread::sleep(PAUSE),
            None => {
                let missing = io::Error::from(io::ErrorKind::NotFound);
                return Err(system_error("find", "a network interface")(missing));
            }
        }
    };
    let interface = || format!("network interface {index}");
    socket.link_up(index).map_err(system_error("bring up", interface()))?;
    socket
        .add_address(index, network.address, network.prefix)
        .map_err(system_error("set the address of", interface()))?;
    if let Some(gateway) = network.gateway {
        socket
            .add_default_route(index, gateway)
            .map_err(system_error("set the default route of", interface()))?;
    }
    Ok(())
}

/// The loopback interface is the first of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

// Numbers of linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h and linux/if.h.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_DONE: u16 = 3;
const RTM_GETLINK: u16 = 18;
const ARPHRD_ETHER: u16 = 1;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFF_UP: u32 = 1;
const IFLA_LINKINFO: u16 = 18;
const AF_INET: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and waits for its acknowledgement.
    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let message = encode(kind, flags | NLM_F_REQUEST | NLM_F_ACK, self.sequence, body);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = [0; 8192];
        let (count, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty())?;
        let field = |at: usize| answer[..count].get(at..at + 4)?.first_chunk::<4>().copied();
        let kind = field(4).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        match (kind, field(16).map(i32::from_ne_bytes)) {
            (Some(NLMSG_ERROR), Some(0)) => Ok(()),
            (Some(NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(-error)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Returns the Ethernet interface with the lowest index that a device of the machine has made;
    /// whatever udev calls it later, the index stays.
    fn first_ethernet(&mut self) -> io::Result<Option<u32>> {
        self.sequence += 1;
        let message = encode(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, self.sequence, &[0; 16]);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut lowest: Option<u32> = None;
        let mut answer = vec![0; 32 * 1024];
        loop {
            let (count, _) = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
            match interfaces(&answer[..count]) {
                Dump::More(index) => lowest = lowest.into_iter().chain(index).min(),
                Dump::Done(index) => return Ok(lowest.into_iter().chain(index).min()),
            }
        }
    }

    fn link_up(&mut self, index: u32) -> io::Result<()> {
        // struct ifinfomsg: family, padding, type; index; flags; change mask.
        let mut body = vec![0; 4];
        for word in [index, IFF_UP, IFF_UP] {
            body.extend_from_slice(&word.to_ne_bytes());
        }
        self.request(RTM_NEWLINK, 0, &body)
    }

    fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        // struct ifaddrmsg: family, prefix length, flags, scope; index.
        let mut body = vec![AF_INET, prefix, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        push_attribute(&mut body, IFA_LOCAL, &address.octets());
        push_attribute(&mut body, IFA_ADDRESS, &address.octets());
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    fn add_default_route(&mut self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        // struct rtmsg: family, two prefix lengths, tos, table, protocol, scope, type; flags.
        let mut body = vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST];
        body.extend_from_slice(&[0; 4]);
        push_attribute(&mut body, RTA_GATEWAY, &gateway.octets());
        push_attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }
}

/// What one datagram of a dump held: the lowest Ethernet index in it, and whether more follow.
#[derive(Debug, PartialEq, Eq)]
enum Dump {
    More(Option<u32>),
    Done(Option<u32>),
}

fn interfaces(mut datagram: &[u8]) -> Dump {
    let mut lowest: Option<u32> = None;
    while let Some(header) = datagram.first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX).max(16);
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if kind == NLMSG_DONE || kind == NLMSG_ERROR {
            return Dump::Done(lowest);
        }
        // struct ifinfomsg: family, padding, type u16, index i32, flags, change mask; attributes.
        if kind == RTM_NEWLINK
            && let Some(body) = datagram.get(16..24)
            && u16::from_ne_bytes([body[2], body[3]]) == ARPHRD_ETHER
            && !is_virtual(datagram.get(32..length).unwrap_or_default())
        {
            let index = u32::from_ne_bytes([body[4], body[5], body[6], body[7]]);
            lowest = lowest.into_iter().chain([index]).min();
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Dump::More(lowest)
}

/// Whether the attributes are those of an interface that the kernel made by itself (`dummy0`,
/// `gretap0`): built into a kernel, such drivers are there before the machine's own. Only those
/// say which kind they are.
fn is_virtual(mut attributes: &[u8]) -> bool {
    while let Some(header) = attributes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]])).max(4);
        if u16::from_ne_bytes([header[2], header[3]]) == IFLA_LINKINFO {
            return true;
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn encode(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    const HEADER: usize = 16;
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(body);
    message
}

/// Appends an attribute of four bytes of data, which needs no padding.
fn push_attribute(body: &mut Vec<u8>, kind: u16, data: &[u8; 4]) {
    body.extend_from_slice(&8u16.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_or_cut_dumps_end() {
        for bytes in [&[][..], &[0; 16], &[0xff; 40], &[255, 255, 255, 255, 16, 0, 0, 0]] {
            assert_eq!(interfaces(bytes), Dump::More(None));
        }
        let mut link = encode(RTM_NEWLINK, 0, 1, &[0, 0, 1, 0, 7, 0, 0, 0]);
        link.extend(encode(RTM_NEWLINK, 0, 1, &[0, 0, 1, 0, 3, 0, 0, 0]));
        link.extend(encode(RTM_NEWLINK, 0, 1, &[0, 0, 4, 3, 1, 0, 0, 0]));
        assert_eq!(interfaces(&link), Dump::More(Some(3)));
        // An interface of the kernel's own, and one whose attributes are cut.
        let mut dummy = vec![0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        push_attribute(&mut dummy, 3, b"dum\0");
        push_attribute(&mut dummy, IFLA_LINKINFO, &[0; 4]);
        assert_eq!(interfaces(&encode(RTM_NEWLINK, 0, 1, &dummy)), Dump::More(None));
        dummy.truncate(dummy.len() - 6);
        assert_eq!(interfaces(&encode(RTM_NEWLINK, 0, 1, &dummy)), Dump::More(Some(2)));
        link.extend(encode(NLMSG_DONE, 0, 1, &[0; 4]));
        assert_eq!(interfaces(&link), Dump::Done(Some(3)));
    }

    #[test]
    fn addresses_and_routes_are_set_in_a_network_namespace() {
        let unshared = std::process::Command::new("unshare")
            .args(["--net", "--map-root-user", "true"])
            .status();
        if !unshared.is_ok_and(|status| status.success()) {
            eprintln!("SKIP: cannot make a network namespace here");
            return;
        }
        // A namespace belongs to a thread; this one ends with the test.
        let result = std::thread::spawn(|| {
            let flags = rustix::thread::UnshareFlags::NEWNET;
            #[expect(deprecated, reason = "the safe form; only a namespace is unshared, no files")]
            if rustix::thread::unshare(flags).is_err() {
                eprintln!("SKIP: unshare in a thread needs root");
                return;
            }
            let mut netlink = Netlink::open().unwrap();
            assert_eq!(netlink.first_ethernet().unwrap(), None);
            let made = std::process::Command::new("ip")
                .args(["link", "add", "d0", "type", "dummy"])
                .status();
            if made.is_ok_and(|status| status.success()) {
                assert_eq!(netlink.first_ethernet().unwrap(), None, "it is nobody's device");
            }
            netlink.link_up(LOOPBACK_INDEX).unwrap();
            netlink.add_address(LOOPBACK_INDEX, Ipv4Addr::new(10, 9, 8, 7), 24).unwrap();
            netlink.add_address(LOOPBACK_INDEX, Ipv4Addr::new(10, 9, 8, 7), 24).unwrap();
            netlink.add_default_route(LOOPBACK_INDEX, Ipv4Addr::new(10, 9, 8, 1)).unwrap();
            assert!(netlink.link_up(99).is_err());
            assert!(netlink.add_default_route(99, Ipv4Addr::new(10, 9, 8, 1)).is_err());
            let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap();
            assert!(routes.contains("0108090A"), "{routes}");
        });
        result.join().unwrap();
    }
}
