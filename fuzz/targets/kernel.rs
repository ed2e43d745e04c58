//! A kernel file: cut, bent, packed wrongly.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The size that a file claims is the memory that is taken for it: large ones are tested elsewhere.
    let claims = |at: usize| data.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let setup = data.get(0x1f1).map_or(4, |n| if *n == 0 { 4 } else { usize::from(*n) });
    let end = (setup + 1) * 512 + claims(0x248) as usize + claims(0x24c) as usize;
    if end.checked_sub(4).is_some_and(|at| claims(at) > 16 << 20) {
        return;
    }
    if let Ok(kernel) = banger::image::kernel::vmlinux(data) {
        assert!(kernel.starts_with(b"\x7fELF"));
    }
});
