//! The frames, from both sides, and what must not pass.

use proptest::prelude::*;

use super::body::{ExitCode, ExitSignal, encode_json};
use super::*;

fn decoded(mut bytes: &[u8], cut: usize) -> Result<Vec<Frame>, ProtocolError> {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    while !bytes.is_empty() {
        let (used, frame) = decoder.take(&bytes[..cut.min(bytes.len())])?;
        frames.extend(frame);
        bytes = &bytes[used..];
    }
    Ok(frames)
}

#[test]
fn the_bytes_of_a_frame() {
    let mut out = Vec::new();
    encode(&mut out, Kind::Data, stream::OUT, b"hi");
    assert_eq!(out, [2, 0, 0, 0, 6, 2, b'h', b'i']);
}

#[test]
fn the_text_of_each_body() {
    let texts = [
        r#"{"op":"ping","v":1}"#,
        r#"{"op":"down","v":1,"how":"reset","grace_ms":8000}"#,
        r#"{"op":"exec","v":1,"tty":{"rows":40,"cols":120},"stdin":true,"user":"root","cwd":"/root/proj","hold":false,"linger_s":0}"#,
        r#"{"op":"exec","v":1,"tty":null,"stdin":true,"user":"root","cwd":"/root/proj","hold":false,"linger_s":0}"#,
    ];
    for text in texts {
        let call: Call = frame(text).json().unwrap();
        let mut out = Vec::new();
        encode_json(&mut out, Kind::Call, 0, &call);
        assert_eq!(std::str::from_utf8(&out[HEADER_LEN..]).unwrap(), text);
    }
    assert_eq!(frame(r#"{"code":3}"#).json(), Ok(Exit::Code(ExitCode { code: 3, oom: false })));
    let killed = Exit::Signal(ExitSignal { signal: 9, core: false, oom: true });
    assert_eq!(frame(r#"{"signal":9,"core":false,"oom":true}"#).json(), Ok(killed));
    let shells = Exit::Code(ExitCode { code: 137, oom: true });
    assert_eq!(frame(r#"{"code":137,"oom":true}"#).json(), Ok(shells));
    assert!(killed.is_out_of_memory() && shells.is_out_of_memory());
}

#[test]
fn bodies_are_strict() {
    for text in [
        r#"{"op":"ping","v":1,"x":1}"#,
        r#"{"op":"ping","v":1} x"#,
        r#"["ping",1]"#,
        r#" {"op":"ping","v":1}"#,
        r#"{"op":"ping","v":1,"v":1}"#,
        r#"{"op":"pong","v":1}"#,
        r#"{"op":"ping","v":-1}"#,
        r#"{"op":"exec","v":1,"tty":null,"stdin":true,"user":"root","cwd":"/","junk":0}"#,
        "",
    ] {
        assert_eq!(frame(text).json::<Call>(), Err(ProtocolError::BadPayload), "{text}");
    }
    assert_eq!(frame(r#"{"code":256}"#).json::<Exit>(), Err(ProtocolError::BadPayload));
    assert_eq!(frame(r#"{"code":1,"signal":9}"#).json::<Exit>(), Err(ProtocolError::BadPayload));
}

fn frame(text: &str) -> Frame {
    Frame { kind: Kind::Call, stream: 0, payload: text.as_bytes().to_vec() }
}

#[test]
fn wrong_frames_end_the_call_before_their_payload_is_read() {
    let header = |len: u32, kind: u8, stream: u8| [&len.to_le_bytes()[..], &[kind, stream]].concat();
    for (bytes, want) in [
        (header(65_537, 6, 2), ProtocolError::TooLong),
        (header(u32::MAX, 200, 0), ProtocolError::TooLong),
        (header(16_385, 2, 0), ProtocolError::TooLong),
        (header(4_097, 1, 0), ProtocolError::TooLong),
        (header(1, 7, 2), ProtocolError::TooLong),
        (header(0, 0, 0), ProtocolError::UnknownKind),
        (header(0, 16, 0), ProtocolError::UnknownKind),
        (header(0, 127, 0), ProtocolError::UnknownKind),
        (header(1, 6, 0), ProtocolError::BadStream),
        (header(1, 6, 4), ProtocolError::BadStream),
        (header(1, 2, 1), ProtocolError::BadStream),
    ] {
        assert_eq!(decoded(&bytes, 100), Err(want));
    }
}

#[test]
fn kinds_of_a_later_version_are_skipped() {
    let mut bytes = [&5u32.to_le_bytes()[..], &[130, 9], b"12345"].concat();
    encode(&mut bytes, Kind::Bye, 0, &[]);
    for cut in 1..bytes.len() {
        let frames = decoded(&bytes, cut).unwrap();
        assert_eq!(frames, [Frame { kind: Kind::Bye, stream: 0, payload: vec![] }]);
    }
}

#[test]
fn strings() {
    let text = encode_strings(&["sh", "", "-c"]).unwrap();
    assert_eq!(text, b"sh\0\0-c\0");
    assert_eq!(decode_strings(&text).unwrap(), [&b"sh"[..], b"", b"-c"]);
    assert_eq!(decode_strings(b"").unwrap().len(), 0);
    assert_eq!(decode_strings(b"sh"), Err(ProtocolError::BadPayload));
    assert_eq!(encode_strings(&["a\0b"]), None);
    assert_eq!(encode_strings(&["x".repeat(MAX_PAYLOAD)]), None);
}

proptest! {
    /// Frames come out as they went in, however they are cut.
    #[test]
    fn frames_survive_any_cut(
        bodies in proptest::collection::vec((1..=3u8, proptest::collection::vec(any::<u8>(), 0..300)), 0..20),
        cut in 1..400usize,
    ) {
        let mut bytes = Vec::new();
        for (stream, body) in &bodies {
            encode(&mut bytes, Kind::Data, *stream, body);
        }
        let got: Vec<_> = decoded(&bytes, cut).unwrap().into_iter().map(|f| (f.stream, f.payload)).collect();
        prop_assert_eq!(got, bodies);
    }

    /// Any bytes: an error or frames within their limits.
    #[test]
    fn nonsense_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 1..50usize) {
        for frame in decoded(&bytes, cut).unwrap_or_default() {
            prop_assert!(frame.payload.len() <= frame.kind.limit());
            let _ = frame.json::<Call>();
            let _ = decode_strings(&frame.payload);
        }
    }
}
