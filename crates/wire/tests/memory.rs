//! A large request is decoded in little more memory than its text takes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use wire::frame::Decoder;
use wire::path::Roots;
use wire::{Method, Request};

/// A value of this process's status in KiB.
fn status(key: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Ten MiB in base64 are fourteen MB of text, and the content gets their place.
#[test]
fn ten_mebibytes_of_files_are_decoded_without_a_copy_of_the_text() {
    const CONTENT: usize = 10 << 20;
    // Three bytes, four characters: "a-z" again and again.
    let unit = "YS16".repeat(16 << 10);
    let before = format!(
        "{{\"version\":1,\"method\":\"{}\",\"params\":{{\"image_path\":\"/var/lib/banger/a.ext4\",\"files\":[{{\"guest_path\":\"/big\",\"data\":\"",
        Method::WriteExt4Files.name()
    );
    let behind = "\",\"mode\":420}]},\"op_id\":\"op-1\"}\n";

    // Peak and present usage start as the same.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let start = status("VmRSS:");
    let mut decoder = Decoder::new(32 << 20);
    let mut left = CONTENT.div_ceil(3) * 4;
    assert!(decoder.push(before.as_bytes()).unwrap().is_none());
    while left > 0 {
        let part = &unit[..left.min(unit.len())];
        assert!(decoder.push(part.as_bytes()).unwrap().is_none());
        left -= part.len();
    }
    let frame = decoder.push(behind.as_bytes()).unwrap().unwrap();
    let text = CONTENT.div_ceil(3) * 4 + before.len() + behind.len();
    let roots = Roots { state: "/var/lib/banger".into(), runtime: "/run/banger".into() };
    let request = Request::of(frame, &roots).unwrap();
    let peak = (status("VmHWM:") - start) * 1024;

    let Request::WriteExt4Files(write) = request else { panic!("another method") };
    assert_eq!(write.files[0].data.len(), CONTENT.div_ceil(3) * 3);
    assert!(write.files[0].data.chunks(3).all(|three| three == b"a-z"));
    assert!(peak < text * 12 / 10, "{peak} bytes at the peak for {text} bytes of text");
}
