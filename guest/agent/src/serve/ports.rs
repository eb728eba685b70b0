//! Listening sockets, from /proc/net.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use banger_agent_api::{ListeningPort, PortProtocol, PortsReply};

/// Most sockets reported.
const MOST: usize = 4096;

/// Socket states of include/net/tcp_states.h as /proc/net prints them.
const TCP_LISTEN: &str = "0A";
/// An unconnected UDP socket.
const UDP_UNCONNECTED: &str = "07";

type Socket = (PortProtocol, IpAddr, u16, u64);

/// Returns the sockets that accept connections or datagrams, with their inodes.
fn sockets() -> Vec<Socket> {
    let mut sockets = Vec::new();
    for (file, protocol, state) in [
        ("/proc/net/tcp", PortProtocol::Tcp, TCP_LISTEN),
        ("/proc/net/tcp6", PortProtocol::Tcp, TCP_LISTEN),
        ("/proc/net/udp", PortProtocol::Udp, UDP_UNCONNECTED),
        ("/proc/net/udp6", PortProtocol::Udp, UDP_UNCONNECTED),
    ] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let lines = text.lines().skip(1).filter_map(|line| parse(line, state));
        sockets.extend(lines.map(|(address, port, inode)| (protocol, address, port, inode)));
    }
    sockets
}

/// Returns addresses on which a port is reached from here.
pub(super) fn listeners(protocol: PortProtocol, port: u16) -> impl Iterator<Item = IpAddr> {
    let ours = move |socket: &Socket| socket.0 == protocol && socket.2 == port;
    sockets().into_iter().filter(ours).map(|(_, address, ..)| match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    })
}

/// Lists the sockets that accept connections or datagrams.
pub(super) fn listening() -> PortsReply {
    let mut sockets = sockets();
    sockets.truncate(MOST);
    let owners = if sockets.is_empty() { HashMap::new() } else { socket_owners() };
    let ports = sockets
        .into_iter()
        .map(|(protocol, address, port, inode)| ListeningPort {
            protocol,
            address,
            port,
            process: owners.get(&inode).cloned(),
        })
        .collect();
    PortsReply { ports }
}

/// Parses a line of proc_net_tcp(5): `sl local_address rem_address st ... inode`.
fn parse(line: &str, wanted_state: &str) -> Option<(IpAddr, u16, u64)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, state, inode) = (*fields.get(1)?, *fields.get(3)?, *fields.get(9)?);
    if state != wanted_state {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each group of eight digits is one word in the machine's byte order.
    let mut bytes = Vec::new();
    for group in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(group).ok()?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let address = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some((address, port, inode.parse().ok()?))
}

/// Maps socket inodes to the command name of a process that has them open.
fn socket_owners() -> HashMap<u64, String> {
    let mut owners = HashMap::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let mut name = None;
        for file in files.flatten() {
            let Ok(target) = std::fs::read_link(file.path()) else { continue };
            let inode = target
                .to_str()
                .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                let name = name.get_or_insert_with(|| {
                    std::fs::read_to_string(process.path().join("comm")).unwrap_or_default()
                });
                owners.entry(inode).or_insert_with(|| name.trim_end().to_owned());
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_net() {
        let listen = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0 0 10 0";
        assert_eq!(parse(listen, TCP_LISTEN), Some((IpAddr::from([127, 0, 0, 1]), 8080, 12345)));
        assert_eq!(parse(&listen.replace(" 0A ", " 01 "), TCP_LISTEN), None);
        for rubbish in ["", "a b c", "0: 01:zz 0 0A 0 0 0 0 0 1"] {
            assert_eq!(parse(rubbish, TCP_LISTEN), None);
        }
        let six = "0: 00000000000000000000000001000000:0016 0:0 0A 0 0 0 0 0 7";
        assert_eq!(parse(six, TCP_LISTEN), Some((IpAddr::from(Ipv6Addr::LOCALHOST), 22, 7)));
    }

    #[test]
    fn a_real_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(
            listening().ports.iter().any(|found| found.port == port && found.process.is_some())
        );
    }
}
