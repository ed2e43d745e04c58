//! VMs: what is asked of them, by the phases of their way up and down.

mod console;
pub mod disk;
pub(crate) mod effort;
mod identity;
pub(crate) mod launch;
pub mod layer;
pub(crate) mod life;
mod memory;
mod name;
pub(crate) mod phases;
pub(crate) mod places;
pub(crate) mod plan;
pub(crate) mod pool;
pub mod publish;
pub(crate) mod run;
pub(crate) mod show;
pub(crate) mod slots;
mod ssh;
pub(crate) mod stale;
pub mod stamps;
pub(crate) mod start;
mod synced;
pub(crate) mod told;
pub(crate) mod watch;
pub(crate) mod whole;
pub(crate) mod work;
pub(crate) mod workspace;

pub(crate) use name::{is_made_up, is_of_template};
pub(crate) use phases::Wait;
pub(crate) use ssh::ssh;

use super::error::exit;
use super::store::vms::{self, Vm};
use crate::api::Fault;
use rusqlite::Connection;

/// The VM that is meant: by its name, with or without `.vm`, else by 4 or more digits of its id where only one fits.
pub(crate) fn find(connection: &Connection, reference: &str) -> Result<Vm, Fault> {
    // What ssh calls a host. No name has a dot.
    let reference = reference.strip_suffix(".vm").unwrap_or(reference);
    if let Some(vm) = vms::by_name(connection, reference)? {
        return Ok(vm);
    }
    let is_id = (4..=12).contains(&reference.len()) && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id {
        let mut found = vms::by_id_prefix(connection, &reference.to_ascii_lowercase())?;
        match (found.pop(), found.pop()) {
            (Some(vm), None) => return Ok(vm),
            (Some(one), Some(two)) => {
                let message = format!("{reference} is the beginning of several VMs' ids");
                return Err(Fault::new("ambiguous", exit::MISSING, message)
                    .fix(format!("{} is {}, {} is {}", one.id, one.name, two.id, two.name)));
            }
            _ => {}
        }
    }
    let names: Vec<String> = vms::all(connection)?.into_iter().map(|vm| vm.name).collect();
    Err(Fault::no_such_vm(reference, crate::near::nearest(reference, names.iter().map(String::as_str))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::Store;
    use crate::daemon::store::vms::tests::planned;
    use std::path::Path;

    #[test]
    fn a_reference_is_a_name_first_and_then_an_id() {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let one = Vm { id: "7f3a9c21e4b0".into(), name: "web".into(), ..planned(2) };
        let two = Vm { id: "7f3a0c21e4b0".into(), name: "beef".into(), ..planned(3) };
        store.change(|t| vms::save(t, &one).and_then(|()| vms::save(t, &two))).unwrap();
        let code = |reference: &str| store.change(|t| find(t, reference)).map_or_else(|fault| fault.code, |vm| vm.name);
        assert_eq!(code("web"), "web");
        assert_eq!(code("web.vm"), "web");
        assert_eq!(code("7f3a9"), "web");
        assert_eq!(code("beef"), "beef");
        assert_eq!(code("7f3a"), "ambiguous");
        for none in ["7f3", "", "wob!", "7f3a9c21e4b00"] {
            assert_eq!(code(none), "no_such_vm", "{none}");
        }
        let fault = store.change(|t| find(t, "wbe")).unwrap_err();
        assert!(fault.fix[0].starts_with("web is close"), "{fault:?}");
    }
}
