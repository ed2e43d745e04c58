//! `banger template`: made ahead, listed, shown, removed.

use super::asset::{gone, outcome};
use super::documents::OneOrMore;
use super::problem::Problem;
use super::reach::{Asked, milliseconds};
use super::{config, output, several, size, table, text};
use crate::api::Request;
use crate::api::template::{Removed, Template as Shown, Templates};
use crate::api::vm::Machine;
use crate::{duration, time};
use clap::{Args, Subcommand};
use std::time::Duration;

const HEADER: [&str; 8] = ["ID", "IMAGE", "MEMORY", "CPUS", "INIT", "SIZE", "VMS", "AGE"];

#[derive(Subcommand)]
pub(crate) enum Template {
    /// Make one for VMs of an image: it is booted once, and saved.
    Build(Build),
    /// List templates.
    #[command(visible_alias = "ls")]
    List(List),
    /// Show all that is known of templates.
    Show(Show),
    /// Take templates away.
    #[command(alias = "delete")]
    Rm(Rm),
}

#[derive(Args)]
pub(crate) struct Build {
    /// The image [default: as vm run's].
    #[arg(env = "BANGER_IMAGE")]
    image: Option<String>,
    /// The kernel of the VMs that are to go on from it.
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Their vCPUs [default: as vm run's].
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// Their memory: 512M, 1.5G [default: as vm run's].
    #[arg(long, short, value_name = "SIZE", value_parser = size::mebibytes)]
    memory: Option<u64>,
    /// For VMs with --init: saved when the image's own systemd is up.
    #[arg(long)]
    init: bool,
    /// How long its agent may take to answer, and its init to be up [default: 60s; 3m under emulation].
    #[arg(long, value_name = "D", value_parser = duration::parse)]
    boot_timeout: Option<Duration>,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    asked: Asked,
}

#[derive(Args)]
pub(crate) struct Show {
    /// 4 or more digits of ids, or images' names.
    #[arg(required = true, value_name = "ID")]
    names: Vec<String>,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Args)]
pub(crate) struct Rm {
    /// 4 or more digits of ids, or images' names.
    #[arg(required = true, value_name = "ID")]
    names: Vec<String>,
    /// One that is not there is no error.
    #[arg(short, long)]
    force: bool,
    /// Say what would go, and its size; take nothing away.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    asked: Asked,
}

impl Template {
    /// Does it.
    pub(crate) fn run(self) -> Result<u8, Problem> {
        match self {
            Template::Build(build) => build.run().map(|()| 0),
            Template::List(list) => list.run().map(|()| 0),
            Template::Show(show) => show.run(),
            Template::Rm(rm) => rm.run(),
        }
    }
}

impl Build {
    fn run(&self) -> Result<(), Problem> {
        let machine = Machine {
            image: self.image.clone(),
            kernel: self.kernel.clone(),
            cpus: self.cpus.or(config().vcpu),
            memory_mib: self.memory.or(config().memory_mib),
            init: self.init,
            boot_timeout_ms: milliseconds(self.boot_timeout.or(config().boot_timeout)),
            ..Machine::default()
        };
        let made: Shown = self.asked.reach.ask(Request::TemplateBuild { machine })?;
        if self.asked.json { output::json(&made) } else { output::data(&format!("{}\n", text::line(&made.id))) }
    }
}

impl List {
    fn run(&self) -> Result<(), Problem> {
        let json = self.asked.lists_as_json()?;
        let all: Templates = self.asked.reach.ask(Request::TemplateList {})?;
        if json {
            return output::json(&all.templates);
        }
        let rows: Vec<Vec<String>> = all.templates.iter().map(|one| row(one, output::on_terminal())).collect();
        table::print(&HEADER, &rows)?;
        if all.templates.is_empty() && output::on_terminal() {
            output::hint("no templates: banger template build\n");
        } else {
            output::hint(&format!("{}\n", total(&all)));
        }
        Ok(())
    }
}

/// How many there are, and what they take, of what they may.
pub(super) fn total(all: &Templates) -> String {
    let (count, bytes) = all.total();
    let plural = if all.most == 1 { "" } else { "s" };
    format!(
        "{count} of at most {} template{plural}, {} of {}",
        all.most,
        size::shown(bytes),
        size::shown(all.most_bytes)
    )
}

fn row(template: &Shown, short: bool) -> Vec<String> {
    let bytes = |bytes: u64| if short { size::shown(bytes) } else { bytes.to_string() };
    let age = match time::parse_rfc3339(&template.created_at) {
        Some(then) if short => time::age(time::unix_now().saturating_sub(then)),
        _ => template.created_at.clone(),
    };
    let cells = [
        template.id.clone(),
        template.image.clone(),
        bytes(template.memory_bytes),
        template.cpus.to_string(),
        if template.init { "own" } else { "agent" }.to_owned(),
        bytes(template.size_bytes),
        template.vms.join(","),
        age,
    ];
    cells.iter().map(|content| table::cell(content)).collect()
}

impl Show {
    fn run(&self) -> Result<u8, Problem> {
        let one = |name: &String| self.asked.reach.ask::<Shown>(Request::TemplateShow { name: name.clone() });
        let (all, status) = several::told(self.names.iter().map(one).collect())?;
        match self.asked.json {
            true => output::json(&OneOrMore::of(all, self.names.len()))?,
            false => output::data(&all.iter().map(lines).collect::<Vec<_>>().join("\n"))?,
        }
        Ok(status)
    }
}

fn lines(template: &Shown) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &str| out.push_str(&format!("{key:<9} {}\n", table::cell(value)));
    line("id", &template.id);
    line("image", &template.image);
    line("digest", template.digest.as_deref().unwrap_or("-"));
    line("kernel", &template.kernel);
    line("cpus", &template.cpus.to_string());
    line("memory", &size::shown(template.memory_bytes));
    line("init", if template.init { "the image's own" } else { "the agent" });
    line("size", &size::shown(template.size_bytes));
    line("vms", &template.vms.join(", "));
    line("created", &template.created_at);
    out
}

impl Rm {
    /// A failure of one stops no other.
    fn run(&self) -> Result<u8, Problem> {
        let (mut done, mut failures) = (Vec::new(), Vec::new());
        for name in &self.names {
            match self.asked.reach.try_ask::<Removed>(Request::TemplateRm { name: name.clone(), dry_run: self.dry_run })
            {
                Ok(removed) => done.push(removed),
                Err(fault) if self.force && fault.code == "no_such_template" => {}
                Err(fault) => failures.push(fault),
            }
        }
        if self.asked.json {
            output::json(&done)?;
        } else {
            for removed in &done {
                gone(&removed.id, Some(removed.freed_bytes), self.dry_run)?;
            }
        }
        outcome(self.names.len(), failures)
    }
}
