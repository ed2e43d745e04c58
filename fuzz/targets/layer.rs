//! A layer that a VMM wrote: an empty one, and words of its header and tables that may be others.
#![no_main]

use banger::daemon::vm::layer::{Piece, pieces};
use libfuzzer_sys::fuzz_target;
use std::io::ErrorKind;
use wire::qcow2::{BY_ENTRY, CLUSTER, EMPTY, empty};

/// Two second tables, the last cluster not whole.
const SIZE: u64 = BY_ENTRY + 3 * CLUSTER + 512;

fuzz_target!(|data: &[u8]| {
    let Some((&[clusters, cut], words)) = data.split_first_chunk() else { return };
    let mut layer = vec![0; (EMPTY + u64::from(clusters % 16) * CLUSTER) as usize];
    for (at, part) in empty(SIZE) {
        layer[at as usize..][..part.len()].copy_from_slice(&part);
    }
    for word in words.chunks_exact(4) {
        change(&mut layer, [word[0], word[1], word[2], word[3]]);
    }
    // The end of the last cluster may be missing.
    layer.truncate(layer.len() - usize::from(cut) * 16);
    look(&layer);
});

/// Writes one word: where and what kind of, which, and two bytes of what.
fn change(layer: &mut [u8], [kind, index, high, low]: [u8; 4]) {
    let clusters = layer.len() as u64 / CLUSTER;
    let at = match kind & 3 {
        0 => u64::from(index % 14) * 8,
        1 => EMPTY - CLUSTER + u64::from(index % 4) * 8,
        table => EMPTY + u64::from(table - 2) * CLUSTER + u64::from(index) * 8,
    };
    let place = u64::from(high) % (clusters + 2) * CLUSTER | 1 << 63;
    let value = match kind >> 2 & 3 {
        0 => place,
        1 => place | 1,
        2 => u64::from(high) << 56 | u64::from(low),
        _ => 1 << (high % 64) | u64::from(low),
    };
    let Some(word) = layer.get_mut(at as usize..at as usize + 8) else { return };
    word.copy_from_slice(&value.to_be_bytes());
}

fn look(layer: &[u8]) {
    let length = layer.len() as u64;
    let (mut reads, mut end, mut data) = (0, 0, Vec::new());
    let read = |at: u64, bytes: &mut [u8]| {
        reads += 1;
        assert!(reads <= 2 + SIZE.div_ceil(BY_ENTRY), "each table once");
        let found = layer.get(at as usize..at as usize + bytes.len()).ok_or(ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    };
    let _ = pieces(SIZE, length, read, |piece| {
        let (at, bytes) = match piece {
            Piece::Zeros { at, length } => (at, length),
            Piece::Data { from, at, length } => {
                data.push(from);
                (at, length)
            }
        };
        assert!(at >= end && (1..=CLUSTER).contains(&bytes) && at + bytes <= SIZE);
        end = at + bytes;
        Ok(())
    });
    data.sort_unstable();
    assert!(data.windows(2).all(|two| two[0] != two[1]), "a cluster is written once");
    assert!(data.iter().all(|from| *from > 0 && *from < length && from % CLUSTER == 0));
}
