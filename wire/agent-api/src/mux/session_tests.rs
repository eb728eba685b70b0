//! Property tests of the session: two ends, a pipe that cuts anywhere, daemons that come and go.

use std::collections::BTreeMap;
use std::task::Waker;

use bytes::BytesMut;
use proptest::prelude::*;

use super::codec::{FrameType, Greeting, GreetingKind, put_frame, put_greeting, put_padding};
use super::session::{OpenError, Role, Session, SessionConfig, SessionError, StreamKey};

const CONFIG: SessionConfig = SessionConfig { window: 4096, max_streams: 8 };

fn session(role: Role) -> Session {
    Session::new(role, CONFIG)
}

/// Takes everything one end wants to send.
fn output(session: &mut Session) -> BytesMut {
    let mut out = BytesMut::new();
    while session.has_output() {
        let before = out.len();
        session.transmit(&mut out, usize::MAX);
        if out.len() == before {
            break;
        }
    }
    out
}

fn exchange(host: &mut Session, guest: &mut Session) {
    loop {
        let (to_guest, to_host) = (output(host), output(guest));
        if to_guest.is_empty() && to_host.is_empty() {
            return;
        }
        let _ = guest.receive(&to_guest);
        host.receive(&to_host).unwrap();
    }
}

fn attached() -> (Session, Session) {
    let (mut host, mut guest) = (session(Role::Host), session(Role::Guest));
    host.attach(7);
    exchange(&mut host, &mut guest);
    assert!(host.is_attached() && guest.is_attached());
    (host, guest)
}

fn read_all(session: &mut Session, key: StreamKey) -> (Vec<u8>, Option<std::io::ErrorKind>, bool) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1000];
    loop {
        match session.read(key, &mut buffer, Waker::noop()) {
            Ok(Some(0)) => return (bytes, None, true),
            Ok(Some(count)) => bytes.extend_from_slice(&buffer[..count]),
            Ok(None) => return (bytes, None, false),
            Err(error) => return (bytes, Some(error.kind()), false),
        }
    }
}

fn write(session: &mut Session, key: StreamKey, bytes: &[u8]) -> usize {
    session.write(key, bytes, Waker::noop()).unwrap().unwrap_or(0)
}

#[test]
fn nothing_is_opened_without_a_session() {
    let mut host = session(Role::Host);
    assert_eq!(host.open(), Err(OpenError::Detached));
    let (_, mut guest) = attached();
    assert_eq!(guest.open(), Err(OpenError::Detached));
}

#[test]
fn streams_carry_bytes_both_ways_and_close_by_halves() {
    let (mut host, mut guest) = attached();
    let key = host.open().unwrap();
    assert_eq!(write(&mut host, key, b"question"), 8);
    host.finish(key);
    exchange(&mut host, &mut guest);
    let peer = guest.accept().unwrap();
    assert_eq!(read_all(&mut guest, peer), (b"question".to_vec(), None, true));
    write(&mut guest, peer, b"answer");
    guest.finish(peer);
    guest.release(peer);
    exchange(&mut host, &mut guest);
    assert_eq!(read_all(&mut host, key), (b"answer".to_vec(), None, true));
    host.release(key);
    exchange(&mut host, &mut guest);
    assert_eq!((host.stream_count(), guest.stream_count()), (0, 0));
}

#[test]
fn an_answer_written_before_a_release_arrives_although_the_host_never_ended() {
    let (mut host, mut guest) = attached();
    let key = host.open().unwrap();
    write(&mut host, key, b"x");
    exchange(&mut host, &mut guest);
    let peer = guest.accept().unwrap();
    write(&mut guest, peer, &[1; 3000]);
    guest.finish(peer);
    guest.release(peer);
    exchange(&mut host, &mut guest);
    assert_eq!(read_all(&mut host, key), (vec![1; 3000], None, true));
    assert!(host.write(key, b"more", Waker::noop()).is_err());
    host.release(key);
    exchange(&mut host, &mut guest);
    assert_eq!((host.stream_count(), guest.stream_count()), (0, 0));
}

#[test]
fn a_dropped_stream_is_a_reset_for_the_peer() {
    let (mut host, mut guest) = attached();
    let key = host.open().unwrap();
    write(&mut host, key, b"x");
    exchange(&mut host, &mut guest);
    let peer = guest.accept().unwrap();
    host.release(key);
    exchange(&mut host, &mut guest);
    let (bytes, error, _) = read_all(&mut guest, peer);
    assert_eq!((&*bytes, error), (&b"x"[..], Some(std::io::ErrorKind::ConnectionReset)));
    guest.release(peer);
    assert_eq!((host.stream_count(), guest.stream_count()), (0, 0));
}

#[test]
fn a_stalled_reader_holds_one_window_and_others_go_on() {
    let (mut host, mut guest) = attached();
    let (stalled, other) = (host.open().unwrap(), host.open().unwrap());
    let mut accepted = 0;
    for _ in 0..100 {
        accepted += write(&mut host, stalled, &[1; 10_000]);
        exchange(&mut host, &mut guest);
    }
    assert!(accepted <= CONFIG.window as usize + 64 * 1024, "{accepted}");
    write(&mut host, other, b"through");
    exchange(&mut host, &mut guest);
    let (_, second) = (guest.accept().unwrap(), guest.accept().unwrap());
    assert_eq!(read_all(&mut guest, second).0, b"through");
}

#[test]
fn too_many_streams_are_refused_on_both_sides() {
    let (mut host, mut guest) = attached();
    let keys: Vec<_> = (0..CONFIG.max_streams).map(|_| host.open().unwrap()).collect();
    assert_eq!(host.open(), Err(OpenError::TooMany));
    exchange(&mut host, &mut guest);
    // A host that allows itself more is answered by a reset, then by the end of the session.
    let mut bytes = BytesMut::new();
    put_frame(FrameType::Open, 100, &[], 7, &mut bytes);
    guest.receive(&bytes).unwrap();
    assert!(guest.has_output());
    for id in 101..200 {
        bytes.clear();
        put_frame(FrameType::Open, id, &[], 7, &mut bytes);
        let _ = guest.receive(&bytes);
    }
    assert!(!guest.is_attached());
    assert_eq!(keys.len(), CONFIG.max_streams);
}

#[test]
fn hostile_frames_end_the_hosts_session() {
    let flood = vec![0; CONFIG.window as usize + 1];
    let cases: [(&str, FrameType, u32, &[u8], SessionError); 6] = [
        ("over the window", FrameType::Data, 1, &flood, SessionError::Window),
        ("never opened", FrameType::Data, 2, b"x", SessionError::Stream),
        ("stream zero", FrameType::End, 0, b"", SessionError::Stream),
        ("opened by the guest", FrameType::Open, 5, b"", SessionError::Protocol),
        ("bad credit", FrameType::Credit, 1, b"xx", SessionError::Protocol),
        ("endless credit", FrameType::Credit, 1, &[0xff; 4], SessionError::Window),
    ];
    for (what, kind, id, payload, expected) in cases {
        let (mut host, _) = attached();
        let key = host.open().unwrap();
        let mut bytes = BytesMut::new();
        put_frame(kind, id, payload, 7, &mut bytes);
        assert_eq!(host.receive(&bytes), Err(expected), "{what}");
        assert!(!host.is_attached(), "{what}");
        assert!(read_all(&mut host, key).1.is_some(), "{what}");
    }
}

#[test]
fn data_after_the_end_is_not_allowed() {
    let (mut host, _) = attached();
    host.open().unwrap();
    let mut bytes = BytesMut::new();
    put_frame(FrameType::End, 1, &[], 7, &mut bytes);
    put_frame(FrameType::Data, 1, b"x", 7, &mut bytes);
    assert_eq!(host.receive(&bytes), Err(SessionError::Protocol));
}

#[test]
fn frames_for_a_stream_that_was_given_up_are_ignored() {
    let (mut host, mut guest) = attached();
    let key = host.open().unwrap();
    exchange(&mut host, &mut guest);
    let peer = guest.accept().unwrap();
    host.release(key);
    let reset = output(&mut host);
    write(&mut guest, peer, b"on its way");
    let crossing = output(&mut guest);
    host.receive(&crossing).unwrap();
    guest.receive(&reset).unwrap();
    assert!(host.is_attached() && host.stream_count() == 0);
}

#[test]
fn a_restarted_agent_is_noticed_and_a_new_session_works() {
    let (mut host, _) = attached();
    let old = host.open().unwrap();
    let mut guest = session(Role::Guest);
    guest.announce_boot();
    // The old agent died inside a frame.
    assert_eq!(host.receive(&[2, 0, 0]), Ok(()));
    let boot = output(&mut guest);
    assert!(host.receive(&boot).is_err());
    assert!(read_all(&mut host, old).1.is_some());
    host.attach(8);
    exchange(&mut host, &mut guest);
    assert!(host.is_attached() && guest.is_attached());
}

#[test]
fn greetings_of_others_do_not_begin_a_session() {
    let mut host = session(Role::Host);
    host.attach(5);
    for (kind, nonce, window) in
        [(GreetingKind::Ack, 4, 4096), (GreetingKind::Hello, 5, 4096), (GreetingKind::Ack, 5, 0)]
    {
        let mut bytes = BytesMut::new();
        put_greeting(Greeting { kind, nonce, window }, &mut bytes);
        let _ = host.receive(&bytes);
        assert!(!host.is_attached(), "{kind:?} {nonce} {window}");
    }
}

#[test]
fn data_that_looks_like_a_greeting_is_data() {
    let (mut host, mut guest) = attached();
    let key = host.open().unwrap();
    let mut forged = BytesMut::new();
    put_padding(&mut forged);
    forged.truncate(100);
    put_greeting(Greeting { kind: GreetingKind::Hello, nonce: 66, window: 4096 }, &mut forged);
    write(&mut host, key, &forged);
    exchange(&mut host, &mut guest);
    let peer = guest.accept().unwrap();
    assert_eq!(read_all(&mut guest, peer).0, forged);
}

/// What a test does to the two ends.
#[derive(Clone, Debug)]
enum Step {
    Open,
    Write { guest: bool, stream: usize, length: usize },
    Read { guest: bool, stream: usize },
    Finish { guest: bool, stream: usize },
    Release { guest: bool, stream: usize },
    Move { guest: bool, bytes: usize },
}

fn any_step() -> impl Strategy<Value = Step> {
    let place = || (any::<bool>(), 0..6usize);
    prop_oneof![
        2 => Just(Step::Open),
        6 => (place(), 1..9000usize)
            .prop_map(|((guest, stream), length)| Step::Write { guest, stream, length }),
        6 => place().prop_map(|(guest, stream)| Step::Read { guest, stream }),
        1 => place().prop_map(|(guest, stream)| Step::Finish { guest, stream }),
        1 => place().prop_map(|(guest, stream)| Step::Release { guest, stream }),
        10 => (any::<bool>(), 1..20_000usize).prop_map(|(guest, bytes)| Step::Move { guest, bytes }),
    ]
}

/// One end with what it has written and read, by stream number.
struct End {
    session: Session,
    keys: Vec<StreamKey>,
    wire: BytesMut,
    written: BTreeMap<usize, Vec<u8>>,
    read: BTreeMap<usize, Vec<u8>>,
    counter: u8,
}

impl End {
    fn new(session: Session) -> Self {
        Self {
            session,
            keys: Vec::new(),
            wire: BytesMut::new(),
            written: BTreeMap::new(),
            read: BTreeMap::new(),
            counter: 0,
        }
    }

    fn write(&mut self, stream: usize, length: usize) {
        let Some(&key) = self.keys.get(stream) else { return };
        let data: Vec<u8> = (0..length)
            .map(|_| {
                self.counter = self.counter.wrapping_add(1);
                self.counter
            })
            .collect();
        if let Ok(Some(count)) = self.session.write(key, &data, Waker::noop()) {
            self.written.entry(stream).or_default().extend_from_slice(&data[..count]);
        }
    }

    fn read(&mut self, stream: usize) {
        let Some(&key) = self.keys.get(stream) else { return };
        let mut buffer = [0; 3000];
        if let Ok(Some(count)) = self.session.read(key, &mut buffer, Waker::noop()) {
            self.read.entry(stream).or_default().extend_from_slice(&buffer[..count]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is done in whatever order, each side reads a prefix of what the other wrote, and
    /// no honest exchange ends the session.
    #[test]
    fn streams_never_mix_lose_or_invent_bytes(steps in proptest::collection::vec(any_step(), 1..150)) {
        let (host, guest) = attached();
        let (mut host, mut guest) = (End::new(host), End::new(guest));
        for step in steps {
            let end = match step {
                Step::Write { guest: true, .. }
                | Step::Read { guest: true, .. }
                | Step::Finish { guest: true, .. }
                | Step::Release { guest: true, .. } => &mut guest,
                _ => &mut host,
            };
            match step {
                Step::Open => {
                    if let Ok(key) = host.session.open() {
                        host.keys.push(key);
                    }
                }
                Step::Write { stream, length, .. } => end.write(stream, length),
                Step::Read { stream, .. } => end.read(stream),
                Step::Finish { stream, .. } => {
                    if let Some(&key) = end.keys.get(stream) {
                        end.session.finish(key);
                    }
                }
                Step::Release { stream, .. } => {
                    if let Some(&key) = end.keys.get(stream) {
                        end.session.release(key);
                    }
                }
                Step::Move { guest: g, bytes } => {
                    let (from, to) = if g { (&mut guest, &mut host) } else { (&mut host, &mut guest) };
                    from.session.transmit(&mut from.wire, 10_000);
                    let count = bytes.min(from.wire.len());
                    let moved = from.wire.split_to(count);
                    prop_assert_eq!(to.session.receive(&moved), Ok(()));
                }
            }
            while let Some(key) = guest.session.accept() {
                guest.keys.push(key);
            }
        }
        for (reader, writer) in [(&host, &guest), (&guest, &host)] {
            for (stream, bytes) in &reader.read {
                // Guest streams are accepted in the order in which they were opened, but one that
                // was given up before it was sent is never heard of; then the indices differ.
                if host.keys.len() == guest.keys.len() {
                    let written = writer.written.get(stream).cloned().unwrap_or_default();
                    prop_assert!(written.starts_with(bytes));
                }
            }
        }
    }

    /// A daemon dies with any part of its bytes written; the next one attaches. The guest's new
    /// session works at once, and none of the dead session's bytes reach a new stream.
    #[test]
    fn a_new_daemon_attaches_wherever_the_old_one_was_cut(
        cut in 0.0..=1.0f64, length in 0..40_000usize, chunk in 1..5000usize,
    ) {
        let (mut host, mut guest) = attached();
        let key = host.open().unwrap();
        // Bytes that would be mistaken for anything: zeros, frame types, the start of the magic.
        let data: Vec<u8> = (0..length).map(|i| [0, 1, 2, 0xb5, 5, 255][i % 6]).collect();
        let mut wire = BytesMut::new();
        let mut rest = &data[..];
        while !rest.is_empty() {
            let count = write(&mut host, key, rest);
            if count == 0 {
                break;
            }
            rest = &rest[count..];
            host.transmit(&mut wire, usize::MAX);
        }
        host.transmit(&mut wire, usize::MAX);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let kept = (wire.len() as f64 * cut) as usize;
        wire.truncate(kept);
        let mut next = session(Role::Host);
        next.attach(9);
        next.transmit(&mut wire, usize::MAX);
        for piece in wire.chunks(chunk) {
            let _ = guest.receive(piece);
        }
        prop_assert!(guest.is_attached());
        exchange(&mut next, &mut guest);
        prop_assert!(next.is_attached());
        while guest.accept().is_some() {}
        let fresh = next.open().unwrap();
        write(&mut next, fresh, b"fresh");
        exchange(&mut next, &mut guest);
        let peer = guest.accept().unwrap();
        prop_assert_eq!(read_all(&mut guest, peer).0, b"fresh");
    }

    /// The guest's stale bytes, cut anywhere, come before its acknowledgement.
    #[test]
    fn a_new_daemon_discards_what_the_guest_told_the_old_one(
        start in 0..5000usize, chunk in 1..5000usize, payload in 0..4000usize,
    ) {
        let (mut host, mut guest) = attached();
        let key = host.open().unwrap();
        exchange(&mut host, &mut guest);
        let peer = guest.accept().unwrap();
        write(&mut guest, peer, &vec![0xb5; payload]);
        let mut stale = output(&mut guest);
        let mut next = session(Role::Host);
        next.attach(9);
        let _ = guest.receive(&output(&mut next));
        stale.extend_from_slice(&output(&mut guest));
        // QEMU may drop what the old connection did not take, but nothing of the new session.
        let ack = stale.len() - 40;
        let from = start.min(ack);
        for piece in stale[from..].chunks(chunk) {
            prop_assert_eq!(next.receive(piece), Ok(()));
        }
        prop_assert!(next.is_attached());
        host.release(key);
    }

    #[test]
    fn hostile_bytes_never_panic_or_pile_up(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 0..30),
        frames in proptest::collection::vec((0u8..7, 0u32..6, 0usize..5000), 0..30),
    ) {
        for role in [Role::Host, Role::Guest] {
            let (host, guest) = attached();
            let mut end = if role == Role::Host { host } else { guest };
            let _ = end.open();
            for (piece, (kind, id, length)) in pieces.iter().zip(&frames) {
                let mut bytes = BytesMut::new();
                let kind = match kind {
                    1 => FrameType::Open,
                    2 => FrameType::Data,
                    3 => FrameType::End,
                    4 => FrameType::Reset,
                    _ => FrameType::Credit,
                };
                put_frame(kind, *id, &vec![0; *length], 7, &mut bytes);
                let _ = end.receive(&bytes);
                let _ = end.receive(piece);
                prop_assert!(end.stream_count() <= 2 * CONFIG.max_streams);
            }
        }
    }
}
