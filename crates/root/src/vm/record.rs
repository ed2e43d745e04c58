//! The record of a launch: what a later helper must know of a VM that it did not start.
//!
//! Records lie where only root reads and writes. One is written before its VMM runs, and believed only where the
//! kernel agrees: the same boot, a live process of that number, started at that moment.

use super::{cgroup, jail};
use crate::fail::Fail;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use std::io::Read;
use sys::dir::{CallError, Dir, Facts};
use sys::pidfd::{self, PidFd};
use sys::spawn::Held;
use wire::name::vm_id::VmId;
use wire::vm::Launch;

/// The longest record that is read.
const MAX_RECORD: u64 = 64 << 10;

/// A VM as it was launched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The VM.
    pub(crate) vm_id: String,
    /// How far its launch had come.
    pub(crate) phase: Phase,
    /// The VMM.
    pub(crate) process: Process,
    /// Its program.
    pub(crate) program: Program,
    /// Its API socket.
    pub(crate) socket: Socket,
    /// Its vsock's socket.
    pub(crate) vsock: Socket,
    /// Its tap.
    pub(crate) tap: String,
    /// Its CID.
    pub(crate) cid: u32,
    /// Its drives.
    pub(crate) drives: Vec<Drive>,
    /// Its control group's name; the launch may have failed to make it.
    #[serde(default)]
    pub(crate) control_group: Option<String>,
    /// Its jail, where it has one.
    #[serde(default)]
    pub(crate) jail: Option<jail::Mark>,
    /// The file that its output goes to.
    #[serde(default)]
    pub(crate) output: Option<Output>,
}

/// How far a launch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// The launch has not answered: what there is of it is a failure's remains where its helper is gone.
    Starting,
    /// It runs.
    Running,
}

/// A process that can't be mistaken for a later one of the same number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// In clock ticks since the boot.
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
}

/// The file that was executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) path: String,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

/// A socket that a VMM makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Socket {
    pub(crate) path: String,
    /// Device and inode, known once the VM runs: what has the name later may be somebody else's.
    pub(crate) made: Option<(u64, u64)>,
}

impl Socket {
    pub(crate) fn new(path: &str) -> Socket {
        Socket { path: path.to_owned(), made: None }
    }
}

/// A file of the owner's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Output {
    /// Its path below the state directory.
    pub(crate) below: String,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    /// Its size when the VM was launched.
    pub(crate) begin: u64,
}

/// What is behind a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drive {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) read_only: bool,
}

impl Drive {
    /// Whether two VMs can't both have them: the same file, and one of them writes it.
    pub(super) fn clashes(&self, other: &Drive) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino) && !(self.read_only && other.read_only)
    }
}

impl Process {
    /// The process that has that number now.
    pub(crate) fn of(pid: i32) -> std::io::Result<Process> {
        Ok(Process { pid, start_time: pidfd::start_time(pid)?, boot_id: pidfd::boot_id()? })
    }

    /// The process that waits to be let go.
    pub(crate) fn held(held: &Held) -> std::io::Result<Process> {
        Ok(Process { pid: held.pid(), start_time: held.start_time(), boot_id: pidfd::boot_id()? })
    }

    /// The process, where it still is one: opened first, compared then, and alive after that.
    pub(crate) fn find(&self) -> Option<PidFd> {
        let opened = pidfd::open(self.pid).ok()?;
        let now = Process::of(self.pid).ok()?;
        (now == *self && opened.is_alive()).then_some(opened)
    }
}

impl Record {
    /// The record of a launch that has no process yet.
    pub(crate) fn new(asked: &Launch, program: &crate::program::Program, drives: Vec<Drive>) -> Record {
        Record {
            vm_id: asked.vm_id.to_string(),
            phase: Phase::Starting,
            process: Process::default(),
            program: Program { path: program.path.clone(), dev: program.facts.dev, ino: program.facts.ino },
            socket: Socket::new(asked.socket.as_str()),
            vsock: Socket::new(asked.vsock.as_str()),
            tap: asked.tap.to_string(),
            cid: asked.cid,
            drives,
            control_group: Some(cgroup::name(&asked.vm_id)),
            jail: None,
            output: None,
        }
    }

    /// What two VMs can't both have, where these two would.
    pub(crate) fn clash(&self, other: &Record) -> Option<&'static str> {
        let sockets = [&other.socket.path, &other.vsock.path];
        if self.vm_id == other.vm_id {
            Some("vm_id")
        } else if sockets.contains(&&self.socket.path) {
            Some("socket_path")
        } else if sockets.contains(&&self.vsock.path) {
            Some("vsock_path")
        } else if self.tap == other.tap {
            Some("tap_device")
        } else if self.cid == other.cid {
            Some("vsock_cid")
        } else if self.drives.iter().any(|drive| other.drives.iter().any(|theirs| drive.clashes(theirs))) {
            Some("drives")
        } else {
            None
        }
    }

    fn file_name(vm_id: &str) -> String {
        format!("vm-{vm_id}.json")
    }

    /// Writes it, whole or not at all.
    pub(crate) fn write(&self, records: &Dir) -> Result<(), Fail> {
        let failed = || Fail::new("the VM's record can't be written");
        let text = serde_json::to_vec(self).map_err(|error| failed().because(error))?;
        let name = Record::file_name(&self.vm_id);
        records.write_whole(&name, &text, 0o600).map_err(|error| failed().because(error))
    }

    /// The record of that VM, where there is one.
    pub(crate) fn left(vm_id: &str, records: &Dir) -> Option<Record> {
        Record::read(&Record::file_name(vm_id), records)
    }

    /// Removes it.
    pub(crate) fn remove(vm_id: &str, records: &Dir) -> Result<(), Fail> {
        let removed = records.unlink(&Record::file_name(vm_id));
        removed.map(|_| ()).map_err(|error| Fail::new("the VM's record can't be removed").because(error))
    }

    /// All records, and the names of files that are none.
    pub(crate) fn all(records: &Dir) -> Result<(Vec<Record>, Vec<String>), CallError> {
        let (mut read, mut bad) = (Vec::new(), Vec::new());
        for name in records.names()?.into_iter().filter(|name| name.starts_with("vm-") || name.starts_with(".vm-")) {
            match Record::read(&name, records) {
                Some(record) => read.push(record),
                None => bad.push(name),
            }
        }
        Ok((read, bad))
    }

    fn read(name: &str, records: &Dir) -> Option<Record> {
        let file = records.open_at(name, OFlags::RDONLY, 0).ok()?;
        let facts = Facts::of(&file).ok()?;
        if facts.uid != 0 || facts.kind != rustix::fs::FileType::RegularFile {
            return None;
        }
        let mut text = Vec::new();
        std::fs::File::from(file).take(MAX_RECORD).read_to_end(&mut text).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        let is_its_name = VmId::new(&record.vm_id).is_ok() && Record::file_name(&record.vm_id) == name;
        is_its_name.then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u32) -> Record {
        Record {
            vm_id: format!("vm{n}"),
            phase: Phase::Starting,
            process: Process::default(),
            program: Program { path: "/usr/bin/firecracker".into(), dev: 1, ino: 2 },
            socket: Socket::new(&format!("/run/banger/{n}.sock")),
            vsock: Socket::new(&format!("/run/banger/{n}.vsock")),
            tap: format!("tap-fc-{n}"),
            cid: n,
            drives: vec![Drive { dev: 1, ino: u64::from(n), read_only: false }],
            control_group: None,
            jail: None,
            output: None,
        }
    }

    #[test]
    fn what_two_vms_can_not_both_have() {
        let (one, two) = (record(1), record(2));
        assert_eq!(one.clash(&two), None);
        let with = |change: fn(&mut Record)| {
            let mut two = record(2);
            change(&mut two);
            two.clash(&record(1))
        };
        assert_eq!(with(|r| r.vm_id = "vm1".into()), Some("vm_id"));
        assert_eq!(with(|r| r.socket.path = "/run/banger/1.vsock".into()), Some("socket_path"));
        assert_eq!(with(|r| r.vsock.path = "/run/banger/1.vsock".into()), Some("vsock_path"));
        assert_eq!(with(|r| r.tap = "tap-fc-1".into()), Some("tap_device"));
        assert_eq!(with(|r| r.cid = 1), Some("vsock_cid"));
        assert_eq!(with(|r| r.drives.push(Drive { dev: 1, ino: 1, read_only: true })), Some("drives"));
        let shared = |read_only| Drive { dev: 1, ino: 9, read_only };
        let (mut one, mut two) = (record(1), record(2));
        one.drives.push(shared(true));
        two.drives.push(shared(true));
        assert_eq!(one.clash(&two), None);
        two.drives.push(shared(false));
        assert_eq!(one.clash(&two), Some("drives"));
    }

    #[test]
    fn written_read_and_removed() {
        let place = tempfile::tempdir().unwrap();
        let dir = Dir::open(place.path().to_str().unwrap()).unwrap();
        record(1).write(&dir).unwrap();
        std::fs::write(place.path().join("vm-broken.json"), "{").unwrap();
        std::fs::write(place.path().join("vm-other.json"), serde_json::to_vec(&record(2)).unwrap()).unwrap();
        let (read, bad) = Record::all(&dir).unwrap();
        assert_eq!(read, [record(1)]);
        assert_eq!(bad, ["vm-broken.json", "vm-other.json"]);
        Record::remove("vm1", &dir).unwrap();
        assert!(Record::all(&dir).unwrap().0.is_empty());
    }

    #[test]
    fn a_process_is_found_only_where_all_agrees() {
        let mine = Process::of(std::process::id().cast_signed()).unwrap();
        assert!(mine.find().is_some());
        assert!(Process { start_time: mine.start_time + 1, ..mine.clone() }.find().is_none());
        assert!(Process { boot_id: "another".into(), ..mine.clone() }.find().is_none());
        assert!(Process { pid: i32::MAX, ..mine }.find().is_none());
    }
}
