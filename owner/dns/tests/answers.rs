//! Real packets, hostile packets, real sockets.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use banger_dns::{Asker, Host, Outcome, Server, Upstreams, Zone, answer};
use banger_types::VmId;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

fn host(name: &str, number: u8, group: Option<&str>, nat: bool) -> Host {
    Host {
        vm: VmId::random(),
        name: name.parse().unwrap(),
        address: (number > 0).then(|| Ipv4Addr::new(127, 0, 0, number)),
        group: group.map(|group| group.parse().unwrap()),
        nat,
    }
}

/// The zone of 10.0.0.1/24, with a group, one alone, and one without an address.
fn zone() -> Zone {
    let zone = Zone::default();
    zone.set_subnet("10.0.0.1/24".parse().unwrap());
    for (name, number, group, nat) in [
        ("web", 2, Some("g"), true),
        ("db", 3, Some("g"), false),
        ("alone", 4, None, true),
        ("rootless", 0, None, false),
    ] {
        let address = (number > 0).then(|| Ipv4Addr::new(10, 0, 0, number));
        zone.add(Host { address, ..host(name, number, group, nat) });
    }
    zone
}

fn guest(zone: &Zone, number: u8) -> Asker {
    zone.asker(Ipv4Addr::new(10, 0, 0, number).into())
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask(zone: &Zone, asker: &Asker, message: &Message) -> Option<Message> {
    match answer(zone, asker, &message.to_vec().unwrap()) {
        Outcome::Reply(bytes) => Some(Message::from_vec(&bytes).unwrap()),
        Outcome::Forward(_) => None,
        Outcome::Silence => panic!("nothing is said"),
    }
}

/// The code, and the data of the answers.
fn said(reply: &Message) -> (ResponseCode, Vec<String>) {
    let data = reply.answers.iter().map(|record| record.data.to_string());
    (reply.metadata.response_code, data.collect())
}

#[test]
fn the_host_sees_all_names_and_a_guest_those_of_its_group() {
    use RecordType::{A, AAAA, MX, NS, PTR, SOA, TXT};
    use ResponseCode::{NXDomain, NoError, Refused};
    let zone = zone();
    let one = |text: &str| vec![text.to_owned()];
    for (asker, name, kind, code, data) in [
        (1, "web.vm.", A, NoError, one("10.0.0.2")),
        (1, "WeB.Vm.", A, NoError, one("10.0.0.2")),
        (1, "web.vm.", RecordType::ANY, NoError, one("10.0.0.2")),
        (1, "web.vm.", AAAA, NoError, vec![]),
        (1, "web.vm.", TXT, NoError, vec![]),
        (1, "rootless.vm.", A, NoError, vec![]),
        (1, "none.vm.", A, NXDomain, vec![]),
        (1, "a.web.vm.", A, NXDomain, vec![]),
        (1, "vm.", NS, NoError, one("_dns.vm.")),
        (1, "vm.", MX, NoError, vec![]),
        (1, "_dns.vm.", A, NoError, one("10.0.0.1")),
        (1, "2.0.0.10.in-addr.arpa.", PTR, NoError, one("web.vm.")),
        (1, "1.0.0.10.in-addr.arpa.", PTR, NoError, one("_dns.vm.")),
        (1, "9.0.0.10.in-addr.arpa.", PTR, NXDomain, vec![]),
        (1, "2.0.0.10.in-addr.arpa.", A, NoError, vec![]),
        (1, "0.0.10.in-addr.arpa.", NS, NoError, one("_dns.vm.")),
        (1, "0.0.10.In-Addr.ARPA.", RecordType::ANY, NoError, one("_dns.vm.")),
        (1, "0.0.10.in-addr.arpa.", PTR, NoError, vec![]),
        (1, "1.0.10.in-addr.arpa.", NS, Refused, vec![]),
        (1, "0.10.in-addr.arpa.", SOA, Refused, vec![]),
        (1, "example.org.", A, Refused, vec![]),
        (1, "2.1.0.10.in-addr.arpa.", PTR, Refused, vec![]),
        (1, "vm.", RecordType::AXFR, Refused, vec![]),
        (1, ".", NS, Refused, vec![]),
        (2, "db.vm.", A, NoError, one("10.0.0.3")),
        (2, "web.vm.", A, NoError, one("10.0.0.2")),
        (2, "alone.vm.", A, NXDomain, vec![]),
        (2, "4.0.0.10.in-addr.arpa.", PTR, NXDomain, vec![]),
        (3, "example.org.", A, Refused, vec![]),
        (4, "alone.vm.", A, NoError, one("10.0.0.4")),
        (4, "web.vm.", A, NXDomain, vec![]),
        (9, "web.vm.", A, Refused, vec![]),
        (9, "example.org.", A, Refused, vec![]),
    ] {
        let reply = ask(&zone, &guest(&zone, asker), &question(name, kind)).unwrap();
        assert_eq!(said(&reply), (code, data), "{name} {kind} of {asker}");
        assert_eq!((reply.metadata.id, reply.queries.len()), (77, 1));
        let is_ours = code != Refused;
        assert_eq!(reply.metadata.authoritative, is_ours, "{name}");
        // What is not there may be believed for as long as the zone's own record says.
        let has_soa = reply.authorities.iter().any(|record| record.record_type() == SOA);
        assert_eq!(has_soa, is_ours && reply.answers.is_empty(), "{name}");
        let asked = Name::from_ascii(name).unwrap();
        let own = if name.to_lowercase().ends_with("vm.") { "vm." } else { "0.0.10.in-addr.arpa." };
        for record in &reply.authorities {
            assert_eq!(record.name, Name::from_ascii(own).unwrap(), "{name}");
            assert!(record.name.zone_of(&asked), "{name}");
        }
    }
    for apex in ["vm.", "0.0.10.in-addr.arpa."] {
        let soa = ask(&zone, &Asker::Host, &question(apex, SOA)).unwrap();
        let [record] = soa.answers.as_slice() else { panic!("{soa:?}") };
        assert!(matches!(record.data, RData::SOA(_)), "{record}");
        assert_eq!(record.name, Name::from_ascii(apex).unwrap());
    }
    // Names outside are for others to say, if the guest may leave.
    for asker in [2, 4] {
        assert!(ask(&zone, &guest(&zone, asker), &question("example.org.", A)).is_none());
    }
}

#[test]
fn each_256_addresses_of_a_subnet_are_a_reverse_zone() {
    for (subnet, zones, others) in [
        ("10.0.2.1/23", &["2.0.10", "3.0.10"][..], &["1.0.10", "4.0.10", "0.10"][..]),
        ("10.0.2.65/26", &["2.0.10"][..], &["1.0.10", "64.2.0.10"][..]),
    ] {
        let zone = Zone::default();
        zone.set_subnet(subnet.parse().unwrap());
        let soa = |name: &&str| {
            let question = question(&format!("{name}.in-addr.arpa."), RecordType::SOA);
            ask(&zone, &Asker::Host, &question).unwrap()
        };
        assert!(zones.iter().map(soa).all(|reply| reply.answers.len() == 1), "{subnet}");
        assert!(others.iter().map(soa).all(|reply| reply.answers.is_empty()), "{subnet}");
    }
}

#[test]
fn a_name_goes_with_its_vm() {
    let zone = zone();
    let web = zone.asker([10, 0, 0, 2].into());
    let Asker::Guest(web) = web else { panic!() };
    let code = || said(&ask(&zone, &Asker::Host, &question("web.vm.", RecordType::A)).unwrap()).0;
    assert_eq!(code(), ResponseCode::NoError);
    zone.remove(&web.vm);
    assert_eq!(code(), ResponseCode::NXDomain);
    assert_eq!(guest(&zone, 2), Asker::Stranger);
    // Moved to another group, it is seen there and not here any more.
    zone.add(Host { group: None, ..web });
    assert_eq!(code(), ResponseCode::NoError);
    let of_db = ask(&zone, &guest(&zone, 3), &question("web.vm.", RecordType::A)).unwrap();
    assert_eq!(said(&of_db).0, ResponseCode::NXDomain);
}

#[test]
fn what_is_no_plain_question_gets_the_code_for_it() {
    let zone = zone();
    let ask = |message: &Message| ask(&zone, &Asker::Host, message).unwrap();
    let mut two = question("web.vm.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(said(&ask(&two)).0, ResponseCode::FormErr);
    let mut chaos = question("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(said(&ask(&chaos)).0, ResponseCode::Refused);
    let mut update = question("vm.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(said(&ask(&update)).0, ResponseCode::NotImp);
    let mut edns = question("web.vm.", RecordType::A);
    edns.set_edns(Edns::new());
    let reply = ask(&edns);
    assert_eq!(said(&reply).0, ResponseCode::NoError);
    assert_eq!(reply.edns.unwrap().max_payload(), 1232);
    let mut version = Edns::new();
    version.set_version(1);
    edns.set_edns(version);
    let reply = ask(&edns);
    // The number has a second name.
    assert_eq!(u16::from(reply.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert_eq!((reply.edns.unwrap().version(), reply.answers.len()), (0, 0));
    // Nor does it open the zone to anybody.
    let outcome = answer(&zone, &Asker::Stranger, &edns.to_vec().unwrap());
    let Outcome::Reply(reply) = outcome else { panic!("{outcome:?}") };
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(u16::from(reply.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert!(reply.answers.is_empty() && reply.authorities.is_empty());
    // An answer is no question: two servers could go on for ever.
    let mut response = question("web.vm.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    let outcome = answer(&zone, &Asker::Host, &response.to_vec().unwrap());
    assert_eq!(outcome, Outcome::Silence);
    assert_eq!(answer(&zone, &Asker::Host, &[0; 11]), Outcome::Silence);
    let Outcome::Reply(reply) = answer(&zone, &Asker::Host, &[7; 13]) else { panic!() };
    assert_eq!(reply[..2], [7, 7]);
    assert_eq!(reply[3] & 15, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_packet_gets_more_than_a_small_answer(
        packet in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..600),
            // A real question with some of its bytes, its length and its end changed.
            (prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), 0_usize..80,
                prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(changes, cut, tail)| {
                let mut message = question("web.vm.", RecordType::A);
                message.set_edns(Edns::new());
                let mut packet = message.to_vec().unwrap();
                for (index, byte) in changes {
                    let at = index.index(packet.len());
                    packet[at] = byte;
                }
                packet.truncate(packet.len().saturating_sub(cut).max(1));
                packet.extend(tail);
                packet
            }),
        ],
        number in 1_u8..10,
    ) {
        let zone = zone();
        let asker = guest(&zone, number);
        match answer(&zone, &asker, &packet) {
            Outcome::Silence => {}
            Outcome::Reply(reply) => {
                prop_assert!(reply.len() <= 512 && reply[2] & 0x80 != 0);
                prop_assert_eq!(&reply[..2], &packet[..2]);
                if asker == Asker::Stranger {
                    // Not the four bits of the header: of BADVERS (RFC 6891, 9) they are zero.
                    let reply = Message::from_vec(&reply).unwrap();
                    prop_assert_ne!(u16::from(reply.metadata.response_code), 0);
                    prop_assert!(reply.answers.is_empty());
                }
            }
            Outcome::Forward(failure) => {
                prop_assert!(matches!(&asker, Asker::Guest(guest) if guest.nat));
                prop_assert_eq!(failure[3] & 15, 2);
            }
        }
    }
}

/// A server at 127.0.0.1 whose guest with NAT is 127.0.0.2, and a name server outside that knows
/// `example.org`, as long as it is not asked for anything else.
async fn server() -> (Server, UdpSocket) {
    let zone = Zone::default();
    zone.set_subnet("10.0.0.1/24".parse().unwrap());
    zone.add(host("web", 2, None, true));
    let outside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstreams = Upstreams::Fixed(vec![outside.local_addr().unwrap()]);
    let server = Server::start("0.0.0.0:0".parse().unwrap(), zone, upstreams).await.unwrap();
    (server, outside)
}

async fn answer_one(outside: &UdpSocket) {
    answer_with(outside, Ipv4Addr::new(9, 9, 9, 9)).await;
}

async fn answer_with(outside: &UdpSocket, address: Ipv4Addr) {
    let mut buffer = [0; 600];
    let (length, from) = outside.recv_from(&mut buffer).await.unwrap();
    let asked = Message::from_vec(&buffer[..length]).unwrap();
    let mut reply = asked.clone().into_response();
    let data = RData::A(address.into());
    reply.add_answer(Record::from_rdata(asked.queries[0].name().clone(), 60, data));
    // One with another number first, as somebody who guesses would send it.
    let mut forged = reply.clone();
    forged.metadata.id = forged.metadata.id.wrapping_add(1);
    for packet in [forged, reply] {
        outside.send_to(&packet.to_vec().unwrap(), from).await.unwrap();
    }
}

#[tokio::test]
async fn names_outside_are_asked_for_and_numbers_are_not_the_guests() {
    let (server, outside) = server().await;
    let to = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), server.address().port());
    let guest = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    guest.connect(to).await.unwrap();
    let packet = question("example.org.", RecordType::A).to_vec().unwrap();
    guest.send(&packet).await.unwrap();
    answer_one(&outside).await;
    let mut buffer = [0; 600];
    let length = guest.recv(&mut buffer).await.unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(said(&reply), (ResponseCode::NoError, vec!["9.9.9.9".to_owned()]));
    assert_eq!(reply.metadata.id, 77);
    // Rubbish does not end it.
    for rubbish in [&[][..], &[1], &[0xff; 40], &[0; 4096]] {
        guest.send(rubbish).await.unwrap();
    }
    guest.send(&question("web.vm.", RecordType::A).to_vec().unwrap()).await.unwrap();
    loop {
        let length = guest.recv(&mut buffer).await.unwrap();
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        if reply.metadata.id == 77 {
            assert_eq!(said(&reply).1, ["127.0.0.2"]);
            break;
        }
    }
}

#[tokio::test]
async fn a_name_outside_never_leads_inside() {
    let (server, outside) = server().await;
    let to = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), server.address().port());
    let guest = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    guest.connect(to).await.unwrap();
    let packet = question("evil.example.", RecordType::A).to_vec().unwrap();
    for (address, is_passed_on) in [
        ([9, 9, 9, 9], true),
        ([10, 0, 0, 1], false),
        ([10, 0, 0, 3], false),
        ([127, 0, 0, 1], false),
        ([169, 254, 169, 254], false),
        ([10, 0, 1, 3], true),
        ([192, 168, 1, 1], true),
    ] {
        let address = Ipv4Addr::from(address);
        guest.send(&packet).await.unwrap();
        answer_with(&outside, address).await;
        let mut buffer = [0; 600];
        let length = guest.recv(&mut buffer).await.unwrap();
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        let data = if is_passed_on { vec![address.to_string()] } else { Vec::new() };
        assert_eq!(said(&reply), (ResponseCode::NoError, data), "{address}");
        assert_eq!((reply.metadata.id, reply.queries.len()), (77, 1));
    }
}

#[tokio::test]
async fn nobody_outside_is_said_and_tcp_is_spoken() {
    let (server, outside) = server().await;
    drop(outside);
    let to = SocketAddr::new(IpAddr::from([127, 0, 0, 2]), server.address().port());
    let mut stream = TcpStream::connect(to).await.unwrap();
    // Two questions in one go; the connection comes from 127.0.0.1, a stranger.
    let packet = question("web.vm.", RecordType::A).to_vec().unwrap();
    let frame = [&u16::try_from(packet.len()).unwrap().to_be_bytes()[..], &packet].concat();
    stream.write_all(&[frame.clone(), frame].concat()).await.unwrap();
    for _ in 0..2 {
        let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(said(&Message::from_vec(&reply).unwrap()).0, ResponseCode::Refused);
    }
    // A frame that is too long ends the connection.
    stream.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0);

    let guest = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    guest.send_to(&question("example.org.", RecordType::A).to_vec().unwrap(), to).await.unwrap();
    let mut buffer = [0; 600];
    let length = guest.recv(&mut buffer).await.unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(said(&reply).0, ResponseCode::ServFail);
}

#[tokio::test]
async fn dig_understands_every_answer() {
    const DIG: &str = "/usr/bin/dig";
    if !std::path::Path::new(DIG).exists() {
        banger_harness::skip("dig", "bind9-dnsutils is not installed");
        return;
    }
    let (server, _outside) = server().await;
    let port = server.address().port().to_string();
    let dig = async |words: &'static str| {
        let words = words.split(' ').map(str::to_owned);
        let common = ["@127.0.0.1", "-b", "127.0.0.2", "+time=5", "+tries=1", "-p", &port];
        let arguments: Vec<String> = common.iter().map(ToString::to_string).chain(words).collect();
        let run = move || Command::new(DIG).args(arguments).output().unwrap();
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let plain = dig("web.vm A").await;
    assert!(plain.contains("status: NOERROR") && plain.contains("127.0.0.2"), "{plain}");
    assert!(plain.contains(" aa ") && plain.contains("EDNS: version: 0"), "{plain}");
    assert!(!plain.contains("WARNING"), "{plain}");
    let tcp = dig("web.vm A +tcp").await;
    assert!(tcp.contains("status: NOERROR") && tcp.contains("(TCP)"), "{tcp}");
    let old = dig("web.vm A +noedns").await;
    assert!(old.contains("status: NOERROR") && !old.contains("EDNS"), "{old}");
    let version = dig("web.vm A +edns=1 +noednsnegotiation").await;
    assert!(version.contains("status: BADVERS"), "{version}");
    let none = dig("none.vm A").await;
    assert!(none.contains("status: NXDOMAIN") && none.contains("SOA"), "{none}");
    let no_data = dig("web.vm AAAA").await;
    assert!(no_data.contains("status: NOERROR") && no_data.contains("ANSWER: 0"), "{no_data}");
}
