//! Kernels packed by the programs that the kernel's own build packs with, then cut and bent.

use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// A small ELF64 with something to load and a PVH note, with `filler` bytes behind them.
fn elf(filler: usize, note: u32) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for word in [0u64, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let end = 64 + 2 * 56;
    for (kind, from, length) in [(1u32, 0u64, 64u64), (4, end, 24)] {
        elf.extend(kind.to_le_bytes());
        elf.extend(0u32.to_le_bytes());
        for word in [from, 0, 0, length, length, 4] {
            elf.extend(word.to_le_bytes());
        }
    }
    for word in [4u32, 4, note] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(b"Xen\0");
    elf.extend([0; 8]);
    // Not all the same, so that blocks and matches of every kind come up.
    elf.extend((0..filler as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> (n % 29)) as u8));
    elf
}

fn packed_by(program: &str, arguments: &[&str], data: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("this test needs {program}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let data = data.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&data));
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(out.status.success(), "{program} failed");
    out.stdout
}

fn bz_image(packed: &[u8], size: usize) -> Vec<u8> {
    let mut image = vec![0; 3 * 512];
    image[0x1f1] = 2;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(packed.len() as u32 + 4).to_le_bytes());
    image.extend([0x90; 16]);
    image.extend(packed);
    image.extend((size as u32).to_le_bytes());
    image.extend([0; 100]);
    image
}

#[test]
fn what_the_kernels_own_packers_packed_comes_out_unchanged() {
    // More than two LZ4 blocks.
    let kernel = elf(20 << 20, 18);
    for (program, arguments) in [
        ("lz4", &["-l", "-9", "-c", "-"][..]),
        ("xz", &["--check=crc32", "--x86", "--lzma2=dict=8MiB,preset=1", "-c"]),
        ("zstd", &["-3", "-c"]),
    ] {
        let image = bz_image(&packed_by(program, arguments, &kernel), kernel.len());
        assert!(vmlinux(&image).unwrap() == kernel, "{program}: another kernel came out");
    }
}

#[test]
fn an_elf_kernel_passes_and_one_without_a_pvh_entry_does_not() {
    let kernel = elf(100, 18);
    assert_eq!(vmlinux(&kernel).unwrap(), kernel);
    let error = vmlinux(&elf(100, 17)).unwrap_err();
    assert!(error.to_string().contains("no PVH entry"), "{error}");
}

#[test]
fn every_cut_of_a_file_is_an_error() {
    let kernel = elf(300, 18);
    let image = bz_image(&packed_by("lz4", &["-l", "-c", "-"], &kernel), kernel.len());
    let payload_end = image.len() - 100;
    for length in 0..payload_end {
        assert!(vmlinux(&image[..length]).is_err(), "{length} of {} bytes passed", image.len());
    }
    for length in 0..200 {
        assert!(vmlinux(&kernel[..length]).is_err(), "{length} bytes of the ELF file passed");
    }
}

#[test]
fn a_wrong_size_is_named() {
    let kernel = elf(300, 18);
    let packed = packed_by("zstd", &["-c"], &kernel);
    for size in [kernel.len() - 1, kernel.len() + 1] {
        assert!(matches!(vmlinux(&bz_image(&packed, size)), Err(KernelError::Damaged { packer: "zstd", .. })));
    }
    for size in [0, 63, LARGEST + 1] {
        assert!(matches!(vmlinux(&bz_image(&packed, size)), Err(KernelError::Size(n)) if n == size as u64));
    }
}

#[test]
fn other_packers_and_other_files_are_named() {
    let gzip = vmlinux(&bz_image(&[0x1f, 0x8b, 8, 0], 1000)).unwrap_err();
    assert!(gzip.to_string().contains("packed with gzip"), "{gzip}");
    assert!(matches!(vmlinux(b"#!/bin/sh\n"), Err(KernelError::NotAKernel)));
    let mut old = bz_image(&[], 1000);
    old[0x206..0x208].copy_from_slice(&0x207u16.to_le_bytes());
    assert_eq!(vmlinux(&old).unwrap_err().to_string(), "boot protocol 2.07 is too old: 2.08 or newer is needed");
}

proptest! {
    #[test]
    fn bent_images_end_in_an_error_or_a_checked_kernel(
        packer in 0..3usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        static PACKED: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
        let images = PACKED.get_or_init(|| {
            let kernel = elf(3000, 18);
            [("lz4", &["-l", "-c", "-"][..]), ("xz", &["--check=crc32", "-c"]), ("zstd", &["-c"])]
                .map(|(program, arguments)| bz_image(&packed_by(program, arguments, &kernel), kernel.len()))
                .to_vec()
        });
        let mut image = images[packer].clone();
        for (at, byte) in changes {
            let at = at.index(image.len());
            image[at] = byte;
        }
        if let Ok(kernel) = vmlinux(&image) {
            prop_assert!(kernel.starts_with(b"\x7fELF"));
        }
    }
}
