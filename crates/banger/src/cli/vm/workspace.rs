//! `vm workspace`: a git work tree into a guest, and what became of it back as a branch, a patch or in place.

pub(crate) mod args;

use self::args::{Pull, Push, What};
use super::Status;
use super::guest::Guest;
use crate::api::vm::{Pushed, Workspace, WorkspaceAt};
use crate::api::{Fault, Request};
use crate::cli::problem::Problem;
use crate::cli::reach::Reach;
use crate::cli::{documents, output, size, text};
use crate::daemon::error::exit;
use crate::workspace::pull::{self, NewBranch, Pulled, Size};
use crate::workspace::push::{self, Depth, GONE, Ready, SUMS, Shipped, Wanted, in_shell};
use crate::workspace::{Folder, LeftOut, Scratch};
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// So many of what was left out are named.
const NAMED: usize = 5;

pub(super) fn run(workspace: &args::Workspace) -> Result<Status, Problem> {
    match &workspace.command {
        Some(What::Push(push)) => self::push(push),
        Some(What::Pull(pull)) => self::pull(pull),
        None => self::push(&workspace.push),
    }
}

/// How a work tree is shipped.
#[derive(Clone, Debug)]
pub(super) struct Shipment<'a> {
    /// Which files.
    pub(super) wanted: Wanted<'a>,
    /// What was changed in the guest is written over.
    pub(super) force: bool,
}

fn push(push: &Push) -> Result<Status, Problem> {
    let begun = Instant::now();
    let wanted = push.tree.wanted(&push.path, push.to.as_deref(), push.mode, push.readonly);
    let name = push.name.clone().unwrap_or_default();
    let at: WorkspaceAt = push.asked.reach.ask(Request::VmWorkspace { name })?;
    let (shipped, done) = if push.dry_run {
        (would_ship(&wanted)?, "would be shipped: ")
    } else {
        (ship(&push.asked.reach, &at, &Shipment { wanted, force: push.force })?, "")
    };
    if push.asked.json {
        output::json(&document(&at.vm, shipped, push.dry_run, begun.elapsed()))?;
    } else if output::on_terminal() {
        output::ours(&format!("{done}{}\n", line(&at.vm, &shipped)));
        left_out(&shipped.left_out);
    } else {
        output::data(&format!("{}\n", text::line(&shipped.guest)))?;
    }
    Ok(0)
}

/// What would be shipped, made ready as it would be, in a folder of its own.
pub(super) fn would_ship(wanted: &Wanted<'_>) -> Result<Shipped, Problem> {
    let scratch = Scratch::make().map_err(Problem::of_fault)?;
    push::ready(wanted, scratch.folder()).map(|ready| ready.shipped.clone()).map_err(Problem::of_fault)
}

pub(super) fn document(vm: &str, shipped: Shipped, dry_run: bool, took: Duration) -> documents::Pushed {
    documents::Pushed {
        vm: vm.to_owned(),
        left_out: named(&shipped.left_out),
        host: shipped.host,
        guest: shipped.guest,
        commit: shipped.commit,
        branch: shipped.branch,
        files: shipped.files,
        bytes: shipped.bytes,
        changed: shipped.changed,
        untracked_left_out: shipped.untracked,
        dry_run,
        ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    }
}

fn named(left_out: &[LeftOut]) -> Vec<documents::LeftOut> {
    left_out.iter().map(|one| documents::LeftOut { path: one.path.clone(), why: one.why.to_owned() }).collect()
}

/// `web:/root/proj  1,204 files, 31M, 3 changed, 2 untracked left out (--include-untracked)`
pub(super) fn line(vm: &str, shipped: &Shipped) -> String {
    let Shipped { guest, files, bytes, changed, untracked, .. } = shipped;
    let mut out =
        format!("{}:{}  {}, {}", text::line(vm), text::line(guest), many(*files, "file"), size::shown(*bytes));
    if *changed > 0 {
        out += &format!(", {} changed", grouped(*changed));
    }
    if *untracked > 0 {
        out += &format!(", {} untracked left out (--include-untracked)", grouped(*untracked));
    }
    out
}

/// Tells of what was not taken along; names are escaped.
pub(super) fn left_out(all: &[LeftOut]) {
    for LeftOut { path, why } in all.iter().take(NAMED) {
        output::ours(&format!("left out: {}  ({why})\n", text::line(path)));
    }
    if all.len() > NAMED {
        output::ours(&format!("left out: {} more (--json names them)\n", grouped((all.len() - NAMED) as u64)));
    }
}

fn many(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{} {what}s", grouped(count)) }
}

/// `1,204`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The VM's folder of the workspace.
fn folder(at: &WorkspaceAt) -> Result<Folder, Problem> {
    let dir = Path::new(&at.dir);
    // What root makes below the owner's directory the owner could not take away again.
    let above = dir.ancestors().find_map(|dir| fs::metadata(dir).ok());
    if above.is_some_and(|above| above.uid() != rustix::process::geteuid().as_raw()) {
        let fault = Fault::new("not_the_owner", exit::USAGE, "a work tree is shipped by the owner of the VMs");
        return Err(Problem::of_fault(fault.fix("run it as the user whom `banger helper init` named")));
    }
    Folder::open(dir).map_err(Problem::of_fault)
}

fn must_run(at: &WorkspaceAt) -> Result<(), Problem> {
    if at.state == "running" {
        return Ok(());
    }
    let vm = &at.vm;
    let fault = Fault::new("not_running", exit::STATE, format!("{vm} does not run: it is {}", at.state));
    Err(Problem::of_fault(fault.fix(format!("banger vm start {vm}"))))
}

/// Ships a work tree into a VM that runs, and has the daemon remember it.
pub(super) fn ship(reach: &Reach, at: &WorkspaceAt, shipment: &Shipment<'_>) -> Result<Shipped, Problem> {
    must_run(at)?;
    let folder = folder(at)?;
    let ready = push::ready(&shipment.wanted, &folder).map_err(Problem::of_fault)?;
    let guest = Guest { reach, vm: &at.vm };
    let there = at.workspace.as_ref().filter(|before| before.pushed.guest == ready.shipped.guest);
    if let Some(before) = there
        && !shipment.force
    {
        is_unchanged(&guest, before)?;
    }
    ready.leaves(&folder).map_err(Problem::of_fault)?;
    guest.put(&ready.root(), "/")?;
    if ready.has_gone && there.is_some() {
        take_away(&guest, &ready)?;
    }
    ready.arrived(&folder).map_err(Problem::of_fault)?;
    let shipped = ready.shipped.clone();
    let Some(host) = shipped.host.to_str() else {
        return Err(Problem::usage("the work tree's path is not UTF-8"));
    };
    let pushed = Pushed {
        host: host.to_owned(),
        guest: shipped.guest.clone(),
        commit: shipped.commit.clone(),
        branch: shipped.branch.clone(),
        include_untracked: shipment.wanted.include_untracked,
        full_history: shipment.wanted.depth == Depth::Full,
        readonly: shipment.wanted.readonly,
    };
    reach.ask::<WorkspaceAt>(Request::VmWorkspacePushed { name: at.vm.clone(), pushed })?;
    Ok(shipped)
}

/// Refuses where the guest's files aren't as they were shipped: they would be written over.
fn is_unchanged(guest: &Guest<'_>, before: &Workspace) -> Result<(), Problem> {
    if !before.unpulled {
        return Ok(());
    }
    let dir = in_shell(&before.pushed.guest);
    let (status, said) = guest.script(&format!("cd {dir} && exec sha256sum --quiet -c .git/{SUMS}"))?;
    if status == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let names: Vec<&str> = said
        .lines()
        .filter_map(|line| line.split_once(": FAILED"))
        .map(|(name, _)| name.trim_start_matches("./"))
        .collect();
    let (vm, at) = (guest.vm, &before.pushed.guest);
    let fault =
        Fault::new("changes_not_pulled", exit::STATE, format!("files in {vm}:{at} are not as they were shipped"));
    let fault = match names.as_slice() {
        [] => fault.why("what they were could not be compared"),
        names => {
            let more = if names.len() > NAMED { format!(" and {} more", names.len() - NAMED) } else { String::new() };
            fault.why(format!("{}{more}", names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ")))
        }
    };
    Err(Problem::of_fault(fault.fix(format!("banger vm workspace pull {vm}")).fix("--force writes over them")))
}

/// Removes files of an earlier push.
fn take_away(guest: &Guest<'_>, ready: &Ready) -> Result<(), Problem> {
    let dir = in_shell(&ready.shipped.guest);
    let (status, said) = guest.script(&format!("cd {dir} && exec xargs -0 rm -f -- <.git/{GONE}"))?;
    if status == 0 {
        return Ok(());
    }
    let words: String = String::from_utf8_lossy(&said.stderr).chars().take(200).collect();
    Err(Problem::new("guest", format!("files that are here no more could not be removed in {}", guest.vm)).why(words))
}

fn pull(pull: &Pull) -> Result<Status, Problem> {
    let begun = Instant::now();
    if pull.asked.json && pull.patch.as_deref() == Some(Path::new("-")) {
        return Err(Problem::usage("standard output is for the patch or for JSON").fix("--patch FILE --json"));
    }
    let at: WorkspaceAt = pull.asked.reach.ask(Request::VmWorkspace { name: pull.name.clone() })?;
    let how = How {
        patch: pull.patch.as_deref(),
        branch: pull.branch.as_deref(),
        base: pull.base.as_deref(),
        apply: pull.apply,
        force: pull.force,
    };
    let fetched = fetch(&pull.asked.reach, &at, &how)?;
    if pull.asked.json {
        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Size { files, added, deleted } = fetched.size;
        let (branch, commit) = fetched.branch.as_ref().map(|made| (made.name.clone(), made.commit.clone())).unzip();
        let (applied, left_out) = (pull.apply && files > 0, named(&fetched.left_out));
        let (vm, patch) = (at.vm, pull.patch.clone());
        let pulled = documents::Pulled { vm, files, added, deleted, branch, commit, patch, applied, left_out, ms };
        return output::json(&pulled).map(|()| 0);
    }
    fetched.tell(&at.vm);
    Ok(0)
}

/// What is made of the changes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How<'a> {
    pub(super) patch: Option<&'a Path>,
    pub(super) branch: Option<&'a str>,
    pub(super) base: Option<&'a str>,
    pub(super) apply: bool,
    pub(super) force: bool,
}

/// What came of a pull.
pub(super) struct Fetched {
    size: Size,
    branch: Option<pull::Branch>,
    patch: Option<PathBuf>,
    applied: bool,
    left_out: Vec<LeftOut>,
}

impl Fetched {
    /// `5 files, +83 −12 on banger/web; git merge banger/web`
    pub(super) fn tell(&self, vm: &str) {
        let Size { files, added, deleted } = self.size;
        let what = format!("{}, +{} −{}", many(files, "file"), grouped(added), grouped(deleted));
        let line = match (&self.branch, &self.patch) {
            _ if files == 0 => format!("{}: nothing was changed", text::line(vm)),
            (Some(made), _) if made.unchanged => format!("{what} on {} already", text::line(&made.name)),
            (Some(made), _) => format!("{what} on {0}; git merge {0}", text::line(&made.name)),
            (None, Some(file)) if file == Path::new("-") => what,
            (None, Some(file)) => format!("{what} in {0}; git apply {0}", text::line(&file.display().to_string())),
            (None, None) if self.applied => format!("{what} in the work tree"),
            (None, None) => what,
        };
        output::ours(&format!("{line}\n"));
        if let Some(made) = self.branch.as_ref().filter(|made| made.own > 0 && !made.unchanged) {
            let own = many(made.own, "file");
            output::ours(&format!(
                "{own} had uncommitted changes of yours when shipped: they are a commit of their own\n"
            ));
        }
        left_out(&self.left_out);
    }
}

/// Fetches the changes of a VM that runs.
pub(super) fn fetch(reach: &Reach, at: &WorkspaceAt, how: &How<'_>) -> Result<Fetched, Problem> {
    let Some(workspace) = &at.workspace else {
        let fault = Fault::new("no_workspace", exit::STATE, format!("no work tree was shipped into {}", at.vm));
        return Err(Problem::of_fault(fault.fix(format!("banger vm workspace push {}", at.vm))));
    };
    must_run(at)?;
    let folder = folder(at)?;
    let making = folder.making().map_err(Problem::of_fault)?;
    let guest = Guest { reach, vm: &at.vm };
    guest.get(&workspace.pushed.guest, making.path(), &pull::ignored_directories(&folder))?;
    let pulled =
        pull::take(&folder, making.path(), Path::new(&workspace.pushed.host), &workspace.pushed.commit, how.base);
    let pulled = pulled.map_err(Problem::of_fault)?;
    let size = pulled.size().map_err(Problem::of_fault)?;
    let mut fetched = Fetched {
        size,
        branch: None,
        patch: how.patch.map(Path::to_owned),
        applied: how.apply,
        left_out: pulled.left_out.clone(),
    };
    match (how.patch, size.files) {
        (Some(file), _) => write_patch(&pulled, file, how.force)?,
        (None, 0) => {}
        (None, _) if how.apply => pulled.apply().map_err(Problem::of_fault)?,
        (None, _) => {
            let own = format!("banger/{}", at.vm);
            let name = how.branch.unwrap_or(&own);
            let wanted = NewBranch { name, vm: &at.vm, last: workspace.pulled_commit.as_deref(), force: how.force };
            fetched.branch = Some(pulled.branch(&wanted).map_err(Problem::of_fault)?);
        }
    }
    let commit = fetched.branch.as_ref().map(|made| made.commit.clone());
    reach.ask::<WorkspaceAt>(Request::VmWorkspacePulled { name: at.vm.clone(), commit })?;
    Ok(fetched)
}

fn write_patch(pulled: &Pulled, file: &Path, force: bool) -> Result<(), Problem> {
    if file == Path::new("-") {
        let mut out = io::stdout().lock();
        if !out.is_terminal() {
            return pulled.patch(&mut out).map_err(Problem::of_fault);
        }
        // The lines are a guest's.
        let mut patch = Vec::new();
        pulled.patch(&mut patch).map_err(Problem::of_fault)?;
        let shown = String::from_utf8_lossy(&patch).split('\n').map(tabbed).collect::<Vec<_>>().join("\n");
        return output::data(&shown);
    }
    let failed = |error: io::Error| Problem::of_fault(Fault::file("writing", file, &error));
    let mut to =
        if force { File::create(file) } else { File::create_new(file) }.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                let fault =
                    Fault::new("file_there", exit::STATE, format!("there is a file {} already", file.display()));
                Problem::of_fault(fault.fix("--force writes over it"))
            }
            _ => failed(error),
        })?;
    let written = pulled.patch(&mut to).map_err(Problem::of_fault);
    let written = written.and_then(|()| to.flush().map_err(failed));
    if written.is_err() {
        let _ = fs::remove_file(file);
    }
    written
}

/// A line for a terminal; its tabs stay.
fn tabbed(line: &str) -> String {
    line.split('\t').map(text::line).collect::<Vec<_>>().join("\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_a_line() {
        let mut shipped = Shipped {
            host: "/home/o/proj".into(),
            below: String::new(),
            guest: "/root/proj".into(),
            commit: String::new(),
            branch: None,
            files: 1204,
            bytes: 31 << 20,
            changed: 3,
            untracked: 2,
            left_out: Vec::new(),
        };
        let said = line("web", &shipped);
        assert_eq!(said, "web:/root/proj  1,204 files, 31M, 3 changed, 2 untracked left out (--include-untracked)");
        (shipped.files, shipped.changed, shipped.untracked) = (1, 0, 0);
        assert_eq!(line("web", &shipped), "web:/root/proj  1 file, 31M");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(tabbed("+\ta\u{1b}[2Jb"), "+\ta\\u{1b}[2Jb");
    }
}
