//! The relay against itself, and against peers that don't keep to it.

use proptest::prelude::*;

use super::*;

const NONCE: Nonce = *b"0123456789abcdef";

fn frame(stream: u32, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut out = encode(Header { stream, kind, len: payload.len() as u32 }).to_vec();
    out.extend_from_slice(payload);
    out
}

/// Moves all of one end's output to the other.
fn pass(from: &mut Mux, to: &mut Mux) {
    let bytes = from.output().to_vec();
    from.wrote(bytes.len());
    to.receive(&bytes).unwrap();
}

fn pair() -> (Mux, Mux) {
    let (mut host, mut guest) = (Mux::host(NONCE), Mux::guest());
    pass(&mut host, &mut guest);
    pass(&mut guest, &mut host);
    assert_eq!(host.events().collect::<Vec<_>>(), [Event::Synced]);
    assert_eq!(guest.events().collect::<Vec<_>>(), [Event::Synced]);
    (host, guest)
}

fn connected() -> (Mux, Mux, Stream) {
    let (mut host, mut guest) = pair();
    let stream = host.open(5000).unwrap();
    pass(&mut host, &mut guest);
    assert_eq!(guest.next_event(), Some(Event::Opened { stream, port: 5000 }));
    guest.accept(stream);
    pass(&mut guest, &mut host);
    assert_eq!(host.next_event(), Some(Event::Connected(stream)));
    (host, guest, stream)
}

#[test]
fn headers_survive_the_trip() {
    for (kind, stream, len) in [(Kind::Sync, 0, 16), (Kind::Open, 7, 4), (Kind::Data, 2, 16_384), (Kind::Rst, 9, 0)] {
        let header = Header { stream, kind, len };
        assert_eq!(decode(&encode(header)), Ok(header));
    }
    let bytes = encode(Header { stream: 0x0102_0304, kind: Kind::Data, len: 5 });
    assert_eq!(bytes, [4, 3, 2, 1, 4, 0, 0, 0, 5, 0, 0, 0], "the bytes on the wire are part of the protocol");
}

#[test]
fn wrong_headers_are_refused() {
    let header = |stream, kind, len| encode(Header { stream, kind, len });
    assert_eq!(decode(&header(1, Kind::Data, 16_385)), Err(ProtocolError::BadHeader));
    assert_eq!(decode(&header(1, Kind::Data, 0)), Err(ProtocolError::BadHeader));
    assert_eq!(decode(&header(1, Kind::Data, u32::MAX)), Err(ProtocolError::BadHeader));
    assert_eq!(decode(&header(1, Kind::Ok, 1)), Err(ProtocolError::BadHeader));
    assert_eq!(decode(&header(0, Kind::Data, 1)), Err(ProtocolError::BadStream));
    assert_eq!(decode(&header(1, Kind::Sync, 16)), Err(ProtocolError::BadStream));
    let mut bytes = header(1, Kind::Ok, 0);
    bytes[4] = 8;
    assert_eq!(decode(&bytes), Err(ProtocolError::UnknownType));
    bytes[4] = 3;
    bytes[6] = 1;
    assert_eq!(decode(&bytes), Err(ProtocolError::BadHeader));
}

#[test]
fn sync_open_and_request_go_out_in_one_write() {
    let (mut host, mut guest) = (Mux::host(NONCE), Mux::guest());
    let stream = host.open(1023).unwrap();
    assert_eq!(host.send(stream, b"hello"), 5);
    pass(&mut host, &mut guest);
    let want = [Event::Synced, Event::Opened { stream, port: 1023 }, Event::Data(stream, b"hello".to_vec())];
    assert_eq!(guest.events().collect::<Vec<_>>(), want);
}

#[test]
fn a_refused_stream_is_reset_and_its_late_data_ignored() {
    let (mut host, mut guest) = pair();
    let stream = host.open(9).unwrap();
    pass(&mut host, &mut guest);
    guest.refuse(stream);
    host.send(stream, b"already under way");
    pass(&mut host, &mut guest);
    pass(&mut guest, &mut host);
    assert_eq!(host.events().collect::<Vec<_>>(), [Event::Reset(stream)]);
    assert_eq!((host.streams(), guest.streams()), (0, 0));
    assert!(host.output().is_empty(), "nothing is sent for a stream that is gone");
}

#[test]
fn credit_stops_the_sender_until_half_is_consumed() {
    let (mut host, mut guest, stream) = connected();
    let big = vec![7; WINDOW as usize + 1];
    let first = host.send(stream, &big);
    pass(&mut host, &mut guest);
    let sent = first + host.send(stream, &big);
    assert_eq!(sent, WINDOW as usize);
    pass(&mut host, &mut guest);
    guest.consumed(stream, WINDOW as usize / 2 - 1);
    assert!(guest.output().is_empty(), "credit goes back in halves, not by the byte");
    guest.consumed(stream, 1);
    pass(&mut guest, &mut host);
    assert_eq!(host.events().collect::<Vec<_>>(), [Event::Credit(stream)]);
    assert_eq!(host.sendable(stream), WINDOW as usize / 2);
}

#[test]
fn a_stream_ends_when_both_have_finished_and_all_is_consumed() {
    let (mut host, mut guest, stream) = connected();
    host.send(stream, b"abc");
    host.finish(stream);
    pass(&mut host, &mut guest);
    guest.finish(stream);
    assert_eq!(guest.streams(), 1, "three bytes are not passed on yet");
    guest.consumed(stream, 3);
    assert_eq!(guest.streams(), 0);
    pass(&mut guest, &mut host);
    assert_eq!(host.events().collect::<Vec<_>>(), [Event::Finished(stream)]);
    assert_eq!(host.streams(), 0);
}

#[test]
fn the_guest_opens_even_streams() {
    let (mut host, mut guest) = pair();
    let stream = guest.open(1023).unwrap();
    assert_eq!(stream.number() % 2, 0);
    pass(&mut guest, &mut host);
    assert_eq!(host.next_event(), Some(Event::Opened { stream, port: 1023 }));
    assert_eq!(Mux::guest().open(1), Err(OpenError::NotSynced));
}

#[test]
fn the_host_skips_half_a_frame_of_before() {
    let mut host = Mux::host(NONCE);
    let mut guest = Mux::guest();
    pass(&mut host, &mut guest);
    // The tail of a DATA frame, with the beginning of an echo in it, and an old echo.
    host.receive(&[1; 500]).unwrap();
    host.receive(&frame(0, Kind::Sync, b"0123456789abcdee")).unwrap();
    host.receive(&frame(0, Kind::Sync, &NONCE)[..20]).unwrap();
    assert_eq!(host.next_event(), None);
    pass(&mut guest, &mut host);
    assert!(host.is_synced());
}

#[test]
fn a_guest_in_the_middle_of_any_frame_takes_a_new_host() {
    let (old, guest, stream) = connected();
    drop((old, guest));
    let whole = frame(stream.number(), Kind::Data, &[1; MAX_DATA]);
    for cut in [1, 5, 9, 10, 11, 12, 13, 600, whole.len() - 1] {
        let (_, mut guest, _) = connected();
        guest.receive(&whole[..cut]).unwrap();
        guest.events().for_each(drop);
        let mut host = Mux::host_resuming(*b"another nonce...");
        pass(&mut host, &mut guest);
        pass(&mut guest, &mut host);
        assert!(host.is_synced(), "cut at {cut}");
        assert_eq!(guest.streams(), 0);
    }
}

#[test]
fn a_new_sync_drops_every_stream_of_the_guest() {
    let (_, mut guest, stream) = connected();
    assert!(guest.send(stream, b"to the old host") > 0);
    let mut host = Mux::host(*b"another nonce...");
    pass(&mut host, &mut guest);
    assert_eq!(guest.events().collect::<Vec<_>>(), [Event::Synced]);
    assert_eq!(guest.streams(), 0);
    pass(&mut guest, &mut host);
    assert_eq!(host.events().collect::<Vec<_>>(), [Event::Synced]);
}

#[test]
fn a_hostile_guest_is_cut_off() {
    let cases: &[(&str, Vec<u8>, ProtocolError)] = &[
        ("credit overrun", vec![], ProtocolError::Credit),
        ("stream that never was", frame(99, Kind::Fin, &[]), ProtocolError::BadStream),
        ("even stream never opened", frame(4, Kind::Data, b"x"), ProtocolError::BadStream),
        ("opens an odd stream", frame(99, Kind::Open, &[0; 4]), ProtocolError::BadStream),
        ("a second OK", frame(1, Kind::Ok, &[]), ProtocolError::OutOfPlace),
        ("a second FIN", [frame(1, Kind::Fin, &[]), frame(1, Kind::Fin, &[])].concat(), ProtocolError::OutOfPlace),
        ("data after FIN", [frame(1, Kind::Fin, &[]), frame(1, Kind::Data, b"x")].concat(), ProtocolError::OutOfPlace),
        ("too much credit", frame(1, Kind::Window, &1u32.to_le_bytes()), ProtocolError::Credit),
        ("no credit", frame(1, Kind::Window, &0u32.to_le_bytes()), ProtocolError::Credit),
        ("SYNC to the host", frame(0, Kind::Sync, &NONCE), ProtocolError::OutOfPlace),
        ("same number again", frame(2, Kind::Open, &[0; 4]).repeat(2), ProtocolError::BadStream),
        ("unknown type", vec![1, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0], ProtocolError::UnknownType),
    ];
    for (name, bytes, want) in cases {
        let (mut host, _, stream) = connected();
        let bytes = if bytes.is_empty() {
            frame(stream.number(), Kind::Data, &[0; MAX_DATA]).repeat(17)
        } else {
            bytes.clone()
        };
        assert_eq!(host.receive(&bytes), Err(*want), "{name}");
        assert_eq!(host.receive(b"more"), Err(*want), "{name}: stays dead");
    }
}

#[test]
fn a_guest_drops_its_streams_on_nonsense_and_says_so() {
    let (_, mut guest, stream) = connected();
    guest.receive(&[0xff; 64]).unwrap();
    assert_eq!(guest.events().collect::<Vec<_>>(), [Event::Reset(stream)]);
    assert!(!guest.is_synced());
}

#[test]
fn more_streams_than_there_can_be_are_refused() {
    let (mut host, mut guest) = pair();
    for _ in 0..MAX_STREAMS {
        host.open(1).unwrap();
    }
    assert_eq!(host.open(1), Err(OpenError::Busy));
    pass(&mut host, &mut guest);
    guest.receive(&frame(2 * MAX_STREAMS as u32 + 1, Kind::Open, &[0; 4])).unwrap();
    assert_eq!(guest.streams(), MAX_STREAMS);
    assert_eq!(guest.output(), frame(2 * MAX_STREAMS as u32 + 1, Kind::Rst, &[]));
}

#[test]
fn a_guest_that_asks_and_never_reads_is_cut_off() {
    let (mut host, _) = pair();
    let mut number = 0;
    let error = loop {
        number += 2;
        if let Err(error) = host.receive(&frame(number, Kind::Open, &[0; 4])) {
            break error;
        }
        for event in host.events().collect::<Vec<_>>() {
            if let Event::Opened { stream, .. } = event {
                host.refuse(stream);
            }
        }
        assert!(host.output().len() < 2 << 20);
    };
    assert_eq!(error, ProtocolError::NotReading);
}

/// What a test's script does next.
#[derive(Debug, Clone)]
enum Step {
    /// Send that many bytes on one of the streams, from the host or the guest.
    Send(bool, usize, usize),
    /// Move at most that many bytes, from the host or from the guest.
    Move(bool, usize),
    /// Pass on at most that many received bytes.
    Consume(bool, usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<bool>(), 0..3usize, 0..100_000usize).prop_map(|(h, s, n)| Step::Send(h, s, n)),
        (any::<bool>(), 1..70_000usize).prop_map(|(h, n)| Step::Move(h, n)),
        (any::<bool>(), 0..3usize, 0..200_000usize).prop_map(|(h, s, n)| Step::Consume(h, s, n)),
    ]
}

/// One end with what it has sent and received on each of its three streams.
struct End {
    mux: Mux,
    sent: Vec<Vec<u8>>,
    got: Vec<Vec<u8>>,
    held: Vec<usize>,
}

impl End {
    fn new(mux: Mux) -> Self {
        Self { mux, sent: vec![vec![]; 3], got: vec![vec![]; 3], held: vec![0; 3] }
    }

    fn send(&mut self, stream: Stream, at: usize, n: usize) {
        let bytes: Vec<u8> = (0..n).map(|i| ((self.sent[at].len() + i) * 31 % 251) as u8).collect();
        let taken = self.mux.send(stream, &bytes);
        self.sent[at].extend_from_slice(&bytes[..taken]);
    }

    fn consume(&mut self, stream: Stream, at: usize, n: usize) {
        let n = n.min(self.held[at]);
        self.held[at] -= n;
        self.mux.consumed(stream, n);
    }

    fn take_events(&mut self) {
        for event in self.mux.events().collect::<Vec<_>>() {
            match event {
                Event::Data(stream, bytes) => {
                    let at = (stream.number() / 2) as usize;
                    self.got[at].extend_from_slice(&bytes);
                    self.held[at] += bytes.len();
                    assert!(self.held[at] <= WINDOW as usize, "credit exceeded");
                }
                Event::Opened { stream, .. } => self.mux.accept(stream),
                Event::Reset(_) | Event::Finished(_) => panic!("nobody ended a stream"),
                Event::Synced | Event::Connected(_) | Event::Credit(_) => {}
            }
        }
    }
}

fn moved(from: &mut End, to: &mut End, n: usize) {
    let n = n.min(from.mux.output().len());
    let bytes = from.mux.output()[..n].to_vec();
    from.mux.wrote(n);
    to.mux.receive(&bytes).unwrap();
    to.take_events();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the order of sending, moving and consuming: all bytes arrive, in order, within the credit.
    #[test]
    fn two_ends_deliver_everything(script in proptest::collection::vec(step(), 1..120)) {
        let (mut host, mut guest) = (End::new(Mux::host(NONCE)), End::new(Mux::guest()));
        let streams: Vec<Stream> = (0..3).map(|port| host.mux.open(port).unwrap()).collect();
        for step in script {
            let (is_host, Step::Send(..) | Step::Move(..) | Step::Consume(..)) = (matches!(step, Step::Send(true, ..) | Step::Move(true, _) | Step::Consume(true, ..)), &step);
            let (near, far) = if is_host { (&mut host, &mut guest) } else { (&mut guest, &mut host) };
            match step {
                Step::Send(_, at, n) => near.send(streams[at], at, n),
                Step::Move(_, n) => moved(near, far, n),
                Step::Consume(_, at, n) => near.consume(streams[at], at, n),
            }
        }
        while !host.mux.output().is_empty() || !guest.mux.output().is_empty() {
            moved(&mut host, &mut guest, usize::MAX);
            moved(&mut guest, &mut host, usize::MAX);
        }
        prop_assert_eq!(&host.sent, &guest.got);
        prop_assert_eq!(&guest.sent, &host.got);
    }

    /// Any bytes at all, in any pieces: an error or not, but no panic, and nothing kept beyond what came.
    #[test]
    fn nonsense_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut in 1..50usize) {
        let (mut host, mut guest, _) = connected();
        for piece in bytes.chunks(cut) {
            let _ = host.receive(piece);
            let _ = guest.receive(piece);
        }
        prop_assert!(host.output().len() + guest.output().len() < 4096 + bytes.len());
    }
}
