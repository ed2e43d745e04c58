//! A conversation with somebody who does not keep to it.

use super::*;
use std::os::unix::net::UnixListener;

/// Whoever connects is told `says`, whatever he says, and then nothing; the socket stays open.
fn with_peer(says: &[u8]) -> (tempfile::TempDir, Result<Option<Bus>, Trouble>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    let listener = UnixListener::bind(&path).unwrap();
    let says = says.to_vec();
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(&says);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    });
    let opened = Bus::open_at(path.to_str().unwrap());
    if opened.is_err() {
        peer.join().unwrap();
    }
    (dir, opened)
}

#[test]
fn nonsense_ends_the_conversation() {
    for says in [&b"REJECTED EXTERNAL\r\n"[..], &[b'x'; 4096], &[&b"OK 12\r\n"[..], &[0xff; 64]].concat()] {
        let (_dir, opened) = with_peer(says);
        assert!(matches!(opened, Err(Trouble::Lost(_))), "{says:?}");
    }
}

#[test]
fn who_says_nothing_is_waited_for_five_seconds() {
    let begun = Instant::now();
    let (_dir, opened) = with_peer(b"OK 12\r\nl\x02\x01\x01");
    let Err(Trouble::Lost(why)) = opened else { panic!("it waits for the rest of a message") };
    assert!(why.contains("five seconds"), "{why}");
    assert!((PATIENCE..PATIENCE * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[test]
fn no_bus_is_no_trouble_and_a_file_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    let path = path.to_str().unwrap();
    assert!(matches!(Bus::open_at(path), Ok(None)), "nothing is there");
    drop(UnixListener::bind(path).unwrap());
    assert!(matches!(Bus::open_at(path), Ok(None)), "nobody listens");
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, "").unwrap();
    assert!(matches!(Bus::open_at(path), Err(Trouble::Lost(_))), "a file");
    std::fs::remove_file(path).unwrap();
    std::os::unix::fs::symlink("/run", path).unwrap();
    assert!(matches!(Bus::open_at(path), Err(Trouble::Lost(_))), "a link");
}
