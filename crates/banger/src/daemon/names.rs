//! The names of VMs: `web.vm` has an address, everything else is unknown here.
//!
//! A DNS server on one UDP socket (RFC 1035, OPT after RFC 6891), asked by systemd-resolved for what ends in `vm`, or by
//! whoever asks it himself. Nothing is asked of others and nothing may be kept by a cache: a VM's name is true while it
//! runs. Answers are never longer than the oldest clients take.

use simple_dns::rdata::{A, OPT, RData};
use simple_dns::{CLASS, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

/// Where it listens: systemd-resolved is told so by `priv.sync_resolver_routing`.
pub const ADDRESS: &str = "127.0.0.1:42069";
/// The top-level name of VMs.
pub const ZONE: &str = "vm";
/// The longest question that is looked at, in bytes. One name of the longest kind, and options.
const LONGEST: usize = 1232;
/// The version of EDNS that is spoken.
const EDNS: u8 = 0;

/// Opens the socket.
///
/// # Errors
/// Where the address is taken, or not this machine's.
pub fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind(address)
}

/// Answers for as long as the socket works. `find` gives a VM's address by its name, in lower case.
///
/// # Errors
/// What ended it: never a client's doing.
pub fn serve(socket: &UdpSocket, find: impl Fn(&str) -> Option<Ipv4Addr>) -> io::Result<()> {
    // A byte more, so that a longer one is seen to be.
    let mut question = [0; LONGEST + 1];
    loop {
        let (len, from) = match socket.recv_from(&mut question) {
            Ok(received) => received,
            // An earlier answer found nobody.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some(answer) = answer(&question[..len], &find) {
            // Who asked asks again.
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// The answer to a question, `None` where there is to be none: to noise, and to answers, which two servers would send
/// each other for ever.
fn answer(bytes: &[u8], find: impl Fn(&str) -> Option<Ipv4Addr>) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let header = bytes.get(..HEADER)?;
    let is_answer = header[2] & 0x80 != 0;
    if is_answer {
        return None;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let question = Packet::parse(bytes).ok().filter(|_| bytes.len() <= LONGEST);
    let Some(question) = question else {
        let mut reply = Packet::new_reply(id);
        *reply.rcode_mut() = RCODE::FormatError;
        return reply.build_bytes_vec().ok();
    };
    if question.opt().is_some_and(|opt| opt.version != EDNS) {
        return bad_version(&question);
    }
    reply_to(&question, find).build_bytes_vec().ok()
}

fn options() -> OPT<'static> {
    OPT { opt_codes: Vec::new(), udp_packet_size: LONGEST as u16, version: EDNS }
}

/// `BADVERS`, 16. The library would write its upper bits where flags belong; they are the first byte of the record's
/// four that are a TTL elsewhere, and the record, without data, is the last.
fn bad_version(question: &Packet<'_>) -> Option<Vec<u8>> {
    let mut reply = Packet::new_reply(question.id());
    *reply.opt_mut() = Some(options());
    let mut bytes = reply.build_bytes_vec().ok()?;
    let upper = bytes.len().checked_sub(6)?;
    bytes[upper] = 1;
    Some(bytes)
}

fn reply_to<'a>(question: &Packet<'a>, find: impl Fn(&str) -> Option<Ipv4Addr>) -> Packet<'a> {
    let mut reply = Packet::new_reply(question.id());
    *reply.opcode_mut() = question.opcode();
    if question.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    *reply.opt_mut() = question.opt().map(|_| options());
    if question.opcode() != OPCODE::StandardQuery {
        *reply.rcode_mut() = RCODE::NotImplemented;
        return reply;
    }
    let [asked] = &question.questions[..] else {
        *reply.rcode_mut() = RCODE::FormatError;
        return reply;
    };
    reply.questions.push(asked.clone());
    let internet = matches!(asked.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
    let labels: Vec<String> =
        asked.qname.as_bytes().map(|label| String::from_utf8_lossy(label).to_lowercase()).collect();
    let parts: Vec<&str> = labels.iter().map(String::as_str).collect();
    let address = match parts[..] {
        _ if !internet => None,
        [name, ZONE] => find(name),
        // The zone itself is there, and has no address.
        [ZONE] => {
            reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
            return reply;
        }
        _ => None,
    };
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    match address {
        None => *reply.rcode_mut() = RCODE::NameError,
        // Other kinds, an IPv6 address above all: the name is there, and has none.
        Some(address) if matches!(asked.qtype, QTYPE::TYPE(TYPE::A) | QTYPE::ANY) => {
            let data = RData::A(A { address: address.to_bits() });
            reply.answers.push(ResourceRecord::new(asked.qname.clone(), CLASS::IN, 0, data));
        }
        Some(_) => {}
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use simple_dns::{Name, Question};

    fn web(name: &str) -> Option<Ipv4Addr> {
        (name == "web").then_some(Ipv4Addr::new(172, 16, 0, 7))
    }

    fn question(name: &str, kind: QTYPE) -> Packet<'_> {
        let mut packet = Packet::new_query(0x1234);
        packet.questions.push(Question::new(Name::new_unchecked(name), kind, CLASS::IN.into(), false));
        packet
    }

    /// The reply's code and the addresses in it.
    fn asked(packet: &Packet<'_>) -> (RCODE, Vec<Ipv4Addr>) {
        let bytes = answer(&packet.build_bytes_vec().unwrap(), web).expect("an answer");
        assert!(bytes.len() <= 512);
        let reply = Packet::parse(&bytes).unwrap();
        assert_eq!(reply.id(), 0x1234);
        assert!(reply.has_flags(PacketFlag::RESPONSE));
        let address = |record: &ResourceRecord<'_>| match &record.rdata {
            RData::A(a) if record.ttl == 0 => Ipv4Addr::from_bits(a.address),
            other => panic!("{other:?}"),
        };
        (reply.rcode(), reply.answers.iter().map(address).collect())
    }

    #[test]
    fn a_running_vm_has_an_address_and_nobody_else_has() {
        let there = vec![Ipv4Addr::new(172, 16, 0, 7)];
        for name in ["web.vm", "WEB.Vm"] {
            assert_eq!(asked(&question(name, TYPE::A.into())), (RCODE::NoError, there.clone()), "{name}");
        }
        assert_eq!(asked(&question("web.vm", QTYPE::ANY)), (RCODE::NoError, there));
        for kind in [TYPE::AAAA, TYPE::MX, TYPE::TXT] {
            assert_eq!(asked(&question("web.vm", kind.into())), (RCODE::NoError, vec![]), "{kind:?}");
        }
        assert_eq!(asked(&question("vm", TYPE::A.into())), (RCODE::NoError, vec![]));
        for name in ["db.vm", "a.web.vm", "web", "web.vm.example", "example.org", "web.vmx"] {
            assert_eq!(asked(&question(name, TYPE::A.into())), (RCODE::NameError, vec![]), "{name}");
        }
        let mut chaos = question("web.vm", TYPE::A.into());
        chaos.questions[0].qclass = CLASS::CH.into();
        assert_eq!(asked(&chaos), (RCODE::NameError, vec![]));
    }

    #[test]
    fn what_is_no_question_is_told_so() {
        let mut two = question("web.vm", TYPE::A.into());
        two.questions.push(two.questions[0].clone());
        assert_eq!(asked(&two).0, RCODE::FormatError);
        assert_eq!(asked(&Packet::new_query(0x1234)).0, RCODE::FormatError);
        let mut update = question("web.vm", TYPE::A.into());
        *update.opcode_mut() = OPCODE::Update;
        assert_eq!(asked(&update), (RCODE::NotImplemented, vec![]));
        let whole = question("web.vm", TYPE::A.into()).build_bytes_vec().unwrap();
        let cut = Packet::parse(&answer(&whole[..20], web).unwrap()).unwrap().rcode();
        assert_eq!(cut, RCODE::FormatError);
        assert!(answer(&whole[..11], web).is_none());
        let mut said = whole;
        said[2] |= 0x80;
        assert!(answer(&said, web).is_none(), "an answer is not answered");
    }

    #[test]
    fn options_are_answered_with_ours() {
        let mut packet = question("web.vm", TYPE::A.into());
        *packet.opt_mut() = Some(OPT { opt_codes: vec![], udp_packet_size: 4096, version: 0 });
        let bytes = answer(&packet.build_bytes_vec().unwrap(), web).unwrap();
        let reply = Packet::parse(&bytes).unwrap();
        assert_eq!((reply.opt().unwrap().udp_packet_size, reply.answers.len()), (1232, 1));
        packet.opt_mut().as_mut().unwrap().version = 1;
        let bytes = answer(&packet.build_bytes_vec().unwrap(), web).unwrap();
        // Name, type, size, BADVERS' upper bits, version, flags, no data.
        assert_eq!(bytes[12..], [0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn noise_is_answered_or_not_and_never_ends_it(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(reply) = answer(&bytes, web) {
                prop_assert!(bytes[2] & 0x80 == 0 && reply[..2] == bytes[..2] && reply[2] & 0x80 != 0);
            }
        }

        #[test]
        fn a_changed_question_as_well(at in 0_usize..24, byte: u8) {
            let mut bytes = question("web.vm", TYPE::A.into()).build_bytes_vec().unwrap();
            bytes[at] = byte;
            let _ = answer(&bytes, web);
        }
    }
}
