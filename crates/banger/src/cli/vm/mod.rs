//! `banger vm`: its commands. What each takes is beside what it does.

mod change;
mod console;
mod cp;
mod dial;
mod forward;
mod guest;
mod link;
mod list;
mod machine;
pub(crate) mod paths;
mod plan;
mod ports;
mod prune;
mod run;
mod session;
mod signals;
mod ssh;
mod stats;
pub(crate) mod terminal;
mod timings;
mod trip;
mod workspace;

pub(crate) use list::List;
pub(crate) use run::OURS;
pub(crate) use run::args::{Exec, Run};
pub(crate) use ssh::Ssh;

use super::problem::Problem;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Vm {
    /// Run a command in a new VM; without --name the VM is gone afterwards.
    Run(Run),
    /// Make a VM that doesn't run yet.
    Create(change::Create),
    /// Start VMs; one that runs stays as it is.
    Start(change::Start),
    /// Stop VMs and start them again.
    Restart(change::Restart),
    /// End VMs in an orderly way; their disks stay.
    Stop(change::Stop),
    /// Send a signal to VMs' VMMs; usually KILL, which ends them at once.
    Kill(change::Kill),
    /// Take VMs and their disks away.
    #[command(alias = "delete")]
    Rm(change::Rm),
    /// Take VMs away that don't run and that nobody named.
    Prune(prune::Prune),
    /// List VMs.
    #[command(visible_alias = "ls")]
    List(List),
    #[command(hide = true)]
    Ps(List),
    /// Show all that is known of VMs.
    Show(list::Show),
    /// Run a command in a VM that runs.
    Exec(Exec),
    /// Come into a VM that runs by ssh: as root, with a key made for it, without passwords.
    Ssh(Ssh),
    /// Show what a VM's guest wrote to its console.
    Logs(console::Logs),
    /// Copy files into a VM, out of one, or from one to another.
    Cp(cp::Cp),
    /// Connect standard input and output to a TCP port in a VM: an ssh ProxyCommand.
    Dial(dial::Dial),
    /// Listen here, and pass each connection on to a TCP port in a VM, until Ctrl-C.
    Forward(forward::Forward),
    /// List who listens in VMs, and how to get there.
    Ports(ports::Ports),
    /// Show what VMs use: processors, memory, disk, network.
    Stats(stats::Stats),
    /// Ship the git work tree here into a VM; pull brings its changes back.
    Workspace(workspace::args::Workspace),
}

/// How a command ended: the process's exit status.
pub(crate) type Status = u8;

impl Vm {
    /// Does it.
    pub(crate) fn run(self) -> Result<Status, Problem> {
        match self {
            Vm::Run(run) => run::run(&run),
            Vm::Exec(exec) => run::exec(&exec),
            Vm::Ssh(ssh) => ssh::ssh(&ssh),
            Vm::Create(create) => change::create(&create),
            Vm::Start(start) => change::start(&start),
            Vm::Restart(start) => change::restart(&start),
            Vm::Stop(stop) => change::stop(&stop),
            Vm::Kill(kill) => change::kill(&kill),
            Vm::Rm(rm) => change::rm(&rm),
            Vm::Prune(prune) => prune::prune(&prune),
            Vm::List(list) => list::list(&list).map(|()| 0),
            Vm::Ps(list) => list::ps(list).map(|()| 0),
            Vm::Show(show) => list::show(&show),
            Vm::Logs(logs) => console::logs(&logs).map(|()| 0),
            Vm::Cp(cp) => cp::cp(&cp).map(|()| 0),
            Vm::Dial(dial) => dial::dial(&dial).map(|()| 0),
            Vm::Forward(forward) => forward::forward(&forward).map(|()| 0),
            Vm::Ports(ports) => ports::ports(&ports),
            Vm::Stats(stats) => stats::stats(&stats),
            Vm::Workspace(tree) => workspace::run(&tree),
        }
    }

    /// Whether its exit status is a guest's command's, and ours is 125.
    pub(crate) fn runs_a_command(&self) -> bool {
        matches!(self, Vm::Run(_) | Vm::Exec(_))
    }
}
