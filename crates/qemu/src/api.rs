//! The API: a request becomes an [`Action`], and each action is answered in one of two matches, before the boot and
//! after it. Neither has a catch-all arm: a new action has to be decided in both.

use serde::de::DeserializeOwned;
use wire::firecracker::{
    API_VERSION, ActionType, BootSource, Drive, InstanceAction, Logger, MachineConfig, MachineConfigUpdate, Metrics,
    NetworkInterface, ResourceId, Version, Vm, VmState, VmStateChange, Vsock,
};

use crate::fault::Fault;
use crate::vmm::{Guest, State, Vmm};

/// What a client can ask for.
#[derive(Debug)]
pub(crate) enum Action {
    DescribeInstance,
    DescribeVersion,
    DescribeMachine,
    DescribeVm,
    SetMachine(MachineConfig),
    UpdateMachine(MachineConfigUpdate),
    SetBoot(BootSource),
    SetDrive(Box<Drive>),
    SetNetwork(Box<NetworkInterface>),
    SetVsock(Vsock),
    SetLogger(Logger),
    SetMetrics(Metrics),
    FlushMetrics,
    Start,
    CtrlAltDel,
    Pause,
    Resume,
    /// Something of Firecracker's that isn't here.
    Foreign(&'static str),
}

/// A request's method, of those that the API knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Put,
    Patch,
    Delete,
}

/// A response: 204, or 200 with JSON.
pub(crate) type Answer = Result<Option<String>, Fault>;

/// Makes an action of a request.
///
/// # Errors
/// No such request, or a body that isn't what it needs.
pub(crate) fn parse(method: Method, path: &str, body: &[u8]) -> Result<Action, Fault> {
    let mut parts = path.trim_start_matches('/').split_terminator('/');
    let (first, second, more) = (parts.next().unwrap_or(""), parts.next(), parts.next());
    if more.is_some() && first != "balloon" {
        return Err(no_such(method, path));
    }
    match method {
        Method::Get if !body.is_empty() => return Err(Fault::new("GET request cannot have a body.")),
        Method::Put if body.is_empty() => return Err(Fault::new("Empty PUT request.")),
        Method::Patch if body.is_empty() && first != "balloon" => return Err(Fault::new("Empty PATCH request.")),
        _ => {}
    }
    match (method, first, second) {
        (Method::Get, "", None) => Ok(Action::DescribeInstance),
        (Method::Get, "version", None) => Ok(Action::DescribeVersion),
        (Method::Get, "machine-config", None) => Ok(Action::DescribeMachine),
        (Method::Get, "vm", Some("config")) => Ok(Action::DescribeVm),
        (Method::Put, "machine-config", None) => json(body).map(Action::SetMachine),
        (Method::Patch, "machine-config", None) => json(body).map(Action::UpdateMachine),
        (Method::Put, "boot-source", None) => json(body).map(Action::SetBoot),
        (Method::Put, "drives", id) => {
            let id = checked_id(id)?;
            let drive: Drive = json(body)?;
            same_id(&id, &drive.drive_id)?;
            Ok(Action::SetDrive(Box::new(drive)))
        }
        (Method::Put, "network-interfaces", id) => {
            let id = checked_id(id)?;
            let interface: NetworkInterface = json(body)?;
            same_id(&id, &interface.iface_id)?;
            Ok(Action::SetNetwork(Box::new(interface)))
        }
        (Method::Put, "vsock", None) => json(body).map(Action::SetVsock),
        (Method::Put, "logger", None) => json(body).map(Action::SetLogger),
        (Method::Put, "metrics", None) => json(body).map(Action::SetMetrics),
        (Method::Put, "actions", None) => json(body).map(|asked: InstanceAction| match asked.action_type {
            ActionType::FlushMetrics => Action::FlushMetrics,
            ActionType::InstanceStart => Action::Start,
            ActionType::SendCtrlAltDel => Action::CtrlAltDel,
        }),
        (Method::Patch, "vm", None) => json(body).map(|asked: Vm| match asked.state {
            VmStateChange::Paused => Action::Pause,
            VmStateChange::Resumed => Action::Resume,
        }),
        (_, "balloon", _) => Ok(Action::Foreign("balloon")),
        (_, "mmds", _) => Ok(Action::Foreign("mmds")),
        (_, "hotplug", Some("memory")) => Ok(Action::Foreign("hotplug")),
        (Method::Put, "snapshot", Some("create" | "load")) => Ok(Action::Foreign("snapshot")),
        (Method::Put, "cpu-config", None) => Ok(Action::Foreign("cpu-config")),
        (Method::Put, "entropy", None) => Ok(Action::Foreign("entropy")),
        (Method::Put, "serial", None) => Ok(Action::Foreign("serial")),
        (Method::Put | Method::Patch | Method::Delete, "pmem", Some(_)) => Ok(Action::Foreign("pmem")),
        (Method::Patch | Method::Delete, "drives", Some(_)) => Ok(Action::Foreign("changing a drive")),
        (Method::Patch | Method::Delete, "network-interfaces", Some(_)) => {
            Ok(Action::Foreign("changing a network interface"))
        }
        _ => Err(no_such(method, first)),
    }
}

fn no_such(method: Method, path: &str) -> Fault {
    let shown: String = path.chars().take(100).collect();
    Fault::new(format!("Invalid request method and/or path: {} {shown}.", format!("{method:?}").to_uppercase()))
}

/// One JSON object, and nothing behind it. serde would take an array for a struct.
fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Fault::new("An error occurred when deserializing the json body of a request: not an object."));
    }
    serde_json::from_slice(body).map_err(|error| {
        Fault::new(format!("An error occurred when deserializing the json body of a request: {error}."))
    })
}

fn checked_id(id: Option<&str>) -> Result<ResourceId, Fault> {
    ResourceId::new(id.unwrap_or_default()).map_err(|error| Fault::new(error.to_string()))
}

fn same_id(path: &ResourceId, body: &ResourceId) -> Result<(), Fault> {
    if path == body { Ok(()) } else { Err(Fault::new("The id from the path does not match the id from the body!")) }
}

/// Does what is asked.
///
/// # Errors
/// The refusal that the client reads.
pub(crate) fn dispatch(vmm: &Vmm, action: Action) -> Answer {
    let mut state = vmm.state();
    match &mut *state {
        State::Before(_) => before(vmm, &mut state, action),
        State::After(guest) => after(vmm, guest, action),
    }
}

fn before(vmm: &Vmm, state: &mut State, action: Action) -> Answer {
    let State::Before(parts) = state else { return Err(Fault::after_boot()) };
    match action {
        Action::DescribeInstance => answer(&vmm.instance(VmState::NotStarted)),
        Action::DescribeVersion => version(),
        Action::DescribeMachine => answer(&parts.machine),
        Action::DescribeVm => answer(&parts.describe()),
        Action::SetMachine(config) => done(parts.set_machine(config)),
        Action::UpdateMachine(update) => done(parts.update_machine(&update)),
        Action::SetBoot(config) => done(parts.set_boot(config)),
        Action::SetDrive(config) => done(parts.set_drive(*config)),
        Action::SetNetwork(config) => done(parts.set_nic(*config)),
        Action::SetVsock(config) => done(parts.set_vsock(config)),
        Action::SetLogger(config) => done(vmm.set_logger(parts, config)),
        Action::SetMetrics(config) => done(vmm.set_metrics(parts, config)),
        Action::Start => done(vmm.start(state)),
        Action::FlushMetrics | Action::CtrlAltDel | Action::Pause | Action::Resume => Err(Fault::before_boot()),
        Action::Foreign(what) => Err(Fault::not_supported(what)),
    }
}

fn after(vmm: &Vmm, guest: &mut Guest, action: Action) -> Answer {
    match action {
        Action::DescribeInstance => answer(&vmm.instance(guest.state())),
        Action::DescribeVersion => version(),
        Action::DescribeMachine => answer(&guest.config().machine_config),
        Action::DescribeVm => answer(guest.config()),
        Action::FlushMetrics => done(vmm.flush_metrics()),
        Action::CtrlAltDel => done(guest.ctrl_alt_del()),
        Action::Pause => done(vmm.pause(guest)),
        Action::Resume => done(vmm.resume(guest)),
        Action::SetMachine(_)
        | Action::UpdateMachine(_)
        | Action::SetBoot(_)
        | Action::SetDrive(_)
        | Action::SetNetwork(_)
        | Action::SetVsock(_)
        | Action::SetLogger(_)
        | Action::SetMetrics(_)
        | Action::Start => Err(Fault::after_boot()),
        Action::Foreign(what) => Err(Fault::not_supported(what)),
    }
}

fn version() -> Answer {
    answer(&Version { firecracker_version: API_VERSION.to_owned() })
}

fn done(result: Result<(), Fault>) -> Answer {
    result.map(|()| None)
}

fn answer<T: serde::Serialize>(value: &T) -> Answer {
    serde_json::to_string(value).map(Some).map_err(|error| Fault::new(error.to_string()))
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
