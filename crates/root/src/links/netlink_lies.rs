//! A kernel that says what it likes: lost, cut, late, foreign and interrupted answers.

use super::super::message::{DONE, ERROR};
use super::*;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// What the kernel does when it is asked to give something.
enum Says {
    /// Messages: type, flags, which request of the last question, body.
    These(Vec<(u16, u16, u32, Vec<u8>)>),
    /// Any bytes.
    Bytes(Vec<u8>),
    /// An error of the call.
    Fails(io::Error),
}

/// A kernel with a plan.
struct Plan {
    says: RefCell<VecDeque<Says>>,
    /// The number of the last question's first request.
    first: Cell<u32>,
    asked: Cell<u32>,
}

impl Wire for &Plan {
    fn send(&self, messages: &[u8]) -> io::Result<()> {
        self.first.set(message::u32_at(messages, 8).unwrap());
        self.asked.set(self.asked.get() + 1);
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = match self.says.borrow_mut().pop_front() {
            // As the socket after its patience.
            None => return Err(io::ErrorKind::TimedOut.into()),
            Some(Says::Fails(error)) => return Err(error),
            Some(Says::Bytes(bytes)) => bytes,
            Some(Says::These(messages)) => messages
                .into_iter()
                .flat_map(|(kind, flags, nth, body)| one(kind, flags, self.first.get().wrapping_add(nth), &body))
                .collect(),
        };
        if bytes.len() > buffer.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

fn one(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn plan(says: Vec<Says>) -> Plan {
    Plan { says: RefCell::new(says.into()), first: Cell::new(0), asked: Cell::new(0) }
}

const MULTI: u16 = 0x2;
const INTERRUPTED: u16 = 0x10;
const KIND: u16 = 16;

fn list() -> Requests {
    let mut requests = Requests::default();
    requests.push(18, DUMP, &[0; 4]);
    requests
}

fn change() -> Requests {
    let mut requests = Requests::default();
    requests.push(16, ACK, &[0; 4]);
    requests
}

fn part(body: u8, flags: u16) -> (u16, u16, u32, Vec<u8>) {
    (KIND, MULTI | flags, 0, vec![body; 4])
}

fn end(flags: u16) -> (u16, u16, u32, Vec<u8>) {
    (DONE, MULTI | flags, 0, vec![0; 4])
}

fn errno(number: i32) -> Says {
    Says::Fails(io::Error::from_raw_os_error(number))
}

fn ask(plan: &Plan, mut requests: Requests) -> Result<Vec<Vec<u8>>, Refused> {
    Conn::over(plan).one("call", &mut requests)
}

#[test]
fn an_interrupted_list_is_asked_again_whole() {
    // The mark can stand on any message, also on the last one alone.
    for marks in [[INTERRUPTED, 0, 0], [0, INTERRUPTED, 0], [0, 0, INTERRUPTED]] {
        let told = plan(vec![
            Says::These(vec![part(1, marks[0])]),
            Says::These(vec![part(2, marks[1]), end(marks[2])]),
            Says::These(vec![part(3, 0), end(0)]),
        ]);
        assert_eq!(ask(&told, list()).unwrap(), [[3; 4]], "nothing of the torn list");
        assert_eq!(told.asked.get(), 2);
    }
    // For ever: an error, after so many times.
    let told = plan((0..100).map(|_| Says::These(vec![part(1, 0), end(INTERRUPTED)])).collect());
    let refused = ask(&told, list()).unwrap_err();
    assert!(refused.errno == 0 && refused.words.contains("changed each time"), "{refused}");
    assert_eq!(told.asked.get(), AGAIN);
}

#[test]
fn what_was_lost_is_asked_again_but_no_change_is_made_twice() {
    let told = plan(vec![errno(libc::ENOBUFS), Says::These(vec![part(7, 0), end(0)])]);
    assert_eq!(ask(&told, list()).unwrap(), [[7; 4]]);
    let told = plan(vec![errno(libc::ENOBUFS), Says::These(vec![(ERROR, 0, 0, vec![0; 20])])]);
    assert!(ask(&told, change()).is_err());
    assert_eq!(told.asked.get(), 1, "whether it was made is not known");
    let told = plan((0..100).map(|_| errno(libc::ENOBUFS)).collect());
    assert!(ask(&told, list()).is_err());
    assert_eq!(told.asked.get(), AGAIN);
    // Late answers to a question that broke off are nobody's.
    let told = plan(vec![
        errno(libc::ENOBUFS),
        Says::These(vec![(KIND, MULTI, u32::MAX, vec![9; 4]), (DONE, MULTI, u32::MAX, vec![0; 4]), part(7, 0)]),
        Says::These(vec![end(0)]),
    ]);
    assert_eq!(ask(&told, list()).unwrap(), [[7; 4]]);
}

#[test]
fn a_buffer_that_is_too_short_grows_up_to_a_bound() {
    let large = || Says::Bytes(vec![0; 200 << 10]);
    let told = plan(vec![large(), large(), Says::These(vec![part(7, 0), end(0)])]);
    assert_eq!(ask(&told, list()).unwrap(), [[7; 4]]);
    let told = plan((0..100).map(|_| Says::Bytes(vec![0; 4 << 20])).collect());
    assert!(ask(&told, list()).is_err());
    assert!(told.asked.get() < 10);
}

#[test]
fn cut_and_senseless_datagrams_are_no_answers() {
    let whole = one(ERROR, 0, 1, &[0; 20]);
    for cut in 0..whole.len() {
        let told = plan(vec![Says::Bytes(whole[..cut].to_vec())]);
        assert!(ask(&told, change()).is_err(), "{cut} of {} bytes", whole.len());
    }
    for length in [0_u32, 1, 15, 37, 1 << 20, u32::MAX] {
        let mut lie = whole.clone();
        lie[..4].copy_from_slice(&length.to_ne_bytes());
        let told = plan(vec![Says::Bytes(lie), Says::Bytes(vec![0xff; 64]), Says::Bytes(vec![])]);
        assert!(ask(&told, change()).is_err(), "{length}");
    }
    // An error without its number, an end without one, an error's words that end nowhere.
    for (kind, body) in [(ERROR, vec![]), (DONE, vec![1]), (ERROR, vec![0xff, 0xff])] {
        let told = plan(vec![Says::These(vec![(kind, 0, 0, body)])]);
        assert_eq!(ask(&told, change()).unwrap_err().errno, libc::EBADMSG);
    }
    let told = plan(vec![Says::These(vec![(ERROR, 0, 0, i32::MIN.to_ne_bytes().to_vec())])]);
    assert!(ask(&told, change()).is_err());
    let mut body = (-libc::EPERM).to_ne_bytes().to_vec();
    body.extend([0; 16]);
    body.extend([0xff, 0xff, 1, 0, b'x']);
    let told = plan(vec![Says::These(vec![(ERROR, 0x200, 0, body)])]);
    let refused = ask(&told, change()).unwrap_err();
    assert_eq!((refused.errno, refused.words.as_str()), (libc::EPERM, ""));
}

#[test]
fn a_list_that_ends_in_an_error_is_an_error() {
    let told = plan(vec![Says::These(vec![part(1, 0), (DONE, MULTI, 0, (-libc::EMSGSIZE).to_ne_bytes().to_vec())])]);
    assert_eq!(ask(&told, list()).unwrap_err().errno, libc::EMSGSIZE);
    // And one that never ends is one after the socket's patience.
    let told = plan((0..50).map(|_| Says::These(vec![part(1, 0)])).collect());
    assert_eq!(ask(&told, list()).unwrap_err().errno, 0);
}
