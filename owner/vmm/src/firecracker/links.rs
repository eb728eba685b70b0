//! The taps of the network that the daemon is in, and whose they are, by rtnetlink(7).
//!
//! sysfs shows the network in which it was mounted, which may be another; `/proc/self/net/dev` shows
//! the right one and no owners.

use std::collections::BTreeMap;
use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Messages and attributes of `<linux/rtnetlink.h>`, `<linux/if_link.h>` and, of taps,
/// `<linux/if_tun.h>` (Linux 4.17).
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;
const NAME: u16 = 3;
const MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const TUN_OWNER: u16 = 1;
/// The bits of an attribute's type that say which it is.
const TYPE: u16 = 0x3fff;
/// `struct nlmsghdr` and `struct ifinfomsg`.
const HEADER: usize = 16;
const LINK: usize = 16;

/// A tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tap {
    pub(super) name: String,
    /// Who may open it; not everybody's has one.
    pub(super) owner: Option<u32>,
    /// The bridge that it is a port of.
    pub(super) bridge: Option<String>,
}

/// Lists the taps of this thread's network.
pub(super) fn taps() -> io::Result<Vec<Tap>> {
    let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(family, SocketType::RAW, flags, None)?;
    rustix::net::send(&socket, &request(), SendFlags::empty())?;
    let mut links = Links::default();
    let mut buffer = vec![0_u8; 64 << 10];
    loop {
        let (length, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if !links.read(&buffer[..length])? {
            return Ok(links.taps());
        }
    }
}

fn request() -> [u8; HEADER + LINK] {
    let mut bytes = [0; HEADER + LINK];
    // In the host's byte order, as all of netlink.
    bytes[..4].copy_from_slice(&32_u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&GET_LINK.to_ne_bytes());
    bytes[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    bytes
}

#[derive(Default)]
struct Links {
    names: BTreeMap<u32, String>,
    /// Name, owner, and the bridge's index.
    taps: Vec<(String, Option<u32>, Option<u32>)>,
}

impl Links {
    /// Takes a part of the list; returns whether there is more to come.
    fn read(&mut self, mut rest: &[u8]) -> io::Result<bool> {
        let broken = || io::Error::from(io::ErrorKind::InvalidData);
        while !rest.is_empty() {
            let length = number(rest).and_then(|length| usize::try_from(length).ok());
            let length = length.ok_or_else(broken)?;
            let kind = short(rest.get(4..).unwrap_or_default()).ok_or_else(broken)?;
            let message = rest.get(HEADER..length).ok_or_else(broken)?;
            match kind {
                DONE => return Ok(false),
                ERROR => {
                    let code = number(message).map_or(0, u32::cast_signed);
                    return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                }
                NEW_LINK => self.add(message).ok_or_else(broken)?,
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(true)
    }

    fn add(&mut self, message: &[u8]) -> Option<()> {
        let index = number(message.get(4..)?)?;
        let (mut name, mut master, mut owner, mut is_tap) = (String::new(), None, None, false);
        for (kind, value) in attributes(message.get(LINK..)?) {
            match kind {
                NAME => name = text(value),
                MASTER => master = number(value),
                LINK_INFO => {
                    for (kind, value) in attributes(value) {
                        match kind {
                            INFO_KIND => is_tap = text(value) == "tun",
                            INFO_DATA => {
                                let found = attributes(value).find(|(kind, _)| *kind == TUN_OWNER);
                                owner = found.and_then(|(_, value)| number(value));
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if is_tap {
            self.taps.push((name.clone(), owner, master));
        }
        self.names.insert(index, name);
        Some(())
    }

    fn taps(self) -> Vec<Tap> {
        let Self { names, taps } = self;
        let named = taps.into_iter().map(|(name, owner, master)| {
            let bridge = master.and_then(|index| names.get(&index).cloned());
            Tap { name, owner, bridge }
        });
        named.collect()
    }
}

/// Reads attributes, each with its length and type, to the first that is not whole.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(short(rest)?);
        let kind = short(rest.get(2..)?)? & TYPE;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn short(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// A text that ends with a zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link(index: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![0; LINK];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body.extend(attributes.concat());
        message(NEW_LINK, &body)
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        let length = u32::try_from(HEADER + body.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn taps_are_read_with_owner_and_bridge() {
        let tun = |owner: Option<u32>| {
            let owner = owner.map(|owner| attribute(TUN_OWNER, &owner.to_ne_bytes()));
            let data = attribute(INFO_DATA, &owner.unwrap_or_default());
            attribute(LINK_INFO | 0x8000, &[attribute(INFO_KIND, b"tun\0"), data].concat())
        };
        let bridge = attribute(LINK_INFO, &attribute(INFO_KIND, b"bridge\0"));
        let list = [
            link(
                2,
                &[
                    attribute(NAME, b"tap-a\0"),
                    attribute(MASTER, &9_u32.to_ne_bytes()),
                    tun(Some(7)),
                ],
            ),
            link(3, &[attribute(NAME, b"tap-b\0"), tun(None)]),
            link(9, &[attribute(NAME, b"br-fc\0"), bridge]),
        ]
        .concat();
        let mut links = Links::default();
        assert!(links.read(&list).unwrap());
        assert!(!links.read(&message(DONE, &[0; 4])).unwrap());
        let tap = |name: &str, owner, bridge: Option<&str>| Tap {
            name: name.to_owned(),
            owner,
            bridge: bridge.map(str::to_owned),
        };
        assert_eq!(links.taps(), [tap("tap-a", Some(7), Some("br-fc")), tap("tap-b", None, None)]);
        // What is cut off is an error or not there, and never an endless list.
        for end in 1..list.len() {
            let _ = Links::default().read(&list[..end]);
        }
        assert!(Links::default().read(&[0; 16]).is_err());
        let denied = message(ERROR, &(-1_i32).to_ne_bytes());
        let error = Links::default().read(&denied).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn this_hosts_list_comes_to_its_end() {
        let taps = taps().unwrap();
        assert!(taps.iter().all(|tap| !tap.name.is_empty()), "{taps:?}");
    }
}
