//! What `vm workspace` takes, and every command that ships a work tree.

use crate::cli::reach::Asked;
use crate::workspace::push::{Depth, Wanted};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Workspace {
    #[command(subcommand)]
    pub(super) command: Option<What>,
    #[command(flatten)]
    pub(super) push: Push,
}

#[derive(Subcommand)]
pub(super) enum What {
    /// Ship a git work tree: its files as they are, and a .git with the commit that they stand on.
    #[command(alias = "prepare")]
    Push(Push),
    /// Bring what was changed back, onto a new branch; the work tree here is left alone.
    #[command(alias = "export")]
    Pull(Pull),
}

/// Which files of a work tree are shipped.
#[derive(Args)]
pub(crate) struct TreeArgs {
    /// The branch in the guest, a new one.
    #[arg(long, value_name = "BRANCH")]
    pub(crate) branch: Option<String>,
    /// Ship the files of this commit, not those of the work tree.
    #[arg(long, value_name = "REF", requires = "branch")]
    pub(crate) from: Option<String>,
    /// Ship the files too that git doesn't know and doesn't ignore.
    #[arg(long)]
    pub(crate) include_untracked: bool,
}

impl TreeArgs {
    pub(crate) fn wanted<'a>(
        &'a self,
        path: &'a Path,
        to: Option<&'a str>,
        depth: Depth,
        readonly: bool,
    ) -> Wanted<'a> {
        let (branch, from) = (self.branch.as_deref(), self.from.as_deref());
        Wanted { path, to, branch, from, include_untracked: self.include_untracked, depth, readonly }
    }
}

#[derive(Args)]
pub(crate) struct Push {
    /// The VM: its name, or 4 or more digits of its id.
    #[arg(required = true)]
    pub(crate) name: Option<String>,
    /// A directory of the work tree.
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// The directory in the guest [default: /root/ and the work tree's name].
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) tree: TreeArgs,
    /// How much of the history the guest gets: the one commit, or all before it.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Depth::Shallow)]
    pub(crate) mode: Depth,
    /// Take the permission to write from the files; the guest's root can write them all the same.
    #[arg(long)]
    pub(crate) readonly: bool,
    /// Write over what was changed in the guest.
    #[arg(long)]
    pub(crate) force: bool,
    /// Say what would be shipped; ship nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) asked: Asked,
}

#[derive(Args)]
pub(crate) struct Pull {
    /// The VM: its name, or 4 or more digits of its id.
    pub(crate) name: String,
    /// Write a patch to FILE and make no branch; - is standard output.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["branch", "apply"])]
    pub(crate) patch: Option<PathBuf>,
    /// The branch [default: banger/NAME].
    #[arg(long, value_name = "BRANCH", conflicts_with = "apply")]
    pub(crate) branch: Option<String>,
    /// Compare with this commit, not with what was shipped.
    #[arg(long, value_name = "REF")]
    pub(crate) base: Option<String>,
    /// Change the files of the work tree here.
    #[arg(long)]
    pub(crate) apply: bool,
    /// Replace a branch with other commits, or a file.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) asked: Asked,
}

/// As what changes come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PullAs {
    /// The branch banger/NAME.
    Branch,
    /// A file NAME.patch here.
    Patch,
}
