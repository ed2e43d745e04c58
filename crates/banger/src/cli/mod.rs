//! The command line: one definition of its commands, from which help and parsing come.
//!
//! Standard output is for the data that was asked for; everything else goes to standard error.

mod call;
mod duration;
mod init;
mod list;
mod output;
mod probe;
mod problem;
mod text;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Throw-away Linux machines.
#[derive(Parser)]
#[command(name = "banger", version, before_help = EXAMPLES, disable_help_subcommand = true, max_term_width = 120)]
struct Banger {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  sudo banger helper init --owner \"$USER\"      once: whose VMs these are
  banger helper call priv.delete_tap '{\"tap_name\":\"tap-fc-1\"}'
  banger helper list                           what of banger's is in the kernel now
  banger helper probe tap-fc-1 172.16.0.2      which rule a guest's packets end at";

#[derive(Subcommand)]
enum Command {
    /// The root helper: set it up, speak to it, see what it holds.
    #[command(subcommand)]
    Helper(Helper),
    /// Print the version.
    Version,
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

/// Runs the command line of this process; its exit status.
pub fn main() -> ExitCode {
    let done = match Banger::parse().command {
        Command::Helper(Helper::Init(init)) => init::run(&init),
        Command::Helper(Helper::Call(call)) => call::run(&call),
        Command::Helper(Helper::List(list)) => list::run(&list),
        Command::Helper(Helper::Probe(probe)) => probe::run(&probe),
        Command::Version => output::data(&format!("banger {}\n", env!("CARGO_PKG_VERSION"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            output::ours(&problem.to_string());
            ExitCode::from(problem.exit)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Banger::command().debug_assert();
    }
}
