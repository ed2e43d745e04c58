//! `vm list` and `vm show`.

use super::Status;
use crate::api::Request;
use crate::api::vm::{Published, Vm, Vms};
use crate::cli::documents::OneOrMore;
use crate::cli::problem::Problem;
use crate::cli::reach::Asked;
use crate::cli::{output, several, size, table, text};
use crate::time;
use clap::Args;
use std::net::SocketAddr;

#[derive(Args)]
pub(crate) struct List {
    /// Those that run or start alone.
    #[arg(long)]
    running: bool,
    /// Show more of each, and nothing cut short.
    #[arg(short, long)]
    long: bool,
    /// Those of this image alone.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    #[command(flatten)]
    pub(crate) asked: Asked,
}

#[derive(Args)]
pub(crate) struct Show {
    /// VMs: names, or 4 or more digits of their ids.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    pub(super) asked: Asked,
}

const HEADER: [&str; 9] = ["NAME", "STATE", "IMAGE", "IP", "CPUS", "MEM", "DISK", "WORKSPACE", "AGE"];
const LONG: [&str; 14] = [
    "NAME",
    "ID",
    "STATE",
    "IMAGE",
    "KERNEL",
    "INIT",
    "IP",
    "CPUS",
    "MEM",
    "DISK",
    "USED",
    "METHOD",
    "WORKSPACE",
    "CREATED",
];
/// States in which a VM has something in the kernel.
const UP: [&str; 3] = ["starting", "running", "stopping"];

pub(super) fn list(list: &List) -> Result<(), Problem> {
    let json = list.asked.lists_as_json()?;
    let Vms { mut vms } = list.asked.reach.ask(Request::VmList {})?;
    let none = match (vms.is_empty(), &list.image) {
        (true, _) => "no VMs yet: banger vm run -- uname -a\n",
        (false, Some(_)) => "none of them: banger vm list shows all\n",
        (false, None) => "no VM runs: banger vm start NAME\n",
    };
    vms.retain(|vm| !list.running || UP.contains(&vm.state.as_str()));
    vms.retain(|vm| list.image.as_ref().is_none_or(|image| *image == vm.image.name));
    if json {
        return output::json(&vms);
    }
    if vms.is_empty() && output::on_terminal() {
        output::hint(none);
    }
    if list.long {
        return table::print(&LONG, &vms.iter().map(long).collect::<Vec<_>>());
    }
    let rows: Vec<Vec<String>> = vms.iter().map(|vm| row(vm, output::on_terminal())).collect();
    table::print(&HEADER, &rows)
}

/// `vm ps`: those that run.
pub(super) fn ps(list: List) -> Result<(), Problem> {
    self::list(&List { running: true, ..list })
}

fn row(vm: &Vm, short: bool) -> Vec<String> {
    let bytes = |bytes: u64| if short { size::shown(bytes) } else { bytes.to_string() };
    let age = match time::parse_rfc3339(&vm.created_at) {
        Some(then) if short => time::age(time::unix_now().saturating_sub(then)),
        _ => vm.created_at.clone(),
    };
    let cells = [
        vm.name.clone(),
        vm.state.clone(),
        vm.image.name.clone(),
        vm.network.ip.clone(),
        vm.cpus.to_string(),
        bytes(vm.memory_bytes),
        vm.disk.used_bytes.map_or(String::new(), bytes),
        vm.workspace.as_ref().map_or(String::new(), |tree| tree_name(&tree.pushed.host, short)),
        age,
    ];
    cells.iter().map(|content| table::cell(content)).collect()
}

/// A row of `-l`.
fn long(vm: &Vm) -> Vec<String> {
    let bytes = |bytes: u64| if output::on_terminal() { size::shown(bytes) } else { bytes.to_string() };
    let cells = [
        vm.name.clone(),
        vm.id.clone(),
        vm.state.clone(),
        vm.image.name.clone(),
        vm.kernel.clone(),
        if vm.init { "own" } else { "agent" }.to_owned(),
        vm.network.ip.clone(),
        vm.cpus.to_string(),
        bytes(vm.memory_bytes),
        bytes(vm.disk.size_bytes),
        vm.disk.used_bytes.map_or(String::new(), bytes),
        vm.disk.method.clone().unwrap_or_default(),
        vm.workspace.as_ref().map_or(String::new(), |tree| tree.pushed.host.clone()),
        vm.created_at.clone(),
    ];
    cells.iter().map(|content| table::cell(content)).collect()
}

/// A work tree's top; on a terminal its own name alone.
fn tree_name(host: &str, short: bool) -> String {
    let name = host.rsplit('/').next().unwrap_or(host);
    if short { name.to_owned() } else { host.to_owned() }
}

pub(super) fn show(show: &Show) -> Result<Status, Problem> {
    let one = |name: &String| show.asked.reach.ask::<Vm>(Request::VmShow { name: name.clone() });
    let (vms, status) = several::told(show.names.iter().map(one).collect())?;
    match show.asked.json {
        true => output::json(&OneOrMore::of(vms, show.names.len()))?,
        false => output::data(&vms.iter().map(lines).collect::<Vec<_>>().join("\n"))?,
    }
    Ok(status)
}

/// All that is known of one, a line each.
fn lines(vm: &Vm) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        let shown = text::line(value);
        let shown = if key == "state" { table::state(&shown) } else { shown };
        out.push_str(&format!("{key:<9} {shown}\n"));
    };
    line("name", &vm.name);
    line("id", &vm.id);
    line("state", &vm.state);
    line("image", &with(&vm.image.name, vm.image.digest.as_deref()));
    line("kernel", &vm.kernel);
    line("init", if vm.init { "the image's own" } else { "the agent" });
    line("cpus", &vm.cpus.to_string());
    line("memory", &size::shown(vm.memory_bytes));
    let method = vm.disk.method.as_deref().unwrap_or("not made yet");
    let used = vm.disk.used_bytes.map_or(String::new(), |used| format!("{} of ", size::shown(used)));
    line("disk", &format!("{used}{}, {method}", size::shown(vm.disk.size_bytes)));
    let way = if vm.network.nat { "nat" } else { "no way out" };
    line("network", &format!("{}, {way}", with(&vm.network.ip, vm.network.dns.as_deref())));
    for port in &vm.network.published {
        line("port", &published(vm, port));
    }
    if let Some(vmm) = &vm.vmm {
        line("vmm", &format!("{}, {}, pid {}", vmm.program, vmm.accel, vmm.pid));
    }
    line("agent", &with(&vm.agent.state, vm.agent.version.as_deref()));
    if let Some(tree) = &vm.workspace {
        let unpulled = if tree.unpulled { ", may have changes that were not pulled" } else { "" };
        line(
            "workspace",
            &format!("{} from {}, {:.12}{unpulled}", tree.pushed.guest, tree.pushed.host, tree.pushed.commit),
        );
    }
    line("created", &vm.created_at);
    if let Some(started) = &vm.started_at {
        line("started", started);
    }
    if let Some(ms) = vm.ready_ms {
        line("ready", &format!("after {ms} ms"));
    }
    if let Some(fault) = &vm.last_error {
        line("failed", &format!("error[{}]: {}", fault.code, fault.message));
        let why = fault.why.as_deref().into_iter().flat_map(str::lines);
        why.enumerate().for_each(|(n, why)| line(if n == 0 { "  why" } else { "    |" }, why));
        fault.fix.iter().for_each(|fix| line("  fix", fix));
    }
    out
}

/// A port here, where it leads, and what is amiss.
fn published(vm: &Vm, port: &Published) -> String {
    let here = SocketAddr::new(port.address, port.port);
    let amiss = match port.open {
        true => "",
        false if vm.state == "running" => ", not listened for: somebody else has it",
        false => ", when it runs",
    };
    format!("{here} -> {}{amiss}", port.guest_port)
}

fn with(one: &str, two: Option<&str>) -> String {
    two.map_or(one.to_owned(), |two| format!("{one} {two}"))
}
