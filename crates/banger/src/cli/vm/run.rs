//! `vm run` and `vm exec`: a command in a guest, its streams and its exit status unchanged.

pub(crate) mod args;

use self::args::{Exec, Run};
use super::Status;
use super::plan;
use super::session::{self, Command, Program};
use super::timings::Timings;
use super::trip::{self, Trip};
use crate::api::client::{self, Next, Running};
use crate::api::vm::Changed;
use crate::api::{Attached, Call, Fault, Request, WaitFor, Word};
use crate::cli::problem::Problem;
use crate::cli::progress::Progress;
use crate::cli::reach::{Reach, milliseconds};
use crate::cli::{config, documents, output, text};
use agent::host::{Ended, Failure, Stage};
use agent::protocol::Exit;
use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Ours, where a command has no status of its own.
pub(crate) const OURS: Status = 125;
/// It was ended for its time.
const TIMED_OUT: Status = 124;
/// How long the daemon may take to say what became of a VM whose connection broke.
const REASON: Duration = Duration::from_secs(3);

pub(super) fn run(run: &Run) -> Result<Status, Problem> {
    let stays = run.detach || run.keep || (run.name.is_some() && !run.rm);
    let trip = Trip::of(run, stays)?;
    if !run.dry_run {
        run.machine.need_base(&run.asked.reach)?;
    }
    // One that holds changes is taken away when they are here.
    let keep = stays || trip.as_ref().is_some_and(Trip::comes_back);
    let mut machine = run.machine.machine(run.name.clone());
    machine.boot_timeout_ms = milliseconds(run.boot_timeout.or(config().boot_timeout));
    (machine.stages, machine.cold) = (run.timings, run.cold);
    if run.dry_run {
        return plan::show(&run.asked, machine, keep, trip.as_ref()).map(|()| 0);
    }
    let call = run.asked.reach.call(Request::VmRun { machine, keep });
    if run.detach {
        return detached(run, &call);
    }
    let timings = run.timings.then_some(run.asked.json);
    let (reach, program, command) = (&run.asked.reach, &run.program, run.command.as_slice());
    let status = Session { reach, program, command, timings, trip: trip.as_ref() }.go(&call)?;
    if trip.is_none() && status != 0 {
        trip::hint(command);
    }
    Ok(status)
}

/// One that stays up: its name is all that is said.
fn detached(run: &Run, call: &Call) -> Result<Status, Problem> {
    let signals = session::Signals::watch(&call.op_id)?;
    let progress = Progress::begin(run.asked.reach.progress(), &call.op_id);
    let mut running = client::begin(&run.asked.reach.socket, call).map_err(Problem::of_fault)?;
    signals.cancel_by(running.voice().map_err(|error| Problem::of_fault(Fault::bug(error)))?);
    let (attached, _) = attach(&mut running, |stage| progress.stage(stage))?;
    drop(progress);
    signals.over(0);
    running.say(Word::Finished {});
    close(&mut running, &mut Timings::begin()).map_err(Problem::of_fault)?;
    output::data(&format!("{}\n", text::line(&attached.vm)))?;
    Ok(0)
}

pub(super) fn exec(exec: &Exec) -> Result<Status, Problem> {
    if exec.start {
        let boot_timeout_ms = milliseconds(config().boot_timeout);
        let started: Changed = exec.asked.reach.ask(Request::VmStart {
            name: exec.name.clone(),
            boot_timeout_ms,
            wait: WaitFor::Agent,
            cold: false,
        })?;
        started.warnings.iter().for_each(|warning| output::warning(warning));
    }
    if exec.auto_prepare {
        trip::prepare(&exec.asked.reach, &exec.name)?;
    }
    let call = exec.asked.reach.call(Request::VmExec { name: exec.name.clone(), looks: false });
    Session { reach: &exec.asked.reach, program: &exec.program, command: &exec.command, timings: None, trip: None }
        .go(&call)
}

/// A command's way: the call that gives a connection, the command on it, the call's end.
struct Session<'a> {
    reach: &'a Reach,
    program: &'a Program,
    command: &'a [OsString],
    /// Whether stages are to be shown in the end, and as JSON.
    timings: Option<bool>,
    /// A work tree that goes along.
    trip: Option<&'a Trip<'a>>,
}

impl Session<'_> {
    fn go(&self, call: &Call) -> Result<Status, Problem> {
        let mut vm = String::new();
        let mut timings = Timings::begin();
        let mut done = self.steps(call, &mut vm, &mut timings);
        if let Some(trip) = self.trip
            && let Err(problem) = trip.over(self.reach, &vm)
        {
            done = match done {
                Ok(_) => Err(problem),
                // Why nothing came of the command comes last, as the reason of the exit status.
                Err(first) => {
                    output::failure(&problem, problem.exit_of_run());
                    Err(first)
                }
            };
        }
        let status = match &done {
            Ok(ended) => status(ended),
            Err(problem) => problem.exit_of_run(),
        };
        match self.timings {
            Some(true) => output::json_beside(&timings.value())?,
            Some(false) => output::ours(&timings.bars()),
            None => {}
        }
        if let Some(path) = &self.program.result {
            write_result(path, &done, status, &vm, &timings)?;
        }
        done.map(|_| status)
    }

    fn steps(&self, call: &Call, vm: &mut String, timings: &mut Timings) -> Result<Ended, Problem> {
        let mut command = Command::new(self.program, self.command)?;
        let signals = session::Signals::watch(&call.op_id)?;
        let progress = Progress::begin(self.reach.progress(), &call.op_id);
        let mut running = client::begin(&self.reach.socket, call).map_err(Problem::of_fault)?;
        signals.cancel_by(running.voice().map_err(|error| Problem::of_fault(Fault::bug(error)))?);
        let (attached, mut socket) = attach(&mut running, |stage| {
            progress.stage(stage);
            timings.stage(stage);
        })?;
        vm.clone_from(&attached.vm);
        let mut shipped = None;
        if let Some(trip) = self.trip {
            // An agent that was greeted waits some seconds for its call, and this takes as long as it takes.
            drop(socket);
            let there = trip.there(self.reach, &attached.vm, &progress).and_then(|directory| {
                command.at_home_in(&directory);
                self.once_more(&attached.vm)
            });
            match there {
                Ok((call, connected)) => (shipped, socket) = (Some(call), connected),
                Err(problem) => {
                    running.say(Word::Finished {});
                    let closed = close(&mut running, timings);
                    let cancelled = signals.are_cancelled().then(|| Fault::interrupted(&["the VM".into()]));
                    return Err(closed.err().or(cancelled).map_or(problem, Problem::of_fault));
                }
            }
        } else if let Some(tree) = &attached.workspace {
            trip::has_moved(&attached.vm, &tree.pushed);
            command.at_home_in(&tree.pushed.guest);
        }
        drop(progress);
        timings.attached();
        let mut ended = command.run(&socket, &attached, &signals, || timings.first_byte());
        // Nothing was started yet, so it can be asked for once more.
        let again = match &ended {
            Err(Failure::Lost(Stage::Greeting) | Failure::Late(Stage::Greeting)) => Some(command),
            Err(Failure::TooOld("tty")) => command.without_tty(),
            _ => None,
        };
        if let Some(command) = again
            && let Ok((_call, socket)) = self.once_more(&attached.vm)
        {
            ended = command.run(&socket, &attached, &signals, || timings.first_byte());
        }
        timings.ended();
        drop(shipped);
        signals.over(ended.as_ref().map_or(OURS, status));
        let ended = ended.map_err(|failure| (reason(&mut running, &failure), failure));
        running.say(Word::Finished {});
        let closed = close(&mut running, timings);
        match (ended, closed) {
            // What the command's own end says counts, whatever became of the VM.
            (Ok(ended), closed) => {
                if let Err(fault) = closed {
                    output::warning(&fault.message);
                }
                Ok(ended)
            }
            (Err((Some(fault), _)), _) => Err(Problem::of_fault(fault)),
            (Err((None, failure)), closed) => {
                Err(of_failure(&failure, &attached.vm, (self.program, self.command), closed.err(), &call.op_id))
            }
        }
    }

    fn once_more(&self, vm: &str) -> Result<(Running, UnixStream), Problem> {
        let call = self.reach.call(Request::VmExec { name: vm.to_owned(), looks: false });
        let mut running = client::begin(&self.reach.socket, &call).map_err(Problem::of_fault)?;
        let (_, socket) = attach(&mut running, |_| {})?;
        Ok((running, socket))
    }
}

/// Waits for the connection to the guest.
pub(super) fn attach(
    running: &mut Running,
    mut each: impl FnMut(&crate::api::Stage),
) -> Result<(Attached, UnixStream), Problem> {
    loop {
        match running.event().map_err(Problem::of_fault)? {
            Next::Stage(stage) => each(&stage),
            Next::Attached(attached, socket) => return Ok((attached, UnixStream::from(socket))),
            Next::Done(_) => return Err(Problem::of_fault(Fault::bug("no connection came"))),
        }
    }
}

/// Waits for the call's end; the warnings are told.
fn close(running: &mut Running, timings: &mut Timings) -> Result<(), Fault> {
    loop {
        match running.event()? {
            Next::Stage(stage) => timings.stage(&stage),
            Next::Attached(..) => {}
            Next::Done(value) => {
                let changed: Option<Changed> = serde_json::from_value(value).ok();
                for warning in changed.iter().flat_map(|changed| &changed.warnings) {
                    output::warning(warning);
                }
                return Ok(());
            }
        }
    }
}

/// Why the connection broke, where the daemon knows: it says so by itself, and soon.
pub(super) fn reason(running: &mut Running, failure: &Failure) -> Option<Fault> {
    if !matches!(failure, Failure::Lost(_) | Failure::Io(_)) {
        return None;
    }
    let until = Instant::now() + REASON;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match running.event_within(left) {
            Some(Ok(_)) => {}
            Some(Err(fault)) => return Some(fault),
            None => return None,
        }
    }
    None
}

/// A call that has no end of the command's is a problem of ours.
fn of_failure(
    failure: &Failure,
    vm: &str,
    (given, command): (&Program, &[OsString]),
    closed: Option<Fault>,
    op_id: &str,
) -> Problem {
    let exit = failure.status();
    let program = command.first().map_or("login shell".into(), |word| wire::code::shown(&word.to_string_lossy()));
    let mut fault = match failure {
        Failure::Lost(_) => {
            let message = format!("the connection to {vm} broke while the command ran; its status is unknown");
            let fault = Fault::new("lost", exit, message).why(failure);
            closed.map_or(fault.clone(), |closed| fault.why(closed.message))
        }
        Failure::Refused(body) if exit == 127 => {
            let message = format!("no program {program} in {vm}, in its user's PATH or at that place");
            Fault::new("not_found_in_guest", exit, message)
                .why(shown(body))
                .fix("a slip? else: banger image build dev --include PACKAGE, and --image dev")
        }
        Failure::Refused(body) if exit == 126 => {
            Fault::new("not_executable", exit, format!("{program} can't be run in {vm}")).why(shown(body))
        }
        Failure::Refused(body) if body.code == "bad_cwd" => {
            let directory = wire::code::shown(&given.workdir);
            Fault::new("guest", exit, format!("{vm} has no directory {directory} to begin in")).why(shown(body))
        }
        Failure::Refused(body) if body.code == "no_user" => {
            Fault::new("no_user", exit, format!("{vm} has no user {}", wire::code::shown(&given.user)))
        }
        Failure::Abandoned => Fault::new("interrupted", exit, "the command was given up"),
        other => Fault::new("guest", exit, format!("{vm}: {other}")),
    };
    fault.op_id = op_id.into();
    Problem::of_fault(fault)
}

fn shown(body: &agent::protocol::ErrorBody) -> String {
    let step: String = body.step.chars().take(100).flat_map(char::escape_default).collect();
    // The number is the guest's: it may be none that there is.
    format!("{step}: {}", std::io::Error::from_raw_os_error(body.errno))
}

fn status(ended: &Ended) -> Status {
    if ended.timed_out { TIMED_OUT } else { ended.exit.status() }
}

fn write_result(
    path: &Path,
    done: &Result<Ended, Problem>,
    exit: Status,
    vm: &str,
    timings: &Timings,
) -> Result<(), Problem> {
    let (origin, signal) = match done {
        Ok(ended) => match &ended.exit {
            Exit::Signal(signal) => ("command", Some(signal.signal)),
            Exit::Code(_) => ("command", None),
        },
        Err(_) => ("banger", None),
    };
    let vm = (!vm.is_empty()).then_some(vm);
    let ended = documents::Ended { origin, exit, signal, timings: timings.value(), vm };
    std::fs::write(path, output::document(&ended)?).map_err(|error| {
        Problem::new("result", format!("the result could not be written to {}", path.display())).why(error)
    })
}
