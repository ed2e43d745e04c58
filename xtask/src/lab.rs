//! The lab: another kernel, under emulation, with systemd and all that this machine's kernel may lack. See docs/lab.md.

mod baggage;
mod children;
mod image;
mod machine;
mod qmp;
mod saved;
mod session;
mod tests;

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use baggage::Item;
use banger::image::debian;
use lexopt::prelude::*;
use machine::{Machine, Nested};
use saved::Wanted;

use crate::cache::{self, Cache};

/// How long a lab runs where nothing else is said.
const LIMIT: Duration = Duration::from_secs(600);

const HELP: &str = "\
usage: lab/run [--nested] [--timeout SECONDS] [--with PATH]… [--env NAME[=VALUE]]… [--again] [-v] [--] COMMAND…
       lab/test [--timeout SECONDS] [FILTER]…
";

/// What a run is asked for.
struct Request {
    /// The program that runs inside.
    inside: PathBuf,
    /// What cargo said of the tests that it built.
    built: PathBuf,
    nested: Nested,
    limit: Duration,
    with: Vec<Item>,
    environment: Vec<String>,
    again: bool,
    verbose: bool,
    words: Vec<String>,
}

impl Request {
    fn parse(mut arguments: lexopt::Parser) -> Result<Option<Self>> {
        let mut request = Self {
            inside: PathBuf::new(),
            built: PathBuf::new(),
            nested: Nested::No,
            limit: LIMIT,
            with: Vec::new(),
            environment: session::ENVIRONMENT.map(str::to_owned).to_vec(),
            again: false,
            verbose: false,
            words: Vec::new(),
        };
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("inside") => request.inside = arguments.value()?.into(),
                Long("built") => request.built = arguments.value()?.into(),
                Long("nested") => request.nested = Nested::Yes,
                Long("timeout") => request.limit = Duration::from_secs(arguments.value()?.parse()?),
                Long("with") => request.with.push(Item::new(Path::new(&arguments.value()?))?),
                Long("env") => request.environment.push(variable(arguments.value()?.string()?)?),
                Long("again") => request.again = true,
                Short('v') => request.verbose = true,
                Short('h') | Long("help") => return Ok(None),
                Value(word) => {
                    request.words.push(word.string()?);
                    for word in arguments.raw_args()? {
                        request.words.push(word.string()?);
                    }
                    break;
                }
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(Some(request))
    }
}

/// `NAME=VALUE`, or this process's own of that name.
fn variable(said: String) -> Result<String> {
    if said.contains('=') {
        return Ok(said);
    }
    let value = std::env::var(&said).with_context(|| format!("there is no variable {said} here"))?;
    Ok(format!("{said}={value}"))
}

/// What the lab is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// One command.
    Run,
    /// The tests that ask for it.
    Test,
}

/// The exit status where the lab itself fails, as `timeout` has it.
const FAILED: i32 = 125;

/// `lab` and `lab-test`: ends this process, with the command's exit status where all went well.
pub(crate) fn main(arguments: lexopt::Parser, task: Task) -> Result<()> {
    let Some(request) = Request::parse(arguments)? else {
        print!("{HELP}");
        return Ok(());
    };
    children::end_on_signals()?;
    let done = match task {
        Task::Run => run(request),
        Task::Test => tests::run(request),
    };
    let status = match (children::ended_by(), done) {
        (Some(status), _) => {
            eprintln!("lab: {}", if status == children::TIME_UP { "the time is up" } else { "interrupted" });
            status
        }
        (None, Ok(status)) => status,
        (None, Err(e)) => {
            crate::explain(&e);
            FAILED
        }
    };
    std::process::exit(status)
}

fn run(request: Request) -> Result<i32> {
    if request.words.is_empty() {
        bail!("no command; lab/run --help shows how");
    }
    let mut machine = enter(&request, request.nested, &request.with)?;
    let words = request.words.iter().map(|w| w.as_bytes()).collect();
    let environment = request.environment.iter().map(|v| v.as_bytes()).collect();
    let input: Box<dyn Read + Send> =
        if std::io::stdin().is_terminal() { Box::new(std::io::empty()) } else { Box::new(std::io::stdin()) };
    let folder = if request.with.is_empty() { "/root" } else { baggage::FOLDER };
    let command = lab::Command { folder: folder.as_bytes(), words, environment };
    // The time is the command's; a first image isn't made at its cost.
    children::end_after(request.limit);
    let ended = machine.session.run(&command, input, &mut session::Own);
    ended.map_err(|e| machine.ended_by(e))
}

/// A machine that answers, with what was brought mounted.
fn enter(request: &Request, nested: Nested, items: &[Item]) -> Result<Machine> {
    let begun = Instant::now();
    let tell = |what: &str| {
        if request.verbose {
            eprintln!("lab: {what} after {:.3} s", begun.elapsed().as_secs_f64());
        }
    };
    let release = debian::release()?;
    let directory = cache::directory()?;
    let at = image::place(&directory, release);
    if request.again || !at.exists() {
        image::make(&Cache::open()?, release, request.again)?;
    }
    let image = image::open(&at, &request.inside)?;
    let disk: Option<File> = if items.is_empty() { None } else { Some(baggage::disk(&directory, items)?) };
    tell("disks are there");
    let wanted = Wanted { image: &image, nested, tsc_khz: machine::tsc_khz()? };
    let mut machine = saved::machine(&directory, &wanted, disk.as_ref())?;
    tell("it answers");
    if disk.is_some() {
        let links: Vec<_> = items.iter().map(Item::link).collect();
        if let Err(e) = machine.session.attach(&links) {
            return Err(machine.ended_by(e));
        }
        tell("what was brought is mounted");
    }
    Ok(machine)
}

/// Random bytes from the kernel.
fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
