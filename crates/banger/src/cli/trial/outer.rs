//! The part outside the namespaces: from the user to root, and the look before and after.

use super::remains::{Remains, size};
use super::{PROGRAMS, Try, as_written, code_of};
use crate::cli::manner::{manner, no_input};
use crate::cli::output::ours;
use crate::cli::problem::Problem;
use crate::cli::reach::Early;
use crate::cli::size::shown;
use rustix::process::{Pid, Signal, getuid, kill_process};
use std::env;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Who owns the VMs where root itself tries: an account that exists in there alone.
const NOBODYS: (&str, u32) = ("banger-try", 59_999);

/// Whose VM it is.
struct Owner {
    user: String,
    uid: u32,
    gid: u32,
}

/// Runs `banger try`; the status of the command in the VM.
pub(crate) fn run(wanted: &Try, early: &Early) -> Result<u8, Problem> {
    let programs = programs()?;
    let cache = cache(wanted)?;
    let run = as_written(&wanted.run, &env::args_os().collect::<Vec<_>>());
    let run = [manner().words(), early.words(), run].concat();
    if !getuid().is_root() {
        return Err(become_root(&run, &cache));
    }
    let owner = owner()?;
    let state = state(&cache, &owner)?;
    let before = Remains::look();
    let status = namespaces(&programs, &state, &owner, &run, early)?;
    let left = Remains::since(&before);
    let kept = shown(size(&state));
    if left.is_empty() {
        ours(&format!("left on this machine: cache {kept} ({}), nothing else\n", cache.display()));
    } else {
        ours(&format!("left on this machine: cache {kept}, and what was not there before:\n"));
        left.iter().for_each(|what| ours(&format!("  {what}\n")));
    }
    Ok(code_of(status))
}

/// The directory of this program, with all the others in it.
fn programs() -> Result<PathBuf, Problem> {
    let this =
        env::current_exe().map_err(|error| Problem::new("no_programs", "this program has no path").why(error))?;
    let directory = this.parent().unwrap_or(Path::new("/")).to_owned();
    match PROGRAMS.iter().find(|name| !directory.join(name).is_file()) {
        None => Ok(directory),
        Some(missing) => Err(Problem::new("no_programs", format!("there is no {missing} beside {}", this.display()))
            .fix("scripts/build builds all of banger's programs into one directory")),
    }
}

fn cache(wanted: &Try) -> Result<PathBuf, Problem> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let from = |key: &str| env::var_os(key).map(PathBuf::from).and_then(absolute);
    if let Some(given) = &wanted.cache {
        return std::path::absolute(given)
            .map_err(|error| Problem::usage(format!("--cache {}: {error}", given.display())));
    }
    let usual = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")));
    usual.map(|directory| directory.join("banger")).ok_or_else(|| Problem::usage("--cache DIR: there is no HOME here"))
}

/// Says what will be done and starts this program again by sudo; comes back only where that can't be.
fn become_root(run: &[OsString], cache: &Path) -> Problem {
    let may_ask = std::io::stdin().is_terminal() && !no_input();
    if may_ask {
        ours(&format!(
            "banger try starts a VM, its helper and its daemon in namespaces of their own; sudo makes those.\n\
             It installs nothing. Images are kept in {}.\n",
            cache.display()
        ));
    }
    let this = env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let mut sudo = Command::new("sudo");
    if !may_ask {
        sudo.arg("--non-interactive");
    }
    // Of the environment only what a terminal's programs need: sudo takes the rest away.
    sudo.arg("--").arg("env").args(
        ["TERM", "COLORTERM", "LANG", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES"]
            .iter()
            .filter_map(pair),
    );
    let error = sudo.arg(this).arg("try").arg("--cache").arg(cache).args(run).exec();
    Problem::new("not_root", "banger try needs root for namespaces, and sudo could not be started")
        .why(error)
        .fix("run it as root")
}

fn pair(key: &&str) -> Option<OsString> {
    let mut pair = OsString::from(format!("{key}="));
    pair.push(env::var_os(key)?);
    Some(pair)
}

/// Who called sudo; for root itself somebody who exists in there alone.
fn owner() -> Result<Owner, Problem> {
    let number = |key: &str| env::var(key).ok().and_then(|text| text.parse::<u32>().ok()).filter(|number| *number != 0);
    let Some(uid) = number("SUDO_UID") else {
        let (user, uid) = NOBODYS;
        return Ok(Owner { user: user.into(), uid, gid: uid });
    };
    let user = env::var("SUDO_USER").map_err(|_| Problem::usage("SUDO_UID is set and SUDO_USER is not"))?;
    let account = crate::cli::init::account::Account::of(&user)?;
    if account.uid != uid {
        return Err(Problem::usage(format!("SUDO_UID is {uid}, and {user} is {}", account.uid)));
    }
    Ok(Owner { user: account.user, uid, gid: account.gid })
}

/// The directory of images and VMs, made with the owner's rights: root makes nothing where he writes.
fn state(cache: &Path, owner: &Owner) -> Result<PathBuf, Problem> {
    let state = cache.join("try");
    let mut mkdir = Command::new("/bin/mkdir");
    mkdir.args(["-p", "-m", "0700", "--"]).arg(&state);
    let is_nobodys = owner.user == NOBODYS.0;
    if !is_nobodys {
        mkdir.uid(owner.uid).gid(owner.gid);
    }
    let failed = |why: String| {
        Problem::new("no_cache", format!("the cache {} can't be made", state.display()))
            .why(why)
            .fix("--cache DIR names another place")
    };
    let made = mkdir.output().map_err(|error| failed(error.to_string()))?;
    if !made.status.success() {
        return Err(failed(String::from_utf8_lossy(&made.stderr).trim_end().to_owned()));
    }
    if is_nobodys {
        // In root's own cache: nobody else can have put anything there.
        std::os::unix::fs::chown(&state, Some(owner.uid), Some(owner.gid))
            .map_err(|error| failed(error.to_string()))?;
    }
    Ok(state)
}

/// Runs the inner part as the first process of a mount and a PID namespace, to its end.
fn namespaces(
    programs: &Path,
    state: &Path,
    owner: &Owner,
    run: &[OsString],
    early: &Early,
) -> Result<ExitStatus, Problem> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--propagation", "private", "--mount-proc", "--kill-child=KILL", "--"]);
    command.arg(programs.join("banger")).arg("try-inside").args(early.words());
    command.arg("--programs").arg(programs).arg("--state").arg(state).args(["--user", &owner.user]);
    command.arg("--uid").arg(owner.uid.to_string()).arg("--gid").arg(owner.gid.to_string()).arg("--").args(run);
    let failed = |error| {
        Problem::new("no_unshare", "namespaces can't be made").why(error).fix("sudo apt-get install util-linux")
    };
    // Before there is another thread.
    let [int, quit, term, hup] = [Signal::INT, Signal::QUIT, Signal::TERM, Signal::HUP].map(Signal::as_raw);
    let signals = sys::sigwait::block(&[int, quit, term, hup]).map_err(failed)?;
    let mut child = command.spawn().map_err(failed)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    std::thread::spawn(move || {
        while let (Ok(signal), Some(pid)) = (signals.wait(), pid) {
            // Ctrl-C reaches the command too, which undoes what it began. The other two end it, and all inside with it.
            if signal == term || signal == hup {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    });
    child.wait().map_err(failed)
}
