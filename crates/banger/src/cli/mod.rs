//! The command line: one definition of its commands, from which help and parsing come.
//!
//! Standard output is for the data that was asked for; everything else goes to standard error.

mod asset;
mod call;
mod complete;
mod config;
mod doctor;
mod documents;
mod explain;
mod fields;
mod help;
mod image;
mod init;
mod kernel;
mod list;
mod manner;
mod output;
mod panic;
mod probe;
mod problem;
mod progress;
mod reach;
mod schema;
mod several;
mod ssh_config;
mod table;
mod template;
mod text;
mod trial;
mod usage;
mod vm;

use crate::api::{Request, Version};
use crate::config::Config;
use crate::daemon::error::exit::FAILED;
use crate::{duration, size};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

/// Throw-away Linux machines.
#[derive(Parser)]
#[command(name = "banger", version, disable_help_subcommand = true, max_term_width = 120)]
struct Banger {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    manner: manner::Manner,
    #[command(flatten)]
    early: reach::Early,
}

static CONFIG: OnceLock<Config> = OnceLock::new();

#[derive(Subcommand)]
enum Command {
    /// VMs: run, make, start, stop, look at, take away.
    #[command(subcommand)]
    Vm(vm::Vm),
    /// Root file systems that VMs are made of: build, import, look at, take away.
    #[command(subcommand)]
    Image(image::Image),
    /// Kernels that VMs are started with: import, look at, take away.
    #[command(subcommand)]
    Kernel(kernel::Kernel),
    /// Templates, from which new VMs go on instead of booting: build, look at, take away.
    #[command(subcommand)]
    Template(template::Template),
    #[command(hide = true)]
    Run(vm::Run),
    #[command(hide = true)]
    Exec(vm::Exec),
    #[command(hide = true)]
    Ssh(vm::Ssh),
    #[command(hide = true)]
    Ps(vm::List),
    /// The root helper: set it up, speak to it, see what it holds.
    #[command(subcommand)]
    Helper(Helper),
    /// Have ssh, and what is built on it, know VMs as NAME.vm.
    SshConfig(ssh_config::SshConfig),
    /// Look at everything that a VM needs: what is wrong, why it matters, what mends it.
    Doctor(doctor::Doctor),
    /// Run a command in a new VM on a machine where nothing of banger's is installed.
    Try(trial::Try),
    #[command(hide = true)]
    TryInside(trial::Inside),
    /// What is configured, and where each value is from.
    #[command(subcommand)]
    Config(config::Command),
    /// What an error's code means, and what to do.
    Explain(explain::Explain),
    /// JSON Schema of what a command prints with --json.
    Schema(schema::Schema),
    /// Print a shell's completion: source <(banger completion bash).
    Completion(complete::Completion),
    #[command(hide = true)]
    CompleteNames(complete::Names),
    /// Print the versions of banger, and of bangerd where that answers.
    Version(Versions),
}

#[derive(Subcommand)]
enum Helper {
    /// Write the install metadata and make the owner's directories.
    Init(Init),
    /// Call one method of the helper; its result is printed as JSON.
    Call(Call),
    /// List the bridges, taps, guests and VMs that are banger's.
    List(List),
    /// Send a packet as a guest would, and say which rule ends it: status 0 where the way out is open.
    Probe(Probe),
}

/// What `helper init` takes. It needs root, as the helper does.
#[derive(Args)]
struct Init {
    /// The user whose VMs these are: the one account, beside root, that the helper serves.
    #[arg(long, value_name = "USER")]
    owner: String,
    /// Print what would be written and made; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Give an installation that has another owner to this one.
    #[arg(long)]
    force: bool,
    /// The directory of images, kernels and disks; the owner writes it.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/banger")]
    state_dir: PathBuf,
    /// The directory of sockets; the owner writes it.
    #[arg(long, value_name = "DIR", default_value = "/run/banger")]
    runtime_dir: PathBuf,
    /// The install metadata; root writes it.
    #[arg(long, value_name = "FILE", default_value = "/etc/banger/install.toml")]
    install_meta: PathBuf,
}

#[derive(Args)]
struct Versions {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// How the helper is reached.
#[derive(Args)]
struct Reach {
    /// The helper's socket.
    #[arg(long, value_name = "PATH", env = "BANGER_HELPER_SOCKET", default_value = crate::root::SOCKET)]
    socket: PathBuf,
    /// How long to wait for the answer: 90s, 1h30m; a bare number is seconds.
    #[arg(long, value_name = "D", default_value = "2m", value_parser = duration::parse)]
    timeout: Duration,
}

#[derive(Args)]
struct Call {
    /// The method, as priv.ensure_bridge; docs/helper.md lists them.
    method: String,
    /// Its parameters as a JSON object; - reads them from standard input.
    #[arg(default_value = "{}", hide_default_value = true, allow_hyphen_values = true)]
    params: String,
    /// The operation's id: errors and the helper's log repeat it.
    #[arg(long, value_name = "ID", env = "BANGER_OP_ID", default_value = "", hide_default_value = true)]
    op_id: String,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Args)]
struct List {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Args)]
struct Probe {
    /// The guest's tap.
    tap: String,
    /// Its address.
    guest_ip: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

/// What is configured; what is built in, before [`main`] has read it.
pub(crate) fn config() -> &'static Config {
    CONFIG.get_or_init(Config::default)
}

/// Reads the configuration, where the command goes by it.
fn configure(command: &Command) -> Result<(), problem::Problem> {
    if matches!(
        command,
        Command::Version(_)
            | Command::Completion(_)
            | Command::CompleteNames(_)
            | Command::Explain(_)
            | Command::Schema(_)
    ) {
        return Ok(());
    }
    let config = Config::load().map_err(problem::Problem::of_fault)?;
    for warning in &config.warnings {
        output::warning(warning);
    }
    CONFIG.get_or_init(|| config);
    Ok(())
}

/// A text of others on one line: what a terminal would act upon is escaped.
pub(crate) fn line(text: &str) -> String {
    text::line(text)
}

/// A fault as a person reads it.
pub(crate) fn problem(fault: crate::api::Fault) -> impl std::fmt::Display {
    problem::Problem::of_fault(fault)
}

/// The definition of the command line, of which help, the manual and completions are made.
pub fn command() -> clap::Command {
    help::with_examples(fields::with_fields(Banger::command()))
}

/// Runs the command line of this process; its exit status.
pub fn main() -> ExitCode {
    panic::watch();
    let definition = command().color(manner::choice(std::env::args_os()));
    let parsed = definition.try_get_matches().and_then(|matches| Ok((Banger::from_arg_matches(&matches)?, matches)));
    let (Banger { command, manner, early }, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage::refused(&error),
    };
    manner.take();
    let runs = command.runs_a_command();
    if fields::wants_json(&matches) {
        output::failures_as_json();
    }
    panic::working(fields::path(&matches), if runs { vm::OURS } else { FAILED });
    let done = fields::take(&matches).and_then(|()| match &command {
        Command::Try(wanted) => trial::run(wanted, &early),
        Command::TryInside(wanted) => trial::inside(wanted),
        _ => configure(&command).and_then(|()| command.run()),
    });
    match done {
        Ok(status) => ExitCode::from(status),
        Err(problem) => {
            let exit = if runs { problem.exit_of_run() } else { problem.exit() };
            output::failure(&problem, exit);
            ExitCode::from(exit)
        }
    }
}

impl Command {
    /// Whether a command in a guest is run, whose exit status is the process's.
    fn runs_a_command(&self) -> bool {
        match self {
            Command::Vm(command) => command.runs_a_command(),
            Command::Run(_) | Command::Exec(_) | Command::Try(_) | Command::TryInside(_) => true,
            _ => false,
        }
    }

    /// Does it; the exit status.
    fn run(self) -> Result<u8, problem::Problem> {
        let done = match self {
            Command::Vm(command) => return command.run(),
            Command::Image(command) => return command.run(),
            Command::Kernel(command) => return command.run(),
            Command::Template(command) => return command.run(),
            Command::Run(run) => return vm::Vm::Run(run).run(),
            Command::Exec(exec) => return vm::Vm::Exec(exec).run(),
            Command::Ssh(ssh) => return vm::Vm::Ssh(ssh).run(),
            Command::Ps(list) => return vm::Vm::Ps(list).run(),
            Command::Doctor(wanted) => return doctor::run(&wanted),
            Command::Helper(Helper::Init(init)) => init::run(&init),
            Command::Helper(Helper::Call(call)) => call::run(&call),
            Command::Helper(Helper::List(list)) => list::run(&list),
            Command::SshConfig(wanted) => ssh_config::run(&wanted),
            Command::Helper(Helper::Probe(probe)) => probe::run(&probe),
            Command::Config(command) => command.run(),
            Command::Completion(wanted) => complete::script(&wanted),
            Command::CompleteNames(wanted) => complete::names(&wanted),
            Command::Explain(wanted) => explain::explain(&wanted),
            Command::Schema(wanted) => schema::schema(&wanted),
            // They are another's before anything is read here.
            Command::Try(_) | Command::TryInside(_) => Ok(()),
            Command::Version(wanted) => versions(&wanted),
        };
        done.map(|()| 0)
    }
}

/// This program's version, and bangerd's where that answers soon.
fn versions(wanted: &Versions) -> Result<(), problem::Problem> {
    let daemon: Option<Version> = reach::soon(Request::Version {});
    if wanted.json {
        let bangerd = daemon.map(|version| version.bangerd);
        return output::json(&documents::Versions { banger: env!("CARGO_PKG_VERSION"), bangerd });
    }
    let daemon = daemon.map_or(String::new(), |version| format!("bangerd {}\n", text::line(&version.bangerd)));
    output::data(&format!("banger {}\n{daemon}", env!("CARGO_PKG_VERSION")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }
}
