//! A VM's tap, as the kernel knows it: one question, asked before a launch.

use crate::fail::Fail;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use sys::creds::Identity;
use sys::netlink::{Family, Socket};
use wire::code::shown;
use wire::name::link::TapName;

/// The alias of a tap that is banger's; `create_tap` sets it.
const MARK: &str = "banger tap";

const NLMSG_HEAD: usize = 16;
const NLMSG_ERROR: u16 = 2;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const IFINFO_HEAD: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_CARRIER: u16 = 33;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const TUN_OWNER: u16 = 1;
const TUN_TYPE: u16 = 3;
const IS_TAP: u8 = 2;

/// What counts of a tap.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tap {
    name: String,
    alias: String,
    is_tap: bool,
    owner: Option<u32>,
    is_on_a_bridge: bool,
    is_open: bool,
}

/// Whether a VM of the owner's may have that tap: it is banger's, his, on a bridge, and nothing has it open.
pub(super) fn check(name: &TapName, owner: u32) -> Result<(), Fail> {
    let refuse = |why: &str| Fail::new(format!("tap_device: {} {why}", shown(name.as_str())));
    let found =
        ask(name.as_str()).map_err(|error| refuse("can't be looked up").because(format!("RTM_GETLINK: {error}")))?;
    // An alternative name finds its link too.
    let tap =
        found.filter(|tap| tap.name == name.as_str()).ok_or_else(|| refuse("is not there: create_tap makes it"))?;
    match tap {
        Tap { is_tap: false, .. } => Err(refuse("is not a tap")),
        Tap { alias, .. } if alias != MARK => Err(refuse("is not banger's")),
        Tap { owner: Some(uid), .. } if uid != owner => {
            Err(refuse("belongs to another user: create_tap puts it right"))
        }
        Tap { owner: None, .. } => Err(refuse("belongs to nobody: create_tap puts it right")),
        Tap { is_on_a_bridge: false, .. } => Err(refuse("is on no bridge: create_tap puts it right")),
        Tap { is_open: true, .. } => Err(refuse("is in use: something has it open")),
        Tap { .. } => Ok(()),
    }
}

/// Whether the owner can open taps at all. Without udev the device is often root's alone.
pub(super) fn can_be_opened(owner: &Identity) -> bool {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let opened = owner.run_as(|| rustix::fs::open("/dev/net/tun", flags, Mode::empty()));
    !matches!(opened, Ok(Err(Errno::ACCESS | Errno::PERM)))
}

fn ask(name: &str) -> io::Result<Option<Tap>> {
    let socket = Socket::open(Family::Route)?;
    socket.send(&request(name))?;
    let mut buffer = vec![0; 32 << 10];
    let length = socket.receive(&mut buffer)?;
    let answer = buffer.get(..length).unwrap_or_default();
    let body = answer.get(NLMSG_HEAD..).unwrap_or_default();
    if u16_at(answer, 4) != Some(NLMSG_ERROR) {
        return Ok(Some(read(body)));
    }
    let error = u32_at(body, 0).unwrap_or(0).cast_signed().unsigned_abs().cast_signed();
    if error == libc::ENODEV { Ok(None) } else { Err(io::Error::from_raw_os_error(error)) }
}

fn request(name: &str) -> Vec<u8> {
    let attr = 4 + name.len() + 1;
    let padded = attr.next_multiple_of(4);
    let mut message = vec![0; NLMSG_HEAD + IFINFO_HEAD + padded];
    // Short, as a link's name is: the lengths fit.
    let (whole, attr) = ((message.len() as u32).to_ne_bytes(), (attr as u16).to_ne_bytes());
    message[..4].copy_from_slice(&whole);
    message[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    let at = NLMSG_HEAD + IFINFO_HEAD;
    message[at..at + 2].copy_from_slice(&attr);
    message[at + 2..at + 4].copy_from_slice(&IFLA_IFNAME.to_ne_bytes());
    message[at + 4..at + 4 + name.len()].copy_from_slice(name.as_bytes());
    message
}

fn read(body: &[u8]) -> Tap {
    let mut tap = Tap::default();
    for (kind, value) in attrs(body.get(IFINFO_HEAD..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => tap.name = text(value),
            IFLA_IFALIAS => tap.alias = text(value),
            IFLA_MASTER => tap.is_on_a_bridge = true,
            IFLA_CARRIER => tap.is_open = value == [1],
            IFLA_LINKINFO => {
                let is_tun = attrs(value).any(|(kind, value)| kind == INFO_KIND && text(value) == "tun");
                let data = attrs(value).find(|(kind, _)| *kind == INFO_DATA).map_or(&[][..], |(_, data)| data);
                for (kind, value) in attrs(data) {
                    match kind {
                        TUN_OWNER => tap.owner = u32_at(value, 0),
                        TUN_TYPE => tap.is_tap = is_tun && value == [IS_TAP],
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    tap
}

/// The attributes in `bytes`: number and value. Ends at the first that is not whole.
fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const NESTED: u16 = 0x8000;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let value = bytes.get(4..length)?;
        let kind = u16_at(bytes, 2)? & !NESTED;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lo_is_there_and_no_tap() {
        assert_eq!(ask("lo").unwrap().map(|tap| (tap.name, tap.is_tap)), Some(("lo".into(), false)));
        assert_eq!(ask("tap-fc-nowhere").unwrap(), None);
    }

    #[test]
    fn broken_attributes_end_the_list() {
        for broken in [&[0u8; 4][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 7], &[4]] {
            assert_eq!(attrs(broken).count(), 0, "{broken:?}");
        }
        assert_eq!(
            attrs(&[5, 0, 1, 0, 7, 0, 0, 0, 6, 0, 2, 128, 1, 2]).collect::<Vec<_>>(),
            [(1, &[7][..]), (2, &[1, 2])]
        );
    }
}
