//! `banger kernel`: Debian's or a file's, listed, shown, removed.

use super::asset::{self, List, Rm, Show};
use super::image::{tell, with_inputs};
use super::problem::Problem;
use super::reach::Asked;
use crate::api::Request;
use crate::api::asset::Asset;
use clap::{Args, Subcommand};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(crate) enum Kernel {
    /// Keep a kernel: a file, or Debian's own.
    Import(Import),
    /// List kernels.
    #[command(visible_alias = "ls")]
    List(List),
    /// Show all that is known of kernels.
    Show(Show),
    /// Take kernels away.
    #[command(alias = "delete")]
    Rm(Rm),
}

#[derive(Args)]
pub(crate) struct Import {
    /// A bzImage (/boot/vmlinuz-…) or an ELF kernel with a PVH entry.
    #[arg(required_unless_present = "debian", conflicts_with = "debian")]
    file: Option<PathBuf>,
    /// Debian's, out of its package, which is not installed; without VERSION the release's current one.
    #[arg(long, value_name = "VERSION", num_args = 0..=1, default_missing_value = "")]
    debian: Option<String>,
    /// An initrd that is used as it is; its /init has to be the agent, or to start it.
    #[arg(long, value_name = "FILE", conflicts_with = "debian")]
    initrd: Option<PathBuf>,
    /// Its name [default: made of its version].
    #[arg(long)]
    name: Option<String>,
    /// Give it the name though a kernel has it.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    asked: Asked,
}

impl Kernel {
    /// Does it.
    pub(crate) fn run(self) -> Result<u8, Problem> {
        match self {
            Kernel::Import(import) => import.run().map(|()| 0),
            Kernel::List(list) => {
                let none = "no kernels yet: banger kernel import --debian\n";
                asset::list(&list, Request::KernelList {}, none).map(|()| 0)
            }
            Kernel::Show(show) => asset::show(&show, |name| Request::KernelShow { name }),
            Kernel::Rm(rm) => {
                asset::rm(&rm, "no_such_kernel", |name, force, dry_run| Request::KernelRm { name, force, dry_run })
            }
        }
    }
}

impl Import {
    fn run(&self) -> Result<(), Problem> {
        let (name, force) = (self.name.clone(), self.force);
        let made: Asset = match &self.file {
            None => {
                let version = self.debian.clone().filter(|version| !version.is_empty());
                self.asked.reach.ask(Request::KernelFetch { name, version, force })?
            }
            Some(file) => {
                let files: Vec<File> =
                    std::iter::once(file).chain(&self.initrd).map(|path| open(path)).collect::<Result<_, _>>()?;
                let inputs: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
                let (source, with_initrd) = (file.display().to_string(), self.initrd.is_some());
                with_inputs(&self.asked.reach, Request::KernelImport { name, source, with_initrd, force }, &inputs)?
            }
        };
        tell(&made, self.asked.json, &made.name)
    }
}

fn open(path: &Path) -> Result<File, Problem> {
    File::open(path).map_err(|error| Problem::usage(format!("{} can't be read", path.display())).why(error))
}
