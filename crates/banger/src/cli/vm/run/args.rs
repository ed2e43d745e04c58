//! What `vm run` and `vm exec` take.

use crate::cli::reach::Asked;
use crate::cli::vm::machine::MachineArgs;
use crate::cli::vm::session::Program;
use crate::cli::vm::workspace::args::{PullAs, TreeArgs};
use crate::duration;
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args)]
#[command(mut_arg("json", |json| json.help("With --timings or --dry-run: as JSON. An error is JSON too")))]
pub(crate) struct Run {
    /// The VM's name; it then stays after the command.
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Take it away after the command, though it has a name.
    #[arg(long, overrides_with = "keep")]
    pub(super) rm: bool,
    /// Keep it after the command, though it has no name.
    #[arg(long, overrides_with = "rm")]
    pub(super) keep: bool,
    /// Start it, print its name, and leave it running; without a command.
    #[arg(short, long, conflicts_with_all = ["rm", "command", "path", "timings", "result"])]
    pub(super) detach: bool,
    #[command(flatten)]
    pub(super) machine: MachineArgs,
    /// How long its agent may take to answer [default: 60s; 3m under emulation].
    #[arg(long, value_name = "D", value_parser = duration::parse)]
    pub(super) boot_timeout: Option<Duration>,
    /// Say what would be made, and of what; make nothing. The rest of bangerd's and the machine's state is looked at as by a
    /// run.
    #[arg(long, conflicts_with_all = ["timings", "result", "detach"])]
    pub(super) dry_run: bool,
    /// Boot it, though there may be a template to go on from.
    #[arg(long)]
    pub(super) cold: bool,
    /// Show on standard error how long each stage took.
    #[arg(long)]
    pub(super) timings: bool,
    #[command(flatten)]
    pub(super) program: Program,
    /// A directory of a git work tree: it is shipped first, and the command runs in it.
    pub(crate) path: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// Then bring what was changed back, as a branch or a patch in the file NAME.patch [default: branch].
    #[arg(
        long,
        value_name = "AS",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "branch",
        requires = "path"
    )]
    pub(crate) pull: Option<PullAs>,
    /// The command; none: the user's login shell.
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
    #[command(flatten)]
    pub(super) asked: Asked,
}

#[derive(Args)]
#[command(mut_arg("json", |json| json.help("Print errors as JSON")))]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(super) program: Program,
    /// Ship the work tree first: the one that is in the VM, once more; where there is none, the one here.
    #[arg(long)]
    pub(super) auto_prepare: bool,
    /// Start the VM first, where it doesn't run.
    #[arg(long)]
    pub(super) start: bool,
    /// The VM: its name, or 4 or more digits of its id.
    pub(super) name: String,
    /// The command; none: the user's login shell.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
    #[command(flatten)]
    pub(super) asked: Asked,
}
