//! Forwarding, link by link: on a guest's bridge and where answers come in. Never `ip_forward`, which opens the host.
//!
//! What was changed is written down first (`forwarding` among the records: a line `index name` each) and put back with
//! the last guest, where nobody changed it meanwhile.

use super::link::{self, Link};
use super::route;
use super::{Net, bridge, refused};
use crate::fail::Fail;
use crate::host::Host;
use crate::mark;
use rustix::fs::{Mode, OFlags};
use std::io::{Read as _, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// `IPV4_DEVCONF_FORWARDING`.
pub(crate) const FORWARDING: u16 = 1;
/// The record's name.
const RECORD: &str = "forwarding";

/// A link on which forwarding was off before us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) index: u32,
    pub(crate) name: String,
}

impl Opened {
    fn of(link: &Link) -> Opened {
        Opened { index: link.index, name: link.name.clone() }
    }
}

/// The links that forwarding is needed on for guests of that bridge.
pub(crate) fn ways(net: &Net, on: &bridge::Ours) -> Result<Vec<Link>, Fail> {
    Ok(among(&net.links.with(route::uplinks).map_err(refused)?, on))
}

/// The same where the uplinks are known.
pub(crate) fn among(uplinks: &[Link], on: &bridge::Ours) -> Vec<Link> {
    let mut links: Vec<_> = uplinks.iter().filter(|link| !mark::is_bridge(link)).cloned().collect();
    links.push(on.link().clone());
    links
}

/// Those of them on which it is off.
pub(crate) fn needed(ways: &[Link]) -> Vec<Opened> {
    ways.iter().filter(|link| link.inet(FORWARDING) == Some(0)).map(Opened::of).collect()
}

/// The record as this helper read or wrote it last: nobody else writes there while it runs.
#[derive(Debug, Default)]
pub(crate) struct Record(Mutex<Option<Vec<Opened>>>);

impl Record {
    fn known(&self) -> MutexGuard<'_, Option<Vec<Opened>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The record. No file is an empty one.
pub(crate) fn recorded(host: &Host) -> Result<Vec<Opened>, Fail> {
    let mut known = host.net.record.known();
    if let Some(links) = &*known {
        return Ok(links.clone());
    }
    let text = match host.records.dir().open_at(RECORD, OFlags::RDONLY, 0) {
        Ok(file) => std::io::read_to_string(std::fs::File::from(file))
            .map_err(|error| Fail::new("the record of forwarding could not be read").because(error))?,
        Err(error) if error.is_missing() => String::new(),
        Err(error) => return Err(Fail::new("the record of forwarding could not be read").because(error)),
    };
    Ok(known.insert(parse(&text)).clone())
}

fn parse(text: &str) -> Vec<Opened> {
    let line = |line: &str| {
        let (index, name) = line.split_once(' ')?;
        Some(Opened { index: index.parse().ok()?, name: name.to_owned() })
    };
    text.lines().filter_map(line).collect()
}

/// Writes the record; an empty one is no file.
pub(crate) fn record(host: &Host, links: &[Opened]) -> Result<(), Fail> {
    let mut known = host.net.record.known();
    // Where writing fails, the file says what is so.
    *known = None;
    let records = host.records.dir();
    let written = if links.is_empty() {
        records.unlink(RECORD).map(|_| ())
    } else {
        let text: String = links.iter().map(|link| format!("{} {}\n", link.index, link.name)).collect();
        records.write_whole(RECORD, text.as_bytes(), 0o600)
    };
    written.map_err(|error| Fail::new("the record of forwarding could not be written").because(error))?;
    *known = Some(links.to_vec());
    Ok(())
}

/// Which of these links still have forwarding on by us: it is the same link, and the whole host was not opened since.
/// What is `known` of links already is not asked again.
pub(crate) fn still_open(net: &Net, recorded: &[Opened], known: &[Link]) -> Result<Vec<Opened>, Fail> {
    if recorded.is_empty() || read("all")? { Ok(Vec::new()) } else { open_of(net, recorded, known) }
}

/// The same on a host that nobody opened whole.
pub(crate) fn open_of(net: &Net, recorded: &[Opened], known: &[Link]) -> Result<Vec<Opened>, Fail> {
    let mut open = Vec::new();
    for opened in recorded {
        let link = match known.iter().find(|link| link.index == opened.index) {
            Some(link) => Some(link.clone()),
            None => net.links.with(|conn| link::by_index(conn, opened.index)).map_err(refused)?,
        };
        let same = link.filter(|link| link.name == opened.name && link.inet(FORWARDING) == Some(1));
        open.extend(same.map(|_| opened.clone()));
    }
    Ok(open)
}

/// Switches forwarding of links on or off. One that went meanwhile is passed over.
pub(crate) fn switch(links: &[Opened], on: bool) -> Result<(), Fail> {
    for Opened { name, .. } in links {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/forwarding");
        match write(&path, on) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Fail::new(format!("forwarding of {name} could not be changed: is /proc/sys writable?"))
                    .because(format!("write {path}: {error}")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Writes one of the kernel's switches.
pub(crate) fn write(path: &str, on: bool) -> std::io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    std::fs::File::from(file).write_all(if on { b"1" } else { b"0" })
}

/// Whether a link forwards; `all` for the host.
pub(crate) fn read(name: &str) -> Result<bool, Fail> {
    let path = format!("/proc/sys/net/ipv4/conf/{name}/forwarding");
    let mut text = String::new();
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
        .map_err(std::io::Error::from)
        .and_then(|file| std::fs::File::from(file).read_to_string(&mut text))
        .map_err(|error| {
            Fail::new("the host's forwarding could not be read").because(format!("read {path}: {error}"))
        })?;
    Ok(text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_lines_of_index_and_name() {
        let links = parse("3 eth0\nx y\n\n12 wg a\n");
        assert_eq!(links[0], Opened { index: 3, name: "eth0".into() });
        assert_eq!(links.len(), 2);
    }
}
