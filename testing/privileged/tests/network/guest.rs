//! A guest made of frames.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

/// `struct virtio_net_hdr`.
const HEADER: usize = 10;
/// How long an answer may take that must come, and how long one that must not is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(250);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// What every bridge with 172.16.0.1 has.
pub const GATEWAY_MAC: [u8; 6] = [2, 0xfc, 172, 16, 0, 1];
pub const BROADCAST: [u8; 6] = [0xff; 6];

pub struct Guest {
    tap: File,
    pub mac: [u8; 6],
    pub ip: Ipv4Addr,
    /// Its bridge's.
    pub gateway_mac: [u8; 6],
    sequence: u16,
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    [header, payload.to_vec()].concat()
}

fn ping(sequence: u16) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0, 0x62, 0x67];
    packet.extend(sequence.to_be_bytes());
    packet.extend(b"banger");
    let sum = checksum(&packet).to_be_bytes();
    packet[2..4].copy_from_slice(&sum);
    packet
}

pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    // No checksum: IPv4 allows it.
    let header = [from, to, length, 0].map(u16::to_be_bytes).concat();
    [&header, payload].concat()
}

/// A SYN; its checksum is over a pseudo header, too.
fn syn(from: Ipv4Addr, to: Ipv4Addr, source: u16, port: u16) -> Vec<u8> {
    let mut segment = [source, port].map(u16::to_be_bytes).concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 6, 0, 20], &segment].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    segment[16..18].copy_from_slice(&sum);
    segment
}

pub fn arp(operation: u16, mac: [u8; 6], ip: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend(mac);
    packet.extend(ip.octets());
    packet.extend([0; 6]);
    packet.extend(to.octets());
    packet
}

impl Guest {
    pub fn new(descriptor: OwnedFd, number: u8) -> Self {
        let (mac, ip) = ([6, 0, 172, 16, 0, number], Ipv4Addr::new(172, 16, 0, number));
        let gateway_mac = GATEWAY_MAC;
        Self { tap: File::from(descriptor), mac, ip, gateway_mac, sequence: 0 }
    }

    pub fn send(&mut self, frame: &[u8]) {
        let whole = [&[0; HEADER][..], frame].concat();
        self.tap.write_all(&whole).unwrap();
    }

    /// Sends an IPv4 packet of this guest through the gateway.
    pub fn send_packet(&mut self, to: Ipv4Addr, protocol: u8, payload: &[u8]) {
        let packet = ipv4(self.ip, to, protocol, payload);
        self.send(&ethernet(self.gateway_mac, self.mac, 0x0800, &packet));
    }

    /// Waits for a frame, and answers questions for this guest's MAC meanwhile.
    pub fn wait<T>(&mut self, most: Duration, is_it: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let end = Instant::now() + most;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).unwrap();
            let mut events = [PollFd::new(&self.tap, PollFlags::IN)];
            if rustix::event::poll(&mut events, Some(&left)).unwrap() == 0 {
                return None;
            }
            let mut buffer = [0; 4096];
            let length = self.tap.read(&mut buffer).unwrap();
            let frame = &buffer[HEADER..length];
            if let Some(found) = is_it(frame) {
                return Some(found);
            }
            // Who has my address? (RFC 826: operation 1, target at byte 24 of the packet)
            if frame[12..14] == [8, 6]
                && frame[20..22] == [0, 1]
                && frame[38..42] == self.ip.octets()
            {
                let asker: [u8; 6] = frame[6..12].try_into().unwrap();
                let to: [u8; 4] = frame[28..32].try_into().unwrap();
                let answer = arp(2, self.mac, self.ip, to.into());
                self.send(&ethernet(asker, self.mac, 0x0806, &answer));
            }
        }
    }

    /// Sends a ping in a frame of one's own making and waits for the answer from `to`.
    pub fn pings_as(&mut self, mac: [u8; 6], ip: Ipv4Addr, to: Ipv4Addr, most: Duration) -> bool {
        self.sequence += 1;
        let sequence = self.sequence;
        let packet = ipv4(ip, to, 1, &ping(sequence));
        self.send(&ethernet(self.gateway_mac, mac, 0x0800, &packet));
        let is_answer = |frame: &[u8]| {
            let is_it = frame.len() >= 42
                && frame[12..14] == [8, 0]
                && frame[26..30] == to.octets()
                && frame[34] == 0
                && frame[40..42] == sequence.to_be_bytes();
            is_it.then_some(())
        };
        self.wait(most, is_answer).is_some()
    }

    /// Whether a ping through the gateway is answered, where it should be. Like ping(8) it asks
    /// more than once: the first packet after a change of route ends the old connection.
    pub fn reaches(&mut self, to: &str) -> bool {
        let to = to.parse().unwrap();
        (0..20).any(|_| self.pings_as(self.mac, self.ip, to, PATIENCE / 20))
    }

    /// The same where it should not be.
    pub fn is_kept_from(&mut self, to: &str) -> bool {
        !self.pings_as(self.mac, self.ip, to.parse().unwrap(), SHORT)
    }

    /// Whether the other guest gets a frame of this one's, sent straight to it.
    pub fn is_heard_by(&mut self, other: &mut Self, should: bool) -> bool {
        self.sequence += 1;
        let mark = [self.ip.octets()[3], 0xbe, self.sequence.to_be_bytes()[1]];
        let packet = ipv4(self.ip, other.ip, 17, &udp(9, 9, &mark));
        self.send(&ethernet(other.mac, self.mac, 0x0800, &packet));
        let heard = |frame: &[u8]| frame.ends_with(&mark).then_some(());
        other.wait(if should { PATIENCE } else { SHORT }, heard).is_some()
    }

    /// Whether a frame of any making that ends in `mark` comes out at the other guest.
    pub fn frame_arrives(&mut self, frame: &[u8], other: &mut Self, mark: &[u8]) -> bool {
        self.send(frame);
        other.wait(SHORT, |frame| frame.ends_with(mark).then_some(())).is_some()
    }

    /// Sends a UDP question and returns the answer's payload.
    pub fn asks(&mut self, to: Ipv4Addr, port: u16, should: bool) -> Option<Vec<u8>> {
        self.sequence += 1;
        let source = 40_000 + self.sequence;
        self.send_packet(to, 17, &udp(source, port, b"who?"));
        let is_answer = |frame: &[u8]| {
            let is_it = frame.len() >= 42
                && frame[12..14] == [8, 0]
                && frame[23] == 17
                && frame[26..30] == to.octets()
                && frame[34..36] == port.to_be_bytes()
                && frame[36..38] == source.to_be_bytes();
            is_it.then(|| frame[42..].to_vec())
        };
        self.wait(if should { PATIENCE } else { SHORT }, is_answer)
    }

    /// Whether a TCP connection would be accepted there.
    pub fn connects(&mut self, to: Ipv4Addr, port: u16, should: bool) -> bool {
        self.sequence += 1;
        let source = 50_000 + self.sequence;
        let segment = syn(self.ip, to, source, port);
        self.send_packet(to, 6, &segment);
        let is_accepted = |frame: &[u8]| {
            let is_it = frame.len() >= 54
                && frame[12..14] == [8, 0]
                && frame[23] == 6
                && frame[26..30] == to.octets()
                && frame[34..36] == port.to_be_bytes()
                && frame[36..38] == source.to_be_bytes()
                && frame[47] & 0x12 == 0x12;
            is_it.then_some(())
        };
        self.wait(if should { PATIENCE } else { SHORT }, is_accepted).is_some()
    }
}
