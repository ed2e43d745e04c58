//! The table of VMs.

use super::signed;
use crate::api::Fault;
use rusqlite::{Connection, OptionalExtension, Row, named_params};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::LazyLock;

/// How far a VM has come. It is written before the step that it names, so that what a step may have made is known
/// whenever the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has a name, an address and a CID, and nothing in the kernel.
    Planned,
    /// Its tap and its way out are made.
    Wired,
    /// Its disk is made.
    Disked,
    /// Its VMM is launched.
    Launched,
    /// Its agent has answered.
    Ready,
    /// It is taken down.
    Stopping,
    /// It has a disk, and nothing in the kernel.
    Stopped,
    /// Its start failed, or it ended by itself, and nothing in the kernel is left.
    Failed,
    /// Something of it could not be taken away.
    Lost,
}

impl State {
    const ALL: [(State, &str); 9] = [
        (State::Planned, "planned"),
        (State::Wired, "wired"),
        (State::Disked, "disked"),
        (State::Launched, "launched"),
        (State::Ready, "ready"),
        (State::Stopping, "stopping"),
        (State::Stopped, "stopped"),
        (State::Failed, "failed"),
        (State::Lost, "lost"),
    ];

    /// As the store spells it.
    pub fn name(self) -> &'static str {
        State::ALL.iter().find(|(state, _)| *state == self).map_or("lost", |(_, name)| name)
    }

    fn of(name: &str) -> State {
        State::ALL.iter().find(|(_, known)| *known == name).map_or(State::Lost, |(state, _)| *state)
    }

    /// As a person sees it.
    pub fn shown(self) -> &'static str {
        match self {
            State::Wired | State::Disked | State::Launched => "starting",
            State::Ready => "running",
            other => other.name(),
        }
    }

    /// Whether nothing of it is in the kernel.
    pub fn is_down(self) -> bool {
        matches!(self, State::Planned | State::Stopped | State::Failed)
    }
}

/// A VM's row.
#[derive(Clone, Debug, PartialEq)]
pub struct Vm {
    /// 12 hex digits.
    pub id: String,
    /// A DNS label.
    pub name: String,
    /// Whether it stays after its run.
    pub kept: bool,
    /// Whose run it is, of one that doesn't.
    pub caller: Option<Process>,
    /// How far it has come.
    pub state: State,
    /// What it is started from.
    pub base: Base,
    /// vCPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Whether it has a way out.
    pub nat: bool,
    /// Whether the image's own init is the guest's first process.
    pub init: bool,
    /// How its disk was made, once it is.
    pub disk_method: Option<String>,
    /// The template that its disk is a layer over.
    pub template: Option<String>,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its tap, where that was made ahead; else the tap's name follows from the id.
    pub tap: Option<String>,
    /// Its CID.
    pub cid: u32,
    /// The VMM's program, once it was launched.
    pub vmm: Option<String>,
    /// Its version, as it told.
    pub vmm_version: Option<String>,
    /// The address of the guest's interface, as the VMM told.
    pub mac: Option<String>,
    /// `kvm` or `emulation`.
    pub accel: Option<String>,
    /// The running VMM's process.
    pub pid: Option<i32>,
    /// The machine's boot in which that pid is meant.
    pub boot_id: Option<String>,
    /// The agent's version, as it said.
    pub agent: Option<String>,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Seconds since 1970.
    pub started_at: Option<u64>,
    /// From the start's beginning to the agent's answer.
    pub ready_ms: Option<u64>,
    /// Why it failed.
    pub last_error: Option<Fault>,
}

/// A process, and when it was started: another one with its number is not it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// In clock ticks since the machine's start.
    pub start: u64,
}

/// What a VM is started from.
#[derive(Clone, Debug, PartialEq)]
pub struct Base {
    /// The image's name.
    pub image: String,
    /// Its digest, `sha256:…`; `None` where it was given as a file.
    pub digest: Option<String>,
    /// The ext4 image, never written.
    pub root: PathBuf,
    /// How long the VM's disk is: as it, or more.
    pub bytes: u64,
    /// The kernel's name.
    pub kernel: String,
    /// The uncompressed kernel.
    pub vmlinux: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
}

const ALL: &str = "SELECT * FROM vms";

const COLUMNS: [&str; 33] = [
    "id",
    "name",
    "kept",
    "caller_pid",
    "caller_start",
    "state",
    "image",
    "image_digest",
    "root_path",
    "kernel",
    "kernel_path",
    "initrd_path",
    "cpus",
    "memory_mib",
    "nat",
    "init",
    "disk_method",
    "disk_bytes",
    "template",
    "address",
    "tap",
    "cid",
    "vmm",
    "vmm_version",
    "mac",
    "accel",
    "pid",
    "boot_id",
    "agent",
    "created_at",
    "started_at",
    "ready_ms",
    "last_error",
];

/// Not `INSERT OR REPLACE`: that would take away another VM that has the name or the address.
static SAVE: LazyLock<String> = LazyLock::new(|| {
    let values = COLUMNS.map(|column| format!(":{column}")).join(", ");
    let updates = COLUMNS.map(|column| format!("{column} = excluded.{column}")).join(", ");
    let columns = COLUMNS.join(", ");
    format!("INSERT INTO vms ({columns}) VALUES ({values}) ON CONFLICT (id) DO UPDATE SET {updates}")
});

/// All, by name.
///
/// # Errors
/// The store's.
pub fn all(connection: &Connection) -> Result<Vec<Vm>, Fault> {
    let mut statement = connection.prepare(&format!("{ALL} ORDER BY name"))?;
    let rows = statement.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The one of that id.
///
/// # Errors
/// The store's.
pub fn by_id(connection: &Connection, id: &str) -> Result<Option<Vm>, Fault> {
    let mut statement = connection.prepare(&format!("{ALL} WHERE id = ?"))?;
    Ok(statement.query_row([id], read).optional()?)
}

/// The one of that name.
///
/// # Errors
/// The store's.
pub fn by_name(connection: &Connection, name: &str) -> Result<Option<Vm>, Fault> {
    let mut statement = connection.prepare(&format!("{ALL} WHERE name = ?"))?;
    Ok(statement.query_row([name], read).optional()?)
}

/// Those whose id begins so.
///
/// # Errors
/// The store's.
pub fn by_id_prefix(connection: &Connection, prefix: &str) -> Result<Vec<Vm>, Fault> {
    let mut statement = connection.prepare(&format!("{ALL} WHERE substr(id, 1, length(?1)) = ?1"))?;
    let rows = statement.query_map([prefix], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Writes the row, whole.
///
/// # Errors
/// The store's; a name, address or CID that another VM has.
pub fn save(connection: &Connection, vm: &Vm) -> Result<(), Fault> {
    let path = |path: &PathBuf| path.to_string_lossy().into_owned();
    let last_error = vm.last_error.as_ref().map(serde_json::to_string).transpose().map_err(Fault::bug)?;
    connection.prepare(&SAVE)?.execute(named_params! {
        ":id": vm.id, ":name": vm.name, ":kept": vm.kept, ":state": vm.state.name(),
        ":caller_pid": vm.caller.map(|caller| caller.pid),
        ":caller_start": vm.caller.map(|caller| signed(caller.start)),
        ":image": vm.base.image, ":image_digest": vm.base.digest, ":root_path": path(&vm.base.root),
        ":kernel": vm.base.kernel, ":kernel_path": path(&vm.base.vmlinux), ":initrd_path": path(&vm.base.initrd),
        ":cpus": vm.cpus, ":memory_mib": signed(vm.memory_mib), ":nat": vm.nat, ":init": vm.init, ":disk_method": vm.disk_method,
        ":disk_bytes": signed(vm.base.bytes), ":template": vm.template, ":address": vm.address.to_bits(), ":tap": vm.tap, ":cid": vm.cid,
        ":vmm": vm.vmm, ":vmm_version": vm.vmm_version, ":mac": vm.mac, ":accel": vm.accel, ":pid": vm.pid, ":boot_id": vm.boot_id, ":agent": vm.agent,
        ":created_at": signed(vm.created_at), ":started_at": vm.started_at.map(signed),
        ":ready_ms": vm.ready_ms.map(signed), ":last_error": last_error,
    })?;
    Ok(())
}

/// Takes the row away.
///
/// # Errors
/// The store's.
pub fn remove(connection: &Connection, id: &str) -> Result<(), Fault> {
    connection.prepare("DELETE FROM vms WHERE id = ?")?.execute([id])?;
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<Vm> {
    let path = |name: &str| row.get::<_, String>(name).map(PathBuf::from);
    let number = |name: &str| row.get::<_, i64>(name).map(|number| number.try_into().unwrap_or(0));
    let maybe =
        |name: &str| row.get::<_, Option<i64>>(name).map(|found| found.map(|number| number.try_into().unwrap_or(0)));
    let base = Base {
        image: row.get("image")?,
        digest: row.get("image_digest")?,
        root: path("root_path")?,
        bytes: number("disk_bytes")?,
        kernel: row.get("kernel")?,
        vmlinux: path("kernel_path")?,
        initrd: path("initrd_path")?,
    };
    let error: Option<String> = row.get("last_error")?;
    Ok(Vm {
        id: row.get("id")?,
        name: row.get("name")?,
        kept: row.get("kept")?,
        caller: row
            .get::<_, Option<i32>>("caller_pid")?
            .zip(maybe("caller_start")?)
            .map(|(pid, start)| Process { pid, start }),
        state: State::of(&row.get::<_, String>("state")?),
        base,
        cpus: row.get("cpus")?,
        memory_mib: number("memory_mib")?,
        nat: row.get("nat")?,
        init: row.get("init")?,
        disk_method: row.get("disk_method")?,
        template: row.get("template")?,
        address: Ipv4Addr::from_bits(row.get("address")?),
        tap: row.get("tap")?,
        cid: row.get("cid")?,
        vmm: row.get("vmm")?,
        vmm_version: row.get("vmm_version")?,
        mac: row.get("mac")?,
        accel: row.get("accel")?,
        pid: row.get("pid")?,
        boot_id: row.get("boot_id")?,
        agent: row.get("agent")?,
        created_at: number("created_at")?,
        started_at: maybe("started_at")?,
        ready_ms: maybe("ready_ms")?,
        last_error: error.and_then(|text| serde_json::from_str(&text).ok()),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::daemon::store::Store;
    use std::path::Path;

    /// A planned VM; its address ends in `number`.
    pub(crate) fn planned(number: u8) -> Vm {
        let base = Base {
            image: "debian-12".into(),
            digest: None,
            root: "/s/root.ext4".into(),
            bytes: 1 << 30,
            kernel: "debian".into(),
            vmlinux: "/s/vmlinux".into(),
            initrd: "/s/initrd".into(),
        };
        Vm {
            id: format!("{number:012x}"),
            name: format!("vm-{number}"),
            kept: true,
            caller: None,
            state: State::Planned,
            base,
            cpus: 1,
            memory_mib: 512,
            nat: true,
            init: false,
            disk_method: None,
            template: None,
            address: Ipv4Addr::new(172, 16, 0, number),
            tap: None,
            cid: 1 + u32::from(number),
            vmm: None,
            vmm_version: None,
            mac: None,
            accel: None,
            pid: None,
            boot_id: None,
            agent: None,
            created_at: 1_764_031_982,
            started_at: None,
            ready_ms: None,
            last_error: None,
        }
    }

    #[test]
    fn a_row_reads_back_and_takes_no_other_vms_name() {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let mut vm = planned(2);
        store.change(|t| save(t, &vm)).unwrap();
        vm.state = State::Ready;
        vm.pid = Some(7);
        vm.tap = Some("tap-fc-00000001".into());
        (vm.vmm_version, vm.mac) = (Some("1".into()), Some("02:00:00:00:00:01".into()));
        vm.caller = Some(Process { pid: 8, start: 9 });
        (vm.disk_method, vm.template) = (Some("layer".into()), Some("00000000000a".into()));
        vm.last_error = Some(Fault::new("x", 1, "y"));
        store.change(|t| save(t, &vm)).unwrap();
        assert_eq!(store.change(|t| by_name(t, "vm-2")).unwrap(), Some(vm.clone()));
        assert_eq!(store.change(|t| by_id_prefix(t, "0000")).unwrap(), [vm.clone()]);
        assert!(store.change(|t| by_id_prefix(t, "%")).unwrap().is_empty());
        let other = Vm { name: vm.name.clone(), ..planned(3) };
        assert_eq!(store.change(|t| save(t, &other)).unwrap_err().code, "store");
        assert_eq!(store.change(|t| all(t)).unwrap(), [vm.clone()]);
        store.change(|t| remove(t, &vm.id)).unwrap();
        assert_eq!(store.change(|t| by_id(t, &vm.id)).unwrap(), None);
    }

    #[test]
    fn states_are_the_tables() {
        for (state, name) in State::ALL {
            assert!(include_str!("1-vms.sql").contains(&format!("'{name}'")), "{name}");
            assert_eq!(State::of(state.name()), state);
        }
    }
}
