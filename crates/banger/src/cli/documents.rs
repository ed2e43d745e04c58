//! What `--json` prints where it is not the daemon's own word (`api`). Within a major version fields are only added; what is
//! unknown is `null`, never absent; bytes and times are whole numbers, with the unit in the name.

use crate::api::vm::Plan;
use crate::api::{Fault, StageState};
use schemars::JsonSchema;
use serde::Serialize;
use std::net::IpAddr;
use std::path::PathBuf;

/// An object for one name, an array for several.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMore<T> {
    One(Box<T>),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    /// What came of as many names.
    pub(crate) fn of(mut all: Vec<T>, names: usize) -> OneOrMore<T> {
        match (names, all.pop()) {
            (1, Some(one)) => OneOrMore::One(Box::new(one)),
            (_, last) => {
                all.extend(last);
                OneOrMore::More(all)
            }
        }
    }
}

/// A failure, on standard error.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Failure {
    /// It; `exit` is the process's exit status where this is its reason.
    pub(crate) error: Fault,
}

/// A stage of a call, with `--progress json`; a line each, on standard error.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Stage<'a> {
    /// The operation's id.
    pub(crate) op_id: &'a str,
    /// Its name.
    pub(crate) stage: &'a str,
    /// Whether it begins, goes on, or is over.
    pub(crate) state: StageState,
    /// Since the call began.
    pub(crate) ms: u64,
    /// Which VM or image.
    pub(crate) about: &'a str,
    /// What came of it, for a person.
    pub(crate) note: &'a str,
    /// How long it usually takes; `null` but where one begins for which that is known.
    pub(crate) usual_ms: Option<u64>,
}

/// A guest's figures, by its own word.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Figures<'a> {
    /// The VM's name.
    pub(crate) name: &'a str,
    /// Of one processor: two that work are 200. `null` where the guest started anew between two looks.
    pub(crate) cpu_percent: Option<f64>,
    /// What no program could have any more.
    pub(crate) memory_used_bytes: u64,
    /// Of the root file system.
    pub(crate) disk_used_bytes: u64,
    /// Since the boot, by all interfaces but the loopback.
    pub(crate) net_rx_bytes: u64,
    /// As that.
    pub(crate) net_tx_bytes: u64,
    /// The load of the last minute.
    pub(crate) load1: f64,
    /// Since the boot.
    pub(crate) uptime_ms: u64,
}

/// Who listens in a guest, by its own word.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Listening {
    /// The VM's name.
    pub(crate) name: String,
    /// `tcp` or `udp`.
    pub(crate) proto: String,
    /// The address that is listened on.
    pub(crate) address: IpAddr,
    /// The port.
    pub(crate) port: u16,
    /// The program; `null` where no process says that it has the socket.
    pub(crate) process: Option<String>,
    /// Where this machine finds it; `null` where it listens inside only.
    pub(crate) reach: Option<String>,
    /// Where this machine listens for it; `null` where it wasn't asked to.
    pub(crate) published: Option<String>,
}

/// Versions.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Versions {
    /// This program's.
    pub(crate) banger: &'static str,
    /// The daemon's; `null` where it doesn't answer at once.
    pub(crate) bangerd: Option<String>,
}

/// Something that was not taken along.
#[derive(Serialize, JsonSchema)]
pub(crate) struct LeftOut {
    /// Its path, escaped.
    pub(crate) path: String,
    /// Why.
    pub(crate) why: String,
}

/// What a copy did.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Copied {
    /// Files.
    pub(crate) files: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// The first of what was left out.
    pub(crate) left_out: Vec<LeftOut>,
    /// How many were left out.
    pub(crate) left_out_total: u64,
    /// How many lost their set-id or sticky bits.
    pub(crate) set_ids_removed: u64,
    /// How long it took.
    pub(crate) ms: u64,
}

/// A work tree that was shipped.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Pushed {
    /// The VM's name.
    pub(crate) vm: String,
    /// The tree's top on this machine.
    pub(crate) host: PathBuf,
    /// Its directory in the guest.
    pub(crate) guest: String,
    /// The commit that it stands on.
    pub(crate) commit: String,
    /// The branch in the guest; `null` where none is checked out.
    pub(crate) branch: Option<String>,
    /// Files.
    pub(crate) files: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Files that are not as in the commit.
    pub(crate) changed: u64,
    /// Files that git doesn't know, and that stayed here.
    pub(crate) untracked_left_out: u64,
    /// What was not taken along.
    pub(crate) left_out: Vec<LeftOut>,
    /// Whether nothing was shipped: this is what would be.
    pub(crate) dry_run: bool,
    /// How long it took.
    pub(crate) ms: u64,
}

/// What a VM would be, and what would be shipped into it.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Planned {
    /// The VM.
    #[serde(flatten)]
    pub(crate) plan: Plan,
    /// The work tree; `null` where none is.
    pub(crate) workspace: Option<Pushed>,
}

/// What `vm prune` took away.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Pruned<'a> {
    /// The VMs.
    pub(crate) vms: Vec<Gone<'a>>,
    /// What their disks took.
    pub(crate) freed_bytes: u64,
    /// Whether nothing was taken away: this is what would be.
    pub(crate) dry_run: bool,
}

/// A VM that is gone.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Gone<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its id.
    pub(crate) id: &'a str,
    /// The state that it was in.
    pub(crate) state: &'a str,
    /// What its disk took; `null` where it had none.
    pub(crate) disk_bytes: Option<u64>,
}

/// What a pull made of a guest's changes.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Pulled {
    /// The VM's name.
    pub(crate) vm: String,
    /// Files that were changed.
    pub(crate) files: u64,
    /// Lines that were added.
    pub(crate) added: u64,
    /// Lines that were deleted.
    pub(crate) deleted: u64,
    /// The branch; `null` where none was made.
    pub(crate) branch: Option<String>,
    /// Its newest commit.
    pub(crate) commit: Option<String>,
    /// The file of the patch.
    pub(crate) patch: Option<PathBuf>,
    /// Whether the files of the work tree were changed.
    pub(crate) applied: bool,
    /// What was not taken along.
    pub(crate) left_out: Vec<LeftOut>,
    /// How long it took.
    pub(crate) ms: u64,
}

/// A line of a console.
#[derive(Serialize, JsonSchema)]
pub(crate) struct LogLine<'a> {
    /// When its first byte came, RFC 3339 in UTC; `null` where nobody knows.
    pub(crate) t: Option<String>,
    /// Who wrote it: the guest to its `console`, or the `vmm`.
    pub(crate) source: &'static str,
    /// The line, without its end; `null` where it isn't UTF-8.
    pub(crate) data: Option<&'a str>,
    /// The same in base64, where it isn't UTF-8.
    pub(crate) data_b64: Option<String>,
}

/// How long a run's stages took.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Timings<'a> {
    /// In their order.
    pub(crate) stages: Vec<Took<'a>>,
    /// From the beginning to the command's first output, or to its end where it had none.
    pub(crate) first_output_us: Option<u64>,
    /// How much of that was not the guest's.
    pub(crate) own_us: Option<u64>,
    /// Until the VM was gone.
    pub(crate) down_us: Option<u64>,
}

/// A stage's time.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Took<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// When it began, from the run's beginning.
    pub(crate) start_us: u64,
    /// How long it took; `null` where it was not over.
    pub(crate) us: Option<u64>,
    /// Whose time it is: `banger` or `guest`.
    pub(crate) by: &'static str,
    /// What came of it, for a person.
    pub(crate) note: &'a str,
}

/// The file of `--result`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Ended<'a> {
    /// Whose exit status it is: the `command`'s or `banger`'s.
    pub(crate) origin: &'static str,
    /// The exit status.
    pub(crate) exit: u8,
    /// The signal that ended the command.
    pub(crate) signal: Option<u8>,
    /// How long the stages took.
    pub(crate) timings: Timings<'a>,
    /// The VM's name; `null` where there was none.
    pub(crate) vm: Option<&'a str>,
}
