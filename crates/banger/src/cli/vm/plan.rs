//! `--dry-run` of what makes VMs: bangerd plans it as it would, a work tree is made ready as it would be, and nothing is made.

use super::trip::Trip;
use super::workspace::{document, left_out, line as shipped_line};
use crate::api::Request;
use crate::api::vm::{Machine, Plan};
use crate::cli::problem::Problem;
use crate::cli::reach::Asked;
use crate::cli::{documents, output, size, text};
use std::net::SocketAddr;
use std::time::Instant;

/// Asks what would be made, and prints it.
pub(super) fn show(asked: &Asked, machine: Machine, keep: bool, trip: Option<&Trip<'_>>) -> Result<(), Problem> {
    let begun = Instant::now();
    let plan: Plan = asked.reach.ask(Request::VmPlan { machine, keep })?;
    let shipped = trip.map(Trip::would).transpose()?;
    if asked.json {
        let workspace = shipped.map(|shipped| document(&plan.name, shipped, true, begun.elapsed()));
        return output::json(&documents::Planned { plan, workspace });
    }
    let mut out = lines(&plan);
    if let Some(shipped) = &shipped {
        out.push_str(&format!("{:<9} {}\n", "ships", shipped_line(&plan.name, shipped)));
    }
    output::data(&out)?;
    left_out(shipped.as_ref().map_or(&[], |shipped| &shipped.left_out));
    Ok(())
}

fn lines(plan: &Plan) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &str| out.push_str(&format!("{key:<9} {}\n", text::line(value)));
    line("name", &plan.name);
    line("stays", if plan.keep { "yes" } else { "no: gone after its command" });
    let digest = plan.image.digest.as_deref().map_or(String::new(), |digest| format!(" {digest}"));
    line("image", &format!("{}{digest}", plan.image.name));
    line("kernel", &plan.kernel);
    line("init", if plan.init { "the image's own" } else { "the agent" });
    line("cpus", &plan.cpus.to_string());
    line("memory", &size::shown(plan.memory_bytes));
    let method = plan.disk.method.as_deref().unwrap_or_default();
    line("disk", &format!("{}, {method}", size::shown(plan.disk.size_bytes)));
    line("network", &format!("{}, {}", plan.network.ip, if plan.network.nat { "nat" } else { "no way out" }));
    for port in &plan.network.published {
        line("port", &format!("{} -> {}", SocketAddr::new(port.address, port.port), port.guest_port));
    }
    line("vmm", &format!("{}, {}", plan.vmm, plan.accel));
    match (&plan.template, &plan.why) {
        (Some(template), _) => line("start", &format!("from template {template}")),
        (None, Some(why)) => line("start", &format!("a boot: {why}")),
        (None, None) => line("start", "a boot"),
    }
    out
}
