//! How many templates there may be, and what they may take: the one that nobody went on from for longest makes room.

use super::{Files, remove_tree, users};
use crate::api::Fault;
use crate::daemon::error::exit;
use crate::daemon::settings::TemplateBounds;
use crate::daemon::store::templates::{self, Template};
use crate::daemon::store::vms;
use crate::daemon::{Daemon, log};
use crate::image::store::taken;
use std::path::Path;

/// Writes a new one's row, as one step with the removal of those that have to go for it.
pub(super) fn add(daemon: &Daemon, template: &Template) -> Result<(), Fault> {
    let bounds = daemon.settings.templates;
    let gone = daemon.store.change(|t| {
        let (all, vms) = (templates::all(t)?, vms::all(t)?);
        let gone = to_go(all, |one| !users(one, &vms).is_empty(), template.size_bytes, bounds)
            .ok_or_else(|| full(template.size_bytes, bounds))?;
        gone.iter().try_for_each(|one| templates::remove(t, &one.id))?;
        templates::add(t, template)?;
        templates::key_is_good(t, &template.key)?;
        Ok(gone)
    })?;
    for one in gone {
        log::say("INFO", "a template makes room for another", &one.id);
        // Without a row it goes with the next start at the latest.
        if let Err(fault) = remove_tree(&Files::of(daemon, &one.id).0) {
            log::fault("template", "", &fault);
        }
    }
    Ok(())
}

/// Those that have to go for one more of `size` bytes; `None` where not even all would do that may go.
fn to_go(
    mut all: Vec<Template>,
    is_used: impl Fn(&Template) -> bool,
    size: u64,
    bounds: TemplateBounds,
) -> Option<Vec<Template>> {
    all.sort_by_key(|template| template.used);
    let (mut count, mut bytes) = (all.len() + 1, size + all.iter().map(|one| one.size_bytes).sum::<u64>());
    let mut gone = Vec::new();
    for template in all.into_iter().filter(|template| !is_used(template)) {
        if count <= bounds.count && bytes <= bounds.bytes {
            break;
        }
        (count, bytes) = (count - 1, bytes - template.size_bytes);
        gone.push(template);
    }
    (count <= bounds.count && bytes <= bounds.bytes).then_some(gone)
}

fn full(size: u64, bounds: TemplateBounds) -> Fault {
    let (size, most) = (size >> 20, bounds.bytes >> 20);
    let message = format!("a template of {size} MiB has no room: {} of {most} MiB together may be here", bounds.count);
    Fault::new("templates_full", exit::ROOM, message)
        .why("those that could go for it are not enough, and a template stays as long as a VM's disk lies on it")
        .fix("banger template list, and vm rm of VMs that lie on one; template_count and template_size in config.toml")
}

/// Refuses one whose disk and memory may take more than there is, before anything is made.
pub(super) fn need(daemon: &Daemon, place: &Path, root: &Path, memory_mib: u64) -> Result<(), Fault> {
    let failed = |path: &Path, error: std::io::Error| Fault::file("looking at", path, &error);
    let room = rustix::fs::statvfs(place).map_err(|errno| failed(place, errno.into()))?;
    let image = taken(root).map_err(|error| failed(root, error))?;
    if image > daemon.settings.templates.bytes {
        return Err(full(image, daemon.settings.templates));
    }
    let (wanted, room) = (image + (memory_mib << 20), room.f_bavail * room.f_frsize);
    if wanted <= room {
        return Ok(());
    }
    let message = format!("a template may take {} MiB, and the disk has {} MiB left", wanted >> 20, room >> 20);
    Err(Fault::new("no_space", exit::ROOM, message).fix("banger template rm ID of one that isn't needed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::templates::tests::template;

    #[test]
    fn the_least_lately_used_goes_first_and_never_one_that_a_layer_lies_on() {
        let all = |numbers: [u64; 3]| -> Vec<Template> {
            ['a', 'b', 'c'].into_iter().zip(numbers).map(|(id, used)| Template { used, ..template(id) }).collect()
        };
        let size = template('a').size_bytes;
        let bounds = |count, bytes| TemplateBounds { unasked: true, count, bytes };
        let gone = |is_used: &dyn Fn(&Template) -> bool, size, bounds| {
            to_go(all([2, 1, 3]), is_used, size, bounds)
                .map(|gone| gone.iter().map(|one| one.id.chars().last().unwrap()).collect::<String>())
        };
        let none = |_: &Template| false;
        assert_eq!(gone(&none, size, bounds(4, 4 * size)).as_deref(), Some(""));
        assert_eq!(gone(&none, size, bounds(3, 4 * size)).as_deref(), Some("b"));
        assert_eq!(gone(&none, size, bounds(4, 4 * size - 1)).as_deref(), Some("b"));
        assert_eq!(gone(&none, size, bounds(1, 9 * size)).as_deref(), Some("bac"));
        let b_is_used = |one: &Template| one.id.ends_with('b');
        assert_eq!(gone(&b_is_used, size, bounds(3, 4 * size)).as_deref(), Some("a"));
        assert_eq!(gone(&b_is_used, size, bounds(1, 9 * size)), None);
        assert_eq!(gone(&none, size + 1, bounds(9, size)), None, "it alone is too much");
    }
}
