//! Many taps gone in the time of one: the kernel waits once for all links of a group.

use super::link::{self, Link};
use super::tap::{self, AT_ONCE};
use super::{nat, refused};
use crate::fail::Fail;
use crate::host::Host;
use crate::steps::{self, Steps};
use std::collections::BTreeSet;
use wire::name::link::TapName;

/// Takes the taps away with all that the tables hold of them, or none of them: one that is somebody else's refuses all.
///
/// Nothing is held while the kernel waits but these taps' own names.
pub(crate) fn delete(host: &Host, names: &[TapName]) -> Result<(), Fail> {
    // In their order, as who holds more than one takes them; each once.
    let names: BTreeSet<&TapName> = names.iter().collect();
    let _taps: Vec<_> = names.iter().map(|name| host.net.locks.hold(format!("tap:{name}"))).collect();
    let there = names.iter().filter_map(|name| tap::find(host, name).transpose()).collect::<Result<Vec<_>, _>>()?;
    steps::run("delete_taps", &host.faults, |steps| {
        tap::detach(host, steps, &there)?;
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        for some in names.chunks(AT_ONCE) {
            nat::forget(host, steps, some)?;
        }
        if there.is_empty() { Ok(()) } else { remove(host, steps, &there) }
    })
}

/// Puts the links into a group of their own and removes the group.
///
/// The kernel removes whatever is in the group at that moment, so nobody else's link may be in it. It has no "remove
/// these if they are still mine"; what stands for it:
/// - The number is random among 2^31 and used once. A link is in it by chance, or because another program of root's read the
///   number off our taps within the next milliseconds and set it.
/// - Links are put in by index. The kernel counts indexes up, so one that went is not another link's a moment later,
///   unless root asks for that number.
/// - Then all links are read, and the group must be these taps, each with our name and mark still. If another is in it,
///   nothing is removed, and the taps get their groups back.
///
/// What is left is what root does between that reading and the next message: it could remove the link as well.
fn remove<'a>(host: &'a Host, steps: &mut Steps<'a>, taps: &[Link]) -> Result<(), Fail> {
    let links = &host.net.links;
    let group = number().map_err(|error| Fail::new("the kernel gave no random number").because(error))?;
    let before: Vec<(u32, u32)> = taps.iter().map(|tap| (tap.index, tap.group)).collect();
    let put =
        |of: &[(u32, u32)]| of.chunks(AT_ONCE).try_for_each(|some| links.with(|conn| link::set_groups(conn, some)));
    let own: Vec<(u32, u32)> = taps.iter().map(|tap| (tap.index, group)).collect();
    steps.undo("the taps' groups", move || put(&before).map_err(refused));
    steps.act("group", || {
        put(&own).map_err(|error| Fail::new("the taps could not be put into a group").because(error))
    })?;
    steps.act("link", || {
        let all = links.with(|conn| link::list(conn, None)).map_err(refused)?;
        let within: Vec<&Link> = all.iter().filter(|link| link.group == group).collect();
        let is_one = |link: &Link| {
            tap::is_ours(link) && taps.iter().any(|tap| (tap.index, &tap.name) == (link.index, &link.name))
        };
        if let Some(other) = within.iter().find(|link| !is_one(link)) {
            return Err(Fail::new(format!(
                "somebody put the link {} among the taps that were to go: nothing was removed, try again",
                other.name
            )));
        }
        // Empty: others removed them meanwhile, and the kernel would call that an error.
        match links.with(|conn| if within.is_empty() { Ok(()) } else { link::remove_group(conn, group) }) {
            Err(error) if !error.is(libc::ENODEV) => Err(Fail::new("the taps could not be removed").because(error)),
            _ => Ok(()),
        }
    })
}

/// A group's number: never 0, which is every link's.
fn number() -> Result<u32, rustix::io::Errno> {
    let mut bytes = [0; 4];
    loop {
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        match u32::from_ne_bytes(bytes) >> 1 {
            0 => {}
            number => return Ok(number),
        }
    }
}
