//! A VM's tap, as the kernel knows it: one question, asked before a launch.

use crate::fail::Fail;
use crate::links::link::{self, Link, Tun};
use crate::links::netlink::Conn;
use crate::mark;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sys::creds::Identity;
use sys::netlink::Family;
use wire::code::shown;
use wire::name::link::TapName;

/// Whether a VM of the owner's may have that tap: it is banger's, his, on a bridge, and nothing has it open.
pub(super) fn check(name: &TapName, owner: u32) -> Result<(), Fail> {
    let refuse = |why: &str| Fail::new(format!("tap_device: {} {why}", shown(name.as_str())));
    let found = Conn::open(Family::Route)
        .and_then(|mut conn| link::by_name(&mut conn, name.as_str()))
        .map_err(|error| refuse("can't be looked up").because(error))?;
    // An alternative name finds its link too.
    let link =
        found.filter(|link| link.name == name.as_str()).ok_or_else(|| refuse("is not there: create_tap makes it"))?;
    match why_not(&link, owner) {
        None => Ok(()),
        Some(why) => Err(refuse(why)),
    }
}

fn why_not(link: &Link, owner: u32) -> Option<&'static str> {
    let Some(tun @ Tun { is_tap: true, .. }) = link.tun else { return Some("is not a tap") };
    match tun.owner {
        _ if !mark::is_tap(link) => Some("is not banger's"),
        Some(uid) if uid != owner => Some("belongs to another user: create_tap puts it right"),
        None => Some("belongs to nobody: create_tap puts it right"),
        Some(_) if link.master == 0 => Some("is on no bridge: create_tap puts it right"),
        Some(_) if link.carrier => Some("is in use: something has it open"),
        Some(_) => None,
    }
}

/// Whether the owner can open taps at all. Without udev the device is often root's alone.
pub(super) fn can_be_opened(owner: &Identity) -> bool {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let opened = owner.run_as(|| rustix::fs::open("/dev/net/tun", flags, Mode::empty()));
    !matches!(opened, Ok(Err(Errno::ACCESS | Errno::PERM)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told() {
        let tun = Tun { is_tap: true, owner: Some(7), ..Tun::default() };
        let good = Link { kind: "tun".into(), alias: mark::TAP.into(), master: 3, tun: Some(tun), ..Link::default() };
        assert_eq!(why_not(&good, 7), None);
        let with_tun = |tun| Link { tun: Some(tun), ..good.clone() };
        for (link, word) in [
            (Link { tun: None, kind: "veth".into(), ..good.clone() }, "not a tap"),
            (with_tun(Tun { is_tap: false, ..tun }), "not a tap"),
            (Link { alias: "openvpn".into(), ..good.clone() }, "not banger's"),
            (with_tun(Tun { owner: Some(8), ..tun }), "another user"),
            (with_tun(Tun { owner: None, ..tun }), "nobody"),
            (Link { master: 0, ..good.clone() }, "no bridge"),
            (Link { carrier: true, ..good.clone() }, "in use"),
        ] {
            assert!(why_not(&link, 7).is_some_and(|why| why.contains(word)), "{word}");
        }
    }
}
