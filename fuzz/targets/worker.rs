//! What helper and image worker say to each other, each side's bytes as a stranger's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::worker::ask::{self, Ask};
use wire::worker::log::{Change, ENTRY, From, TRAILER, Trailer, finish};
use wire::worker::reply::Reply;

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    match first % 3 {
        0 => a_request(rest),
        1 => {
            if let Ok(reply) = Reply::decode(rest) {
                assert_eq!(reply.encode(), rest);
            }
        }
        _ => {
            a_log(rest);
            changes(rest);
        }
    }
});

fn a_request(bytes: &[u8]) {
    // Its own length put right, so that more than the first bytes is looked at.
    let mut bytes = bytes.to_vec();
    let length = u32::try_from(bytes.len()).unwrap();
    if let Some(field) = bytes.get_mut(16..20) {
        field.copy_from_slice(&length.to_le_bytes());
    }
    if let Ok(Ask::Write(files)) = ask::decode(&bytes) {
        assert!(files.iter().all(|file| file.mode & !0o777 == 0));
    }
}

fn a_log(bytes: &[u8]) {
    let Some((rest, end)) = bytes.split_last_chunk::<TRAILER>() else { return };
    let image = 1 << 20;
    if let Ok(trailer) = Trailer::decode(end, bytes.len() as u64, image)
        && let Some(index) = rest.get(trailer.index_at() as usize..)
    {
        let _ = trailer.changes(index, &FILES);
    }
}

/// Lengths of a request's files.
const FILES: [u64; 2] = [1000, 1 << 20];

/// Changes that are anything, with a trailer that is right.
fn changes(bytes: &[u8]) {
    let number = |bytes: &[u8]| u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let change = |bytes: &[u8]| {
        let (offset, length, at) = (number(bytes) & !0xff, number(&bytes[4..]) & 0xf_fe00, number(&bytes[8..]));
        let from = match bytes[12] {
            nth @ 0..128 => From::File { nth: u32::from(nth / 32), at, fresh: nth & 1 == 1 },
            _ => From::Log { at },
        };
        Change { offset, length, from }
    };
    let list: Vec<Change> = bytes.chunks_exact(13).map(change).collect();
    let (image, data) = (1 << 24, 1 << 20);
    let Some(end) = finish(&list, data, image) else { return };
    let (index, trailer) = end.split_last_chunk::<TRAILER>().unwrap();
    assert_eq!(index.len(), list.len() * ENTRY);
    let trailer = Trailer::decode(trailer, data + end.len() as u64, image).unwrap();
    if let Ok(changes) = trailer.changes(index, &FILES) {
        assert!(changes.iter().all(|change| change.offset + change.length <= image && change.length > 0));
        let has_bytes = |change: &Change| match change.from {
            From::Log { at } => at + change.length <= data,
            From::File { nth, at, .. } => at < FILES[nth as usize],
        };
        assert!(changes.iter().all(has_bytes));
    }
}
