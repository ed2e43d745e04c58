//! The bytes against those that sd-bus and dbus-daemon wrote, and against bytes of nobody.

use super::super::calls::{self, Call, MANAGER};
use super::*;
use proptest::prelude::*;
use wire::name::addr::ServerAddr;

/// A message that was taken from a real bus (`busctl --auto-start=no call …` of systemd 252, dbus-daemon 1.14): the
/// second one of a conversation, for link 7, and what the daemon answered.
fn captured(name: &str) -> Vec<u8> {
    let line = include_str!("captured.txt").lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let hex = line.unwrap_or_else(|| panic!("{name} is captured"));
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn calls_are_those_of_sd_bus() {
    let same = |made: Call| {
        let bytes = call(2, &MANAGER, made.member, made.signature, &made.body);
        assert_eq!(bytes, captured(made.member), "{}", made.member);
    };
    same(calls::dns(7, ServerAddr::new("172.16.0.1").unwrap()));
    same(calls::dns(7, ServerAddr::new("127.0.0.1:42069").unwrap()));
    same(calls::domains(7));
    same(calls::no_default_route(7));
    same(calls::off("SetLinkLLMNR", 7));
    same(calls::revert(7));
}

#[test]
fn port_53_needs_no_port_and_ipv6_has_its_family() {
    assert_eq!(calls::dns(7, ServerAddr::new("172.16.0.1:53").unwrap()).member, "SetLinkDNS");
    let six = calls::dns(7, ServerAddr::new("[fd00::1]:5353").unwrap());
    assert_eq!((six.member, six.signature), ("SetLinkDNSEx", "ia(iayqs)"));
    let bytes = call(2, &MANAGER, six.member, six.signature, &six.body);
    let body = &bytes[bytes.len() - 41..];
    assert_eq!(body[..4], 7_u32.to_le_bytes(), "the link, then the array's length, aligned for a struct");
    assert_eq!(body[4..8], 33_u32.to_le_bytes());
    assert_eq!(body[8..16], [10, 0, 0, 0, 16, 0, 0, 0], "AF_INET6, sixteen bytes");
    assert_eq!(body[32..34], 5353_u16.to_le_bytes());
}

#[test]
fn the_bus_s_answers_are_read() {
    let (reply, signal, error) = (captured("reply"), captured("signal"), captured("error"));
    for whole in [&reply, &signal, &error] {
        assert_eq!(length(whole.first_chunk().unwrap()), Some(whole.len()));
    }
    // To Hello: the name that the bus gave.
    let Some(Heard::Reply(kind, body)) = read(&reply, 1) else { panic!("no reply") };
    assert_eq!((kind.as_str(), number(&body)), ("s", Some(4)));
    assert_eq!(read(&reply, 2), Some(Heard::Other), "another call's");
    assert_eq!(read(&signal, 1), Some(Heard::Other), "NameAcquired");
    let Some(Heard::Error(name, words)) = read(&error, 2) else { panic!("no error") };
    assert_eq!(name, "org.freedesktop.DBus.Error.NameHasNoOwner");
    assert_eq!(words, "Name \"org.freedesktop.resolve1\" does not exist");
}

#[test]
fn a_length_that_lies_is_refused() {
    let mut head: [u8; HEAD] = *captured("error").first_chunk().unwrap();
    for (at, bytes) in [(4, [0xff; 4]), (12, [0xff; 4]), (12, [0, 0, 1, 0]), (0, [b'B', 3, 1, 1]), (0, [b'l', 3, 1, 2])]
    {
        let right = head;
        head[at..at + 4].copy_from_slice(&bytes);
        assert_eq!(length(&head), None, "{at} {bytes:?}");
        head = right;
    }
}

proptest! {
    #[test]
    fn bytes_of_nobody_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), serial in any::<u32>()) {
        if let Some(head) = bytes.first_chunk() {
            prop_assert!(length(head).is_none_or(|length| (HEAD..=LONGEST).contains(&length)));
        }
        let _ = (read(&bytes, serial), number(&bytes));
    }

    /// Close to real ones, so that the reader gets far: some bytes changed, the end cut, the lengths put right again.
    #[test]
    fn spoilt_answers_do_no_harm(
        which in proptest::sample::select(vec!["reply", "signal", "error"]),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        cut in 0_usize..40,
        mend in any::<bool>(),
    ) {
        let mut bytes = captured(which);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut);
        if mend {
            bytes[..4].copy_from_slice(&[b'l', 3, 1, 1]);
            let fields = Reader { bytes: &bytes, at: 12 }.u32().unwrap() as usize;
            let body = bytes.len().saturating_sub(HEAD).saturating_sub(fields.next_multiple_of(8)) as u32;
            bytes[4..8].copy_from_slice(&body.to_le_bytes());
        }
        let _ = read(&bytes, 2);
    }
}
