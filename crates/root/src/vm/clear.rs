//! Clearing away what an ended VM left.

use super::record::Record;
use super::{cgroup, jail, sockets};
use crate::fail::Fail;
use crate::log::{Level, Log, Value};
use sys::creds::Identity;
use sys::dir::Dir;

/// What is needed to clear a VM away.
pub(super) struct Ground {
    pub(super) records: Dir,
    pub(super) state: Dir,
    pub(super) runtime: Dir,
    pub(super) owner: Identity,
    pub(super) log: Log,
    /// What is kept of a VMM's output.
    pub(super) output_bytes: u64,
}

impl Ground {
    /// Removes what an ended VM left: its control group, sockets, jail, then its record, so that a helper killed in
    /// between comes back to it. Where something stays the record does too: the next helper tries again.
    pub(super) fn clear(&self, record: &Record) {
        // What it forked could still fill its jail.
        let group = record
            .control_group
            .as_ref()
            .is_none_or(|name| self.is_done(cgroup::remove(name), "vm control group stays", record));
        let sockets = [(&record.socket, jail::API_SOCKET), (&record.vsock, jail::VSOCK)].map(|(socket, name)| {
            let removed = match &record.jail {
                None => sockets::remove(&self.runtime, &self.owner, socket),
                Some(jail) => sockets::remove_link(&self.runtime, &self.owner, &socket.path, &jail.socket(name)),
            };
            self.is_done(removed, "vm socket stays", record)
        });
        let jail = record
            .jail
            .as_ref()
            .is_none_or(|jail| self.is_done(jail.remove(&self.state, &self.runtime), "vm jail stays", record));
        if jail && group && sockets == [true; 2] {
            self.is_done(Record::remove(&record.vm_id, &self.records), "vm record stays", record);
        }
    }

    fn is_done(&self, done: Result<(), Fail>, otherwise: &str, record: &Record) -> bool {
        done.inspect_err(|fail| self.report(otherwise, &record.vm_id, fail)).is_ok()
    }

    pub(super) fn report(&self, message: &str, what: &str, fail: &Fail) {
        let fields = [("vm_id", Value::Text(what, 256)), ("cause", Value::List(&fail.causes, 1024))];
        self.log.own(Level::Warn, message, &fields);
    }
}
