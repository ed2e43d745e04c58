//! A request as it comes from a client: whole, and a byte at a time, with the same end; looked at, and used up.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::frame::Decoder;
use wire::method::Request;
use wire::path::Roots;

const LIMIT: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let whole = Decoder::new(LIMIT).push(data).map(|frame| frame.map(|f| answer(f)));
    let mut slow = Decoder::new(LIMIT);
    let mut found = Ok(None);
    for byte in data {
        found = slow.push(std::slice::from_ref(byte)).map(|frame| frame.map(|f| answer(f)));
        if !matches!(found, Ok(None)) {
            break;
        }
    }
    match (&whole, &found) {
        (Ok(whole), Ok(found)) => assert_eq!(whole, found),
        // Which flaw is named first may differ where later bytes are there already; that there is one may not.
        (Err(whole), Err(found)) => assert_eq!(whole.code, found.code),
        _ => panic!("whole: {whole:?}, a byte at a time: {found:?}"),
    }
});

fn answer(frame: wire::frame::Frame) -> String {
    let roots = Roots { state: "/var/lib/banger".into(), runtime: "/run/banger".into() };
    let parsed = frame.envelope().and_then(|envelope| Request::parse(&envelope, &roots));
    // Decoded over its text it is the same.
    match (&parsed, Request::of(frame, &roots)) {
        (Err(parsed), Err(of)) => assert_eq!(parsed.code, of.code),
        (parsed, of) => assert_eq!(*parsed, of),
    }
    format!("{parsed:?}")
}
