//! A journal of a guest's: bytes are made to blocks whose marks, numbers and checksums may be put right.
#![no_main]

use image::journal::{Bad, plan};
use libfuzzer_sys::fuzz_target;
use wire::worker::log::crc32c;

const BLOCK: usize = 1024;
const MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];

fuzz_target!(|data: &[u8]| {
    let Some((&[features, kinds], rest)) = data.split_first_chunk() else { return };
    let mut blocks: Vec<Vec<u8>> = rest
        .chunks(64)
        .take(64)
        .map(|chunk| {
            let mut block = chunk.to_vec();
            block.resize(BLOCK, 0);
            block
        })
        .collect();
    let length = blocks.len() as u32;
    let Some(first) = blocks.first_mut() else { return };
    superblock(first, length, features);
    let seed = crc32c(!0, &first[0x30..0x40]);
    for block in blocks.iter_mut().skip(1) {
        if block[63] & 1 == 1 {
            continue;
        }
        // The mark, and a number close to the first one's.
        block[..4].copy_from_slice(&MAGIC);
        let (kind, sequence) = (block[7] % 6, block[11] % 4);
        block[4..12].copy_from_slice(&[0, 0, 0, kind, 0, 0, 0, sequence]);
        if kinds & 1 == 1 {
            let at = if block[7] == 2 { 16 } else { BLOCK - 4 };
            block[at..at + 4].fill(0);
            let sum = crc32c(seed, block);
            block[at..at + 4].copy_from_slice(&sum.to_be_bytes());
        }
    }
    let mut reads = 0;
    let found = plan(BLOCK, length, |at, into| {
        reads += 1;
        into.copy_from_slice(blocks.get(at as usize).ok_or(Bad::Unread)?);
        Ok(())
    });
    assert!(reads <= 2 * length + 1, "each block is looked at once, and once more for its checksum");
    if let Ok(plan) = found {
        assert!(plan.blocks.len() <= length as usize);
        assert!(plan.blocks.values().all(|place| (1..length).contains(&place.block)));
        let again = plan.emptied.clone();
        let empty = self::again(&again, length);
        assert!(empty.is_some_and(|plan| plan.blocks.is_empty()), "an emptied journal is empty");
    }
});

fn again(superblock: &[u8], length: u32) -> Option<image::journal::Plan> {
    plan(BLOCK, length, |_, into| {
        into.copy_from_slice(superblock);
        Ok(())
    })
    .ok()
}

fn superblock(block: &mut [u8], length: u32, features: u8) {
    let mut put = |at: usize, value: u32| block[at..at + 4].copy_from_slice(&value.to_be_bytes());
    put(0, u32::from_be_bytes(MAGIC));
    put(4, if features & 0x80 == 0 { 4 } else { 3 });
    put(0xc, BLOCK as u32);
    put(0x10, length);
    put(0x14, 1);
    put(0x18, 1);
    put(0x1c, 1);
    put(0x20, 0);
    put(0x28, u32::from(features & 0x1b));
    block[0x50] = 4;
    block[0xfc..0x100].fill(0);
    let sum = crc32c(!0, block);
    block[0xfc..0x100].copy_from_slice(&sum.to_be_bytes());
}
