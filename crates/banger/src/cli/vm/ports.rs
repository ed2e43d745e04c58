//! `vm ports`: who listens in a guest, by its own word, and how to get there.

use super::{Status, link};
use crate::api::vm::Vm;
use crate::cli::documents::Listening;
use crate::cli::problem::Problem;
use crate::cli::reach::Asked;
use crate::cli::{output, table};
use agent::protocol::Listener;
use clap::Args;
use std::net::{Ipv4Addr, SocketAddr};

#[derive(Args)]
pub(crate) struct Ports {
    /// VMs: names, or 4 or more digits of their ids; none: all that run.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    pub(super) asked: Asked,
}

const HEADER: [&str; 5] = ["NAME", "PROTO", "LISTENS", "PROCESS", "REACH"];

pub(super) fn ports(ports: &Ports) -> Result<Status, Problem> {
    let (vms, found) = link::named(&ports.asked.reach, &ports.names)?;
    let (answers, status) = link::ask_each(&ports.asked.reach, vms, |client| client.listeners())?;
    let (mut objects, mut rows) = (Vec::new(), Vec::new());
    for (vm, (mut listeners, left_out)) in answers {
        if left_out > 0 {
            output::warning(&format!("{}: {left_out} more listen", vm.name));
        }
        listeners.sort_by(|a, b| (a.port, &a.proto, a.address).cmp(&(b.port, &b.proto, b.address)));
        for one in listeners {
            let (reach, published) = (reach(&vm, &one), published(&vm, &one));
            rows.push(row(&vm, &one, reach.as_deref(), published.as_deref()));
            let (name, proto, process) = (vm.name.clone(), one.proto, one.program);
            objects.push(Listening { name, proto, address: one.address, port: one.port, process, reach, published });
        }
    }
    if ports.asked.json {
        output::json(&objects)?;
    } else {
        table::print(&HEADER, &rows)?;
    }
    Ok(status.max(found))
}

fn row(vm: &Vm, one: &Listener, reach: Option<&str>, published: Option<&str>) -> Vec<String> {
    let at = SocketAddr::new(one.address, one.port).to_string();
    let ways: Vec<&str> = reach.into_iter().chain(published).collect();
    let reach = match one.proto.as_str() {
        _ if !ways.is_empty() => ways.join(" "),
        "tcp" if one.address.is_loopback() => format!("inside only: banger vm forward {} {}", vm.name, one.port),
        _ => "inside only".into(),
    };
    let process = one.program.as_deref().unwrap_or_default();
    [&vm.name, one.proto.as_str(), &at, process, &reach].map(table::cell).into()
}

/// Where this machine listens for it: connections there go to 127.0.0.1 in the guest.
fn published(vm: &Vm, one: &Listener) -> Option<String> {
    let is_there = one.proto == "tcp" && (one.address.is_unspecified() || one.address == Ipv4Addr::LOCALHOST);
    let found = vm.network.published.iter().find(|port| is_there && port.open && port.guest_port == one.port)?;
    Some(SocketAddr::new(found.address, found.port).to_string())
}

/// Where this machine finds it; `None`: it listens to its own machine alone, or to another network.
fn reach(vm: &Vm, one: &Listener) -> Option<String> {
    let is_open = one.address.is_unspecified() || vm.network.ip.parse() == Ok(one.address);
    let name = vm.network.dns.as_ref().unwrap_or(&vm.network.ip);
    is_open.then(|| format!("{name}:{}", one.port))
}
