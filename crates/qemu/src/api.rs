//! The API: a request becomes an [`Action`], and each action is answered in one of two matches, before the boot and
//! after it. Neither has a catch-all arm: a new action has to be decided in both.

use serde::de::DeserializeOwned;
use wire::firecracker::{
    API_VERSION, ActionType, Balloon, BalloonStatsUpdate, BalloonUpdate, BootSource, Drive, DriveUpdate, Entropy,
    InstanceAction, Logger, MachineConfig, MachineConfigUpdate, MemoryBackend, Metrics, NetworkInterface,
    NetworkUpdate, ResourceId, Serial, SnapshotCreate, SnapshotLoad, Version, Vm, VmState, VmStateChange, Vsock,
};

use crate::fault::Fault;
use crate::guest::{Guest, NO_DEVICE};
use crate::vmm::{State, Vmm};

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
    DescribeBalloon,
    DescribeBalloonStats,
    SetBalloon(Balloon),
    UpdateBalloon(BalloonUpdate),
    UpdateBalloonStats(BalloonStatsUpdate),
    SetEntropy(Entropy),
    SetSerial(Serial),
    UpdateDrive(DriveUpdate),
    UpdateNetwork(NetworkUpdate),
    CreateSnapshot(SnapshotCreate),
    LoadSnapshot(Box<SnapshotLoad>, MemoryBackend),
    /// To take a device from a VM that runs.
    Unplug,
    /// Something of Firecracker's that isn't here.
    Foreign(Foreign),
}

/// What Firecracker has and we have not, by when Firecracker would do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// Before the boot: what it is.
    Setup(&'static str),
    /// After the boot: what Firecracker says of a VM that was not set up for it.
    Running(&'static str),
    /// At any time: what it is.
    Always(&'static str),
    /// A run of page hinting, which a balloon has to be set up for.
    Hinting,
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
    let (first, second, third) = (parts.next().unwrap_or(""), parts.next(), parts.next());
    if third.is_some() && first != "balloon" {
        return Err(no_such(method, path));
    }
    match method {
        Method::Get if !body.is_empty() => return Err(Fault::new("GET request cannot have a body.")),
        Method::Put if body.is_empty() => return Err(Fault::new("Empty PUT request.")),
        Method::Patch if body.is_empty() && (first, second) != ("balloon", Some("hinting")) => {
            return Err(Fault::new("Empty PATCH request."));
        }
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
        (Method::Patch, "drives", id) => {
            let id = checked_id(id)?;
            let update: DriveUpdate = json(body)?;
            same_id(&id, &update.drive_id)?;
            Ok(Action::UpdateDrive(update))
        }
        (Method::Patch, "network-interfaces", id) => {
            let id = checked_id(id)?;
            let update: NetworkUpdate = json(body)?;
            same_id(&id, &update.iface_id)?;
            Ok(Action::UpdateNetwork(update))
        }
        (Method::Put, "entropy", None) => json(body).map(Action::SetEntropy),
        (Method::Put, "serial", None) => json(body).map(Action::SetSerial),
        (Method::Put, "snapshot", Some("create")) => json(body).map(Action::CreateSnapshot),
        (Method::Put, "snapshot", Some("load")) => {
            let asked: SnapshotLoad = json(body)?;
            let memory = asked.memory().map_err(not_json)?;
            Ok(Action::LoadSnapshot(Box::new(asked), memory))
        }
        (_, "balloon", _) => balloon(method, second, third, body),
        _ => foreign(method, first, second),
    }
}

fn balloon(method: Method, second: Option<&str>, third: Option<&str>, body: &[u8]) -> Result<Action, Fault> {
    match (method, second, third) {
        (Method::Get, None, _) => Ok(Action::DescribeBalloon),
        (Method::Get, Some("statistics"), None) => Ok(Action::DescribeBalloonStats),
        (Method::Put, None, _) => json(body).map(Action::SetBalloon),
        (Method::Patch, None, _) => json(body).map(Action::UpdateBalloon),
        (Method::Patch, Some("statistics"), None) => json(body).map(Action::UpdateBalloonStats),
        (Method::Get, Some("hinting"), Some("status")) | (Method::Patch, Some("hinting"), Some("start" | "stop")) => {
            Ok(Action::Foreign(Foreign::Hinting))
        }
        _ => Err(no_such(method, "balloon")),
    }
}

/// What is left of Firecracker's requests.
fn foreign(method: Method, first: &str, second: Option<&str>) -> Result<Action, Fault> {
    let what = match (method, first, second) {
        (Method::Put, "mmds", Some("config")) => Foreign::Setup("mmds"),
        (Method::Get | Method::Put | Method::Patch, "mmds", None) => Foreign::Always("mmds"),
        (Method::Put, "cpu-config", None) => Foreign::Setup("cpu-config"),
        (Method::Put, "hotplug", Some("memory")) => Foreign::Setup("hotplug"),
        (Method::Get, "hotplug", Some("memory")) => Foreign::Running("Internal VMM error"),
        (Method::Patch, "hotplug", Some("memory")) => Foreign::Running("Memory hotplug update error"),
        (Method::Put, "pmem", Some(_)) => Foreign::Setup("pmem"),
        (Method::Patch, "pmem", Some(_)) => Foreign::Running("Pmem config error: Unable to patch the pmem device"),
        (Method::Delete, "drives" | "network-interfaces" | "pmem", id) => {
            checked_id(id)?;
            return Ok(Action::Unplug);
        }
        _ => return Err(no_such(method, first)),
    };
    Ok(Action::Foreign(what))
}

fn no_such(method: Method, path: &str) -> Fault {
    let shown: String = path.chars().take(100).collect();
    Fault::new(format!("Invalid request method and/or path: {} {shown}.", format!("{method:?}").to_uppercase()))
}

/// One JSON object, and nothing behind it. serde would take an array for a struct.
fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(not_json("not an object"));
    }
    serde_json::from_slice(body).map_err(not_json)
}

fn not_json(error: impl std::fmt::Display) -> Fault {
    Fault::new(format!("An error occurred when deserializing the json body of a request: {error}."))
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

impl Action {
    /// Whether it sets up a boot, so that nothing can be loaded any more, even where it fails.
    fn is_for_a_boot(&self) -> bool {
        matches!(
            self,
            Self::SetMachine(_)
                | Self::UpdateMachine(_)
                | Self::SetBoot(_)
                | Self::SetDrive(_)
                | Self::SetNetwork(_)
                | Self::SetVsock(_)
                | Self::SetBalloon(_)
                | Self::SetEntropy(_)
        )
    }
}

fn before(vmm: &Vmm, state: &mut State, action: Action) -> Answer {
    let State::Before(parts) = state else { return Err(Fault::after_boot()) };
    parts.touched |= action.is_for_a_boot();
    match action {
        Action::DescribeInstance => answer(&vmm.instance(VmState::NotStarted)),
        Action::DescribeVersion => version(),
        Action::DescribeMachine => answer(&parts.machine),
        Action::DescribeVm => answer(&parts.describe()),
        Action::DescribeBalloon => match &parts.balloon {
            Some(balloon) => answer(balloon),
            None => Err(Fault::new("Balloon config error: No balloon device found.")),
        },
        Action::SetMachine(config) => done(parts.set_machine(config)),
        Action::UpdateMachine(update) => done(parts.update_machine(&update)),
        Action::SetBoot(config) => done(parts.set_boot(config)),
        Action::SetDrive(config) => done(parts.set_drive(*config)),
        Action::SetNetwork(config) => done(parts.set_nic(*config)),
        Action::SetVsock(config) => done(parts.set_vsock(config)),
        Action::SetBalloon(config) => done(parts.set_balloon(config)),
        Action::SetEntropy(config) => done(parts.set_entropy(config)),
        Action::SetSerial(config) => done(parts.set_serial(&config)),
        Action::SetLogger(config) => done(vmm.set_logger(parts, config)),
        Action::SetMetrics(config) => done(vmm.set_metrics(parts, config)),
        Action::Start => done(vmm.start(state)),
        Action::LoadSnapshot(asked, memory) => done(vmm.load(state, &asked, &memory)),
        Action::FlushMetrics
        | Action::CtrlAltDel
        | Action::Pause
        | Action::Resume
        | Action::DescribeBalloonStats
        | Action::UpdateBalloon(_)
        | Action::UpdateBalloonStats(_)
        | Action::UpdateDrive(_)
        | Action::UpdateNetwork(_)
        | Action::CreateSnapshot(_)
        | Action::Unplug
        | Action::Foreign(Foreign::Running(_) | Foreign::Hinting) => Err(Fault::before_boot()),
        Action::Foreign(Foreign::Setup(what) | Foreign::Always(what)) => Err(Fault::not_supported(what)),
    }
}

fn after(vmm: &Vmm, guest: &mut Guest, action: Action) -> Answer {
    match action {
        Action::DescribeInstance => answer(&vmm.instance(guest.state())),
        Action::DescribeVersion => version(),
        Action::DescribeMachine => answer(&guest.config().machine_config),
        Action::DescribeVm => answer(guest.config()),
        Action::DescribeBalloon => answer(guest.balloon()?),
        Action::DescribeBalloonStats => answer(&guest.balloon_stats()?),
        Action::UpdateBalloon(update) => done(guest.update_balloon(update)),
        Action::UpdateBalloonStats(update) => done(guest.update_balloon_polling(update)),
        Action::UpdateDrive(update) => done(guest.update_drive(&update)),
        Action::UpdateNetwork(update) => done(guest.update_network(&update)),
        Action::FlushMetrics => done(vmm.flush_metrics()),
        Action::CtrlAltDel => done(guest.ctrl_alt_del()),
        Action::Pause => done(vmm.pause(guest)),
        Action::Resume => done(vmm.resume(guest)),
        Action::CreateSnapshot(asked) => done(vmm.save(guest, &asked)),
        Action::SetDrive(_) | Action::SetNetwork(_) | Action::Unplug => Err(Fault::no_hot_plug()),
        Action::SetMachine(_)
        | Action::UpdateMachine(_)
        | Action::SetBoot(_)
        | Action::SetVsock(_)
        | Action::SetBalloon(_)
        | Action::SetEntropy(_)
        | Action::SetSerial(_)
        | Action::SetLogger(_)
        | Action::SetMetrics(_)
        | Action::LoadSnapshot(..)
        | Action::Start
        | Action::Foreign(Foreign::Setup(_)) => Err(Fault::after_boot()),
        Action::Foreign(Foreign::Running(what)) => Err(Fault::new(format!("{what}: {NO_DEVICE}"))),
        Action::Foreign(Foreign::Hinting) => Err(Fault::new(match guest.balloon() {
            Ok(_) => "Balloon update error: Balloon: Attempting to use hinting when not enabled".to_owned(),
            Err(_) => format!("Balloon update error: {NO_DEVICE}"),
        })),
        Action::Foreign(Foreign::Always(what)) => Err(Fault::not_supported(what)),
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
