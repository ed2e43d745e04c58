//! The project's chores.

mod cache;
mod console;
mod demo;
mod guest;
mod inventory;
mod lab;
mod man;
mod programs;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use inventory::{Inventory, Processes};
use lexopt::prelude::*;

const HELP: &str = "\
usage: cargo xtask COMMAND

  guest --agent FILE [--include PKG,…] [--again] [--copy-to FOLDER]
      make a guest's kernel, initrd and root file system in the cache where they aren't there yet; print their paths
  sweep
      remove from the cache what was left half-made
  demo --owner USER [--no-jail] [--kernel-args WORDS] [--bench ROUNDS]
      the demo, in the namespaces that demo/run makes for it, its VM in a jail unless told otherwise; or, in turns with a bare QEMU, launches to the first word
  lab, lab-test
      another kernel under emulation; lab/run and lab/test call them
  man FOLDER
      write the manual's pages there, one for each command of banger's, and bangerd's
  tidy
      check what no compiler sees: arrows, unsafe, lengths, links, tables
  inventory [--before FILE] [--namespace net:[N]]
      list links, rules, loops and mounts, or compare them with such a list, and count the processes of a namespace
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            explain(&e);
            ExitCode::FAILURE
        }
    }
}

/// What failed, why, and what to do about it, whichever of an error's causes says so.
fn explain(error: &anyhow::Error) {
    let texts: Vec<String> = error.chain().map(ToString::to_string).collect();
    let parts =
        texts.iter().map(|t| t.split_once("\n  fix: ").map_or((t.as_str(), None), |(what, fix)| (what, Some(fix))));
    let (whats, fixes): (Vec<&str>, Vec<Option<&str>>) = parts.unzip();
    for (n, what) in whats.iter().enumerate() {
        eprintln!("{}: {what}", if n == 0 { "error" } else { "  why" });
    }
    if let Some(fix) = fixes.into_iter().flatten().next() {
        eprintln!("  fix: {fix}");
    }
}

fn run() -> Result<()> {
    let mut arguments = lexopt::Parser::from_env();
    let Some(Value(command)) = arguments.next()? else {
        print!("{HELP}");
        return Ok(());
    };
    match command.to_str() {
        Some("guest") => guest(arguments),
        Some("sweep") => cache::Cache::open().map(drop),
        Some("demo") => demo(arguments),
        Some("lab") => lab::main(arguments, lab::Task::Run),
        Some("lab-test") => lab::main(arguments, lab::Task::Test),
        Some("inventory") => inventory(arguments),
        Some("man") => man(arguments),
        Some("tidy") => tidy::run(),
        _ => bail!("no command {}; cargo xtask lists them", command.display()),
    }
}

fn guest(mut arguments: lexopt::Parser) -> Result<()> {
    let (mut agent, mut include, mut again, mut copy_to) = (None, Vec::new(), false, None);
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("agent") => agent = Some(PathBuf::from(arguments.value()?)),
            Long("include") => include = arguments.value()?.string()?.split(',').map(str::to_owned).collect(),
            Long("again") => again = true,
            Long("copy-to") => copy_to = Some(PathBuf::from(arguments.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    let Some(agent) = agent else { bail!("say where the agent is: --agent FILE") };
    let guest = guest::make(&agent, &include, again)?;
    match copy_to {
        Some(folder) => guest.copy_to(&folder),
        None => {
            println!("{}\n{}\n{}", guest.kernel.display(), guest.initrd.display(), guest.root.display());
            Ok(())
        }
    }
}

fn man(mut arguments: lexopt::Parser) -> Result<()> {
    let Some(Value(folder)) = arguments.next()? else { bail!("say where to: cargo xtask man FOLDER") };
    man::write(std::path::Path::new(&folder))
}

fn demo(mut arguments: lexopt::Parser) -> Result<()> {
    let (mut owner, mut wishes) = (None, demo::Wishes::default());
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("owner") => owner = Some(arguments.value()?.string()?),
            Long("kernel-args") => wishes.kernel_args = arguments.value()?.string()?,
            Long("no-jail") => wishes.no_jail = true,
            Long("bench") => wishes.bench = Some(arguments.value()?.parse()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let Some(owner) = owner else { bail!("say whose VMs they are: --owner USER") };
    demo::run(&owner, &wishes)
}

fn inventory(mut arguments: lexopt::Parser) -> Result<()> {
    let (mut before, mut namespace) = (None, None);
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("before") => before = Some(std::fs::read_to_string(arguments.value()?)?),
            Long("namespace") => namespace = Some(arguments.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let now = Inventory::take(namespace.as_deref().map_or(Processes::None, Processes::Of))?;
    match before {
        Some(before) => inventory::report("on this machine", &Inventory::parse(&before), &now),
        None => {
            print!("{}", now.to_text());
            Ok(())
        }
    }
}
