//! The frames of a call between host and agent, which believe each other nothing: whole and in pieces, the same frames come
//! out, and each one's content is what its kind says or an error.
#![no_main]

use agent::protocol::{
    Call, Decoder, ErrorBody, Exit, Frame, Grant, Hello, Kind, ProtocolError, Signal, Started, TtySize, decode_strings,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    let whole = frames(bytes, bytes.len().max(1));
    assert_eq!(whole, frames(bytes, usize::from(step) % 61 + 1));
    whole.0.iter().for_each(content);
});

fn frames(bytes: &[u8], step: usize) -> (Vec<Frame>, Option<ProtocolError>) {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    for mut piece in bytes.chunks(step) {
        while !piece.is_empty() {
            match decoder.take(piece) {
                Ok((used, frame)) => {
                    assert!(used > 0 && used <= piece.len(), "no way forward");
                    piece = &piece[used..];
                    frames.extend(frame);
                }
                Err(e) => return (frames, Some(e)),
            }
        }
    }
    (frames, None)
}

fn content(frame: &Frame) {
    assert!(frame.payload.len() <= frame.kind.limit());
    let _ = match frame.kind {
        Kind::Hello => frame.json::<Hello>().map(drop),
        Kind::Call => frame.json::<Call>().map(drop),
        Kind::Started => frame.json::<Started>().map(drop),
        Kind::Grant => frame.json::<Grant>().map(drop),
        Kind::Signal => frame.json::<Signal>().map(drop),
        Kind::Resize => frame.json::<TtySize>().map(drop),
        Kind::Exit => frame.json::<Exit>().map(drop),
        Kind::Error => frame.json::<ErrorBody>().map(drop),
        Kind::Args | Kind::Env => decode_strings(&frame.payload).map(drop),
        Kind::Data | Kind::End | Kind::Reply | Kind::Gone | Kind::Bye => Ok(()),
    };
}
