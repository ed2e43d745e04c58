//! A guest's list of who listens: lines of known protocols with a port, no more than there may be, or an error; in pieces
//! as whole.
#![no_main]

use agent::listeners::{Lines, MAX};
use agent::protocol::{Listener, ProtocolError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    let whole = read(bytes, bytes.len().max(1));
    // A line that is too long may be seen sooner in pieces; that it is refused is the same.
    let pieces = read(bytes, usize::from(step) + 1);
    assert_eq!(whole.is_ok(), pieces.is_ok());
    if let (Ok(whole), Ok(pieces)) = (whole, pieces) {
        assert_eq!(whole, pieces);
        assert!(whole.len() <= MAX);
        assert!(whole.iter().all(|one| matches!(&*one.proto, "tcp" | "udp") && one.port != 0));
    }
});

fn read(bytes: &[u8], step: usize) -> Result<Vec<Listener>, ProtocolError> {
    let mut lines = Lines::default();
    bytes.chunks(step).try_for_each(|piece| lines.take(piece))?;
    lines.end()
}
