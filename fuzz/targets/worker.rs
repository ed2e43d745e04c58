//! What helper and image worker say to each other, each side's bytes as a stranger's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::worker::ask::{self, Ask};
use wire::worker::log::{ENTRY, TRAILER, Trailer, finish};
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
    let total = bytes.len() as u64 + 100;
    if let Ok(Ask::Write(files)) = ask::decode(&bytes, total) {
        assert!(files.iter().all(|file| file.at + file.length <= total));
    }
}

fn a_log(bytes: &[u8]) {
    let Some((rest, end)) = bytes.split_last_chunk::<TRAILER>() else { return };
    let image = 1 << 20;
    if let Ok(trailer) = Trailer::decode(end, bytes.len() as u64, image)
        && let Some(index) = rest.get(trailer.index_at() as usize..)
    {
        let _ = trailer.changes(index);
    }
}

/// Changes that are anything, with a trailer that is right.
fn changes(bytes: &[u8]) {
    let number = |bytes: &[u8]| u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let list: Vec<(u64, u64)> =
        bytes.chunks_exact(8).map(|pair| (number(pair) & !0xff, number(&pair[4..]) & 0xf_fe00)).collect();
    let image = 1 << 24;
    let Some(end) = finish(&list, image) else { return };
    let data: u64 = list.iter().map(|(_, length)| length).sum();
    let (index, trailer) = end.split_last_chunk::<TRAILER>().unwrap();
    assert_eq!(index.len(), list.len() * ENTRY);
    let trailer = Trailer::decode(trailer, data + end.len() as u64, image).unwrap();
    if let Ok(changes) = trailer.changes(index) {
        assert!(changes.iter().all(|change| change.offset + change.length <= image && change.length > 0));
    }
}
