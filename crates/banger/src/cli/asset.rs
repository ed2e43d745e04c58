//! What images and kernels are shown and removed by: `list`, `show`, `rm`.

use super::documents::OneOrMore;
use super::problem::Problem;
use super::reach::Asked;
use super::{manner, output, several, size, table, text};
use crate::api::asset::{Asset, Assets, Removed};
use crate::api::{Fault, Request};
use crate::time;
use clap::Args;

const HEADER: [&str; 6] = ["NAME", "DIGEST", "SIZE", "SHARED", "VMS", "AGE"];
/// Digits of a digest on a terminal.
const DIGITS: usize = 12;

#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) asked: Asked,
}

#[derive(Args)]
pub(crate) struct Show {
    /// Names, or 4 or more digits of digests.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    pub(crate) asked: Asked,
}

#[derive(Args)]
pub(crate) struct Rm {
    /// Names, or 4 or more digits of digests.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Those in use too: the files stay as long as the VMs. And a name that is not there is no error.
    #[arg(short, long)]
    force: bool,
    /// Say what would go, and its size; take nothing away.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(crate) asked: Asked,
}

/// Lists them; `none` is said where there are none.
pub(crate) fn list(list: &List, request: Request, none: &str) -> Result<(), Problem> {
    let json = list.asked.lists_as_json()?;
    let Assets { assets } = list.asked.reach.ask(request)?;
    if json {
        return output::json(&assets);
    }
    if assets.is_empty() && output::on_terminal() {
        output::hint(none);
    }
    let rows: Vec<Vec<String>> = assets.iter().map(|asset| row(asset, output::on_terminal())).collect();
    table::print(&HEADER, &rows)
}

fn row(asset: &Asset, short: bool) -> Vec<String> {
    let bytes = |bytes: u64| if short { size::shown(bytes) } else { bytes.to_string() };
    let digits = asset.digest.strip_prefix("sha256:").unwrap_or(&asset.digest);
    let age = match time::parse_rfc3339(&asset.created_at) {
        Some(then) if short => time::age(time::unix_now().saturating_sub(then)),
        _ => asset.created_at.clone(),
    };
    let cells = [
        asset.name.clone(),
        if short { digits.chars().take(DIGITS).collect() } else { asset.digest.clone() },
        bytes(asset.size_bytes),
        bytes(asset.shared_bytes),
        asset.vms.join(","),
        age,
    ];
    cells.iter().map(|content| table::cell(content)).collect()
}

/// Shows some.
pub(crate) fn show(show: &Show, ask: impl Fn(String) -> Request) -> Result<u8, Problem> {
    let one = |name: &String| show.asked.reach.ask::<Asset>(ask(name.clone()));
    let (assets, status) = several::told(show.names.iter().map(one).collect())?;
    match show.asked.json {
        true => output::json(&OneOrMore::of(assets, show.names.len()))?,
        false => output::data(&assets.iter().map(lines).collect::<Vec<_>>().join("\n"))?,
    }
    Ok(status)
}

fn lines(asset: &Asset) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &str| out.push_str(&format!("{key:<9} {}\n", table::cell(value)));
    line("name", &asset.name);
    line("digest", &asset.digest);
    if let Some(version) = &asset.version {
        line("version", version);
    }
    line("size", &size::shown(asset.size_bytes));
    line("source", &asset.source);
    line("vms", &asset.vms.join(", "));
    line("created", &asset.created_at);
    out
}

/// Removes some; a failure of one stops no other.
pub(crate) fn rm(rm: &Rm, missing: &str, ask: impl Fn(String, bool, bool) -> Request) -> Result<u8, Problem> {
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for name in &rm.names {
        let (removed, freed) = match rm.asked.reach.try_ask::<Removed>(ask(name.clone(), rm.force, rm.dry_run)) {
            Ok(removed) => {
                let freed = removed.freed_bytes;
                (removed, Some(freed))
            }
            Err(fault) if rm.force && fault.code == missing => (Removed { name: name.clone(), freed_bytes: 0 }, None),
            Err(fault) => {
                failures.push(fault);
                continue;
            }
        };
        if !rm.asked.json {
            gone(&removed.name, freed, rm.dry_run)?;
        }
        done.push(removed);
    }
    if rm.asked.json {
        output::json(&done)?;
    }
    outcome(rm.names.len(), failures)
}

/// What went, or would go, and what that frees; `None`: it was not there.
pub(super) fn gone(name: &str, freed: Option<u64>, dry_run: bool) -> Result<(), Problem> {
    let name = text::line(name);
    if !output::on_terminal() || manner::is_quiet() {
        return output::data(&format!("{name}\n"));
    }
    let what = match freed.map(size::shown) {
        None => "was not there".to_owned(),
        Some(freed) if dry_run => format!("would be removed: {freed}"),
        Some(freed) => format!("removed, {freed} freed"),
    };
    output::ours(&format!("{name}  {what}\n"));
    Ok(())
}

/// One name's failure is the command's; of several each is told.
pub(super) fn outcome(asked: usize, mut failures: Vec<Fault>) -> Result<u8, Problem> {
    match (asked, failures.pop()) {
        (_, None) => return Ok(0),
        (1, Some(fault)) => return Err(Problem::of_fault(fault)),
        (_, Some(fault)) => failures.push(fault),
    }
    for fault in failures {
        let exit = fault.exit;
        output::failure(&Problem::of_fault(fault), exit);
    }
    Ok(several::SOME)
}
