//! A work tree that goes along with a command: `vm run PATH --pull`, `vm exec --auto-prepare`, and what is said of it.

use super::run::args::Run;
use super::workspace::args::{PullAs, TreeArgs};
use super::workspace::{How, Shipment, fetch, ship, would_ship};
use crate::api::vm::{Changed, Pushed, WorkspaceAt};
use crate::api::{Request, Stage, StageState};
use crate::cli::manner::{self, Paint};
use crate::cli::problem::Problem;
use crate::cli::progress::Progress;
use crate::cli::reach::Reach;
use crate::cli::{output, text};
use crate::workspace::push::{self, Depth, Shipped, Wanted};
use std::cell::Cell;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

/// A work tree that goes along with a run's command, and perhaps comes back.
pub(super) struct Trip<'a> {
    shipment: Shipment<'a>,
    pull: Option<PullAs>,
    /// The VM stays in any case.
    stays: bool,
    /// The command was begun, and what it changed is not here yet.
    at_risk: Cell<bool>,
}

impl<'a> Trip<'a> {
    /// What a run's arguments ask for; `None` where no directory is named.
    pub(super) fn of(run: &'a Run, stays: bool) -> Result<Option<Trip<'a>>, Problem> {
        let TreeArgs { branch, from, include_untracked } = &run.tree;
        let Some(path) = &run.path else {
            if branch.is_some() || from.is_some() || *include_untracked {
                return Err(Problem::usage("which directory is to be shipped?").fix("banger vm run . -- make test"));
            }
            return Ok(None);
        };
        let wanted = run.tree.wanted(path, None, Depth::Shallow, false);
        push::check(&wanted).map_err(|fault| match path.exists() {
            true => Problem::of_fault(fault),
            false => {
                Problem::of_fault(fault.fix(format!("a command comes behind --: banger vm run -- {}", path.display())))
            }
        })?;
        let shipment = Shipment { wanted, force: false };
        Ok(Some(Trip { shipment, pull: run.pull, stays, at_risk: Cell::new(false) }))
    }

    /// Whether changes are to come back.
    pub(super) fn comes_back(&self) -> bool {
        self.pull.is_some()
    }

    /// What would be shipped.
    pub(super) fn would(&self) -> Result<Shipped, Problem> {
        would_ship(&self.shipment.wanted)
    }

    /// Ships it; the directory in which the command is to run.
    pub(super) fn there(&self, reach: &Reach, vm: &str, progress: &Progress) -> Result<String, Problem> {
        let (name, about) = ("ship".to_owned(), vm.to_owned());
        progress.stage(&Stage { name, state: StageState::Begun, at_us: 0, about, note: String::new(), usual_us: None });
        let at: WorkspaceAt = reach.ask(Request::VmWorkspace { name: vm.to_owned() })?;
        let shipped = ship(reach, &at, &self.shipment)?;
        self.at_risk.set(true);
        Ok(match shipped.below.as_str() {
            "" => shipped.guest,
            below => format!("{}/{below}", shipped.guest),
        })
    }

    /// After the command: its changes back, then the VM away. A VM whose changes could not be fetched stays.
    pub(super) fn over(&self, reach: &Reach, vm: &str) -> Result<(), Problem> {
        let Some(pull) = self.pull.filter(|_| !vm.is_empty()) else { return Ok(()) };
        if self.at_risk.get() {
            let patch = PathBuf::from(format!("{vm}.patch"));
            let patch = (pull == PullAs::Patch).then_some(patch.as_path());
            let at: WorkspaceAt = reach.ask(Request::VmWorkspace { name: vm.to_owned() })?;
            let fetched = fetch(reach, &at, &How { patch, ..How::default() }).map_err(|problem| {
                let kept = if self.stays { "" } else { "; it is kept for that" };
                problem.fix(format!("its changes are in {vm}{kept}: banger vm workspace pull {vm}"))
            })?;
            fetched.tell(vm);
        }
        if self.stays {
            return Ok(());
        }
        let gone = Request::VmRm { name: vm.to_owned(), force: true, discard_changes: true, dry_run: false };
        match reach.try_ask::<Changed>(gone) {
            // The daemon takes away one that never ran.
            Err(fault) if fault.code != "no_such_vm" => {
                output::warning(&fault.message);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Ships the work tree that is in the VM once more; where there is none, the one here.
pub(super) fn prepare(reach: &Reach, name: &str) -> Result<(), Problem> {
    let at: WorkspaceAt = reach.ask(Request::VmWorkspace { name: name.to_owned() })?;
    let tree = at.workspace.as_ref().map(|tree| &tree.pushed);
    let path = tree.map_or(Path::new("."), |tree| Path::new(&tree.host));
    let wanted = Wanted {
        path,
        to: tree.map(|tree| tree.guest.as_str()),
        branch: tree.and_then(|tree| tree.branch.as_deref()),
        from: None,
        include_untracked: tree.is_some_and(|tree| tree.include_untracked),
        depth: if tree.is_some_and(|tree| tree.full_history) { Depth::Full } else { Depth::Shallow },
        readonly: tree.is_some_and(|tree| tree.readonly),
    };
    ship(reach, &at, &Shipment { wanted, force: false }).map(drop)
}

/// Says where the work tree here has gone on since it was shipped.
pub(super) fn has_moved(vm: &str, tree: &Pushed) {
    let head = push::head(Path::new(&tree.host)).filter(|head| *head != tree.commit);
    if let Some(head) = head {
        let (vm, host) = (text::line(vm), text::line(&tree.host));
        output::hint(&format!(
            "{vm} has {host} of {:.12}, which is at {head:.12} now: banger vm workspace {vm}, or --auto-prepare\n",
            text::line(&tree.commit)
        ));
    }
}

/// After a command that failed in a VM without a copy of the work tree here: says how it would have had one.
pub(super) fn hint(command: &[OsString]) {
    if command.is_empty() || !io::stderr().is_terminal() || !push::is_work_tree(Path::new(".")) {
        return;
    }
    let words: Vec<String> = command.iter().map(|word| text::line(&word.to_string_lossy())).collect();
    let line = format!("the VM had no copy of this directory: banger vm run . -- {}", words.join(" "));
    output::hint(&format!("{}\n", manner::beside(Paint::Dim, &line)));
}
