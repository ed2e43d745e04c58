//! `banger doctor`: what a VM needs, and how it is here. Each check knows by doing: a guest that ran, a packet that
//! came out, a snapshot that was made; never only by a name that exists.

mod checks;
mod mend;

use super::manner::{self, Paint};
use super::output::{data, on_terminal};
use super::problem::Problem;
use super::{output, text};
use checks::Places;
use clap::{Args, ValueEnum};
use schemars::JsonSchema;
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The status where the machine is not fit for VMs.
const UNFIT: u8 = 6;

/// What `doctor` takes.
#[derive(Args)]
pub(crate) struct Doctor {
    /// Only these checks.
    #[arg(long, value_delimiter = ',', value_name = "CHECK,…")]
    only: Vec<Id>,
    /// Start no guest.
    #[arg(long)]
    no_guest: bool,
    /// Show the commands that mend what is wrong, ask, run them, and look again.
    #[arg(long)]
    fix: bool,
    /// With --fix: only show them.
    #[arg(long, requires = "fix")]
    dry_run: bool,
    /// Print one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
    /// The daemon's socket.
    #[arg(long, value_name = "PATH", env = "BANGER_SOCKET", default_value = crate::daemon::settings::SOCKET)]
    socket: PathBuf,
    /// The helper's socket.
    #[arg(long, value_name = "PATH", env = "BANGER_HELPER_SOCKET", default_value = crate::root::SOCKET)]
    helper_socket: PathBuf,
    /// The owner's state directory.
    #[arg(long, value_name = "DIR", env = "BANGER_STATE_DIR", default_value = crate::daemon::settings::STATE)]
    state_dir: PathBuf,
}

/// A check's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Id {
    /// The root helper answers.
    Helper,
    /// The owner's daemon answers.
    Daemon,
    /// KVM runs a guest.
    Kvm,
    /// There is a VMM for this machine.
    Vmm,
    /// How disks are made, and whether there is room.
    Disk,
    /// How many templates there are, of how many.
    Templates,
    /// A guest's packet leaves the machine.
    WayOut,
    /// Names of VMs are answered for.
    Names,
    /// A whole guest starts and answers.
    Guest,
}

/// In the order in which one needs the other.
const ALL: [Id; 9] =
    [Id::Helper, Id::Daemon, Id::Kvm, Id::Vmm, Id::Disk, Id::Templates, Id::WayOut, Id::Names, Id::Guest];

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warn,
    /// No VM like that.
    Fail,
    /// It does not concern this machine, or could not be looked at.
    Skip,
}

/// What a check found. The element of `checks` in `doctor --json`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct Check {
    id: Id,
    state: State,
    found: String,
    why: Option<String>,
    fix: Vec<String>,
    ms: u64,
}

/// The document of `doctor --json`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Report<'a> {
    ok: bool,
    checks: &'a [Check],
}

/// A check's finding, before its time is known.
struct Found {
    state: State,
    found: String,
    why: Option<String>,
    fix: Vec<String>,
}

impl Found {
    /// What the daemon could not do.
    fn of(fault: crate::api::Fault) -> Found {
        Found { state: State::Fail, found: fault.message.into(), why: fault.why.map(Into::into), fix: fault.fix }
    }

    fn new(state: State, found: impl Into<String>) -> Found {
        Found { state, found: found.into(), why: None, fix: Vec::new() }
    }

    fn why(mut self, why: impl std::fmt::Display) -> Found {
        self.why = Some(why.to_string());
        self
    }

    fn fix(mut self, fix: impl Into<String>) -> Found {
        self.fix.push(fix.into());
        self
    }
}

/// Runs `banger doctor`. Everything is said in its report: where something fails the status alone says so once more.
pub(crate) fn run(wanted: &Doctor) -> Result<u8, Problem> {
    report(wanted).map(|ok| if ok { 0 } else { UNFIT })
}

fn report(wanted: &Doctor) -> Result<bool, Problem> {
    let begun = Instant::now();
    let mut checks = look(wanted);
    if wanted.fix && mend::mend(&checks, wanted)? {
        checks = look(wanted);
    }
    let ok = checks.iter().all(|check| check.state != State::Fail);
    if wanted.json {
        output::json(&Report { ok, checks: &checks })?;
    } else if on_terminal() {
        data(&shown(&checks, begun.elapsed()))?;
    } else {
        data(&rows(&checks))?;
    }
    Ok(ok)
}

fn look(wanted: &Doctor) -> Vec<Check> {
    let places = Places { daemon: &wanted.socket, helper: &wanted.helper_socket, state: &wanted.state_dir };
    let mut checks: Vec<Check> = Vec::new();
    for id in ALL {
        let is_wanted = wanted.only.is_empty() || wanted.only.contains(&id);
        if !is_wanted || (id == Id::Guest && wanted.no_guest) {
            continue;
        }
        let begun = Instant::now();
        let failed = |of: Id| checks.iter().any(|check| check.id == of && check.state == State::Fail);
        let found = match id {
            Id::Helper => places.helper(),
            Id::Daemon => places.daemon(),
            Id::Kvm => checks::kvm(),
            Id::Vmm if !failed(Id::Helper) => places.vmm(),
            Id::Disk if !failed(Id::Helper) => places.disk(),
            Id::Templates if !failed(Id::Daemon) => places.templates(),
            Id::WayOut if !failed(Id::Helper) => places.way_out(),
            Id::Names if !failed(Id::Daemon) => checks::names(),
            Id::Guest if ![Id::Helper, Id::Daemon, Id::Vmm].into_iter().any(failed) => places.guest(),
            _ => Found::new(State::Skip, "not looked at: it needs what fails above"),
        };
        let Found { state, found, why, fix } = found;
        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        checks.push(Check { id, state, found, why, fix, ms });
    }
    checks
}

/// As a person names it.
fn name(id: Id) -> String {
    id.to_possible_value().map_or_else(String::new, |value| value.get_name().replace('-', " "))
}

fn shown(checks: &[Check], took: Duration) -> String {
    let mut out = String::new();
    for check in checks {
        let (paint, state) = match check.state {
            State::Ok => (Paint::Green, "ok  "),
            State::Warn => (Paint::Yellow, "warn"),
            State::Fail => (Paint::Red, "FAIL"),
            State::Skip => (Paint::Dim, "skip"),
        };
        let state = manner::data(paint, state);
        out += &format!("{state}  {:9}  {}\n", name(check.id), text::line(&check.found));
        let why = check.why.iter().map(|why| format!("{:17}why: {}\n", "", text::line(why)));
        let fix = check.fix.iter().map(|fix| format!("{:17}fix: {}\n", "", text::line(fix)));
        why.chain(fix).for_each(|line| out += &line);
    }
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let end = if count(State::Fail) > 0 { format!(": exit {UNFIT}") } else { String::new() };
    let plural = |number: usize, word: &str| format!("{number} {word}{}", if number == 1 { "" } else { "s" });
    out + &format!(
        "{} ok, {}, {}, {} skipped in {:.1} s{end}\n",
        count(State::Ok),
        plural(count(State::Warn), "warning"),
        plural(count(State::Fail), "failure"),
        count(State::Skip),
        took.as_secs_f64()
    )
}

/// A line each: state, check, what was found, what to do.
fn rows(checks: &[Check]) -> String {
    let row = |check: &Check| {
        let state = format!("{:?}", check.state).to_lowercase();
        let fix = check.fix.first().map_or("", String::as_str);
        format!("{state}\t{}\t{}\t{}\n", name(check.id), text::line(&check.found), text::line(fix))
    };
    checks.iter().map(row).collect()
}

/// Words that go to standard error.
fn tell(words: &str) {
    output::ours(&format!("{words}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: Id, state: State) -> Check {
        let fix = if state == State::Fail { vec!["do it".to_owned()] } else { vec![] };
        Check { id, state, found: "found \u{1b}[31m".into(), why: None, fix, ms: 3 }
    }

    #[test]
    fn the_report_is_safe_to_print_and_counts() {
        let checks = [check(Id::Helper, State::Ok), check(Id::WayOut, State::Fail), check(Id::Names, State::Skip)];
        let text = shown(&checks, Duration::from_millis(2300));
        assert_eq!(
            text,
            "ok    helper     found \\u{1b}[31m\nFAIL  way out    found \\u{1b}[31m\n                 fix: do it\n\
             skip  names      found \\u{1b}[31m\n1 ok, 0 warnings, 1 failure, 1 skipped in 2.3 s: exit 6\n"
        );
        assert_eq!(rows(&checks).lines().nth(1), Some("fail\tway out\tfound \\u{1b}[31m\tdo it"));
        let json = serde_json::to_value(Report { ok: false, checks: &checks }).unwrap();
        assert_eq!(json["checks"][1]["id"], "way-out");
        assert_eq!(json["checks"][0]["why"], serde_json::Value::Null);
    }

    #[test]
    fn without_a_helper_what_needs_it_is_passed_over() {
        let nowhere = tempfile::tempdir().unwrap();
        let at = |name: &str| nowhere.path().join(name);
        let wanted = Doctor {
            only: vec![],
            no_guest: false,
            fix: false,
            dry_run: false,
            json: false,
            socket: at("bangerd.sock"),
            helper_socket: at("helper.sock"),
            state_dir: at("state"),
        };
        let states: Vec<_> = look(&wanted).into_iter().map(|check| (check.id, check.state)).collect();
        for (id, state) in states {
            match id {
                Id::Kvm => assert!(matches!(state, State::Ok | State::Warn)),
                Id::Helper | Id::Daemon => assert_eq!(state, State::Fail, "{id:?}"),
                _ => assert_eq!(state, State::Skip, "{id:?}"),
            }
        }
    }
}
