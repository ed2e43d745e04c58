//! Signals while a command is on its way, runs, or is over: undo, pass on, leave.

use super::{Status, terminal};
use crate::api::client::Voice;
use crate::api::{Fault, Word};
use crate::cli::output;
use crate::cli::problem::Problem;
use crate::daemon::error::exit::INTERRUPTED;
use agent::host::Control;
use agent::protocol::SignalName;
use rustix::process::Signal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use sys::sigwait;

/// So many in this time end the command, whether it wants or not.
const ENOUGH: (usize, Duration) = (3, Duration::from_secs(2));

/// Where the command is.
enum State {
    /// Before the daemon was asked.
    Early,
    /// On its way; whether it was cancelled.
    Coming(Voice, bool),
    /// It runs; when it was sent signals of late.
    Running(Control, Vec<Instant>),
    /// It is over, with that status; its VM is taken down.
    Over(Status),
}

/// Signals of this process, taken by a thread.
pub(super) struct Signals {
    state: Arc<Mutex<State>>,
}

impl Signals {
    /// Takes them from now on. To be called before there is another thread.
    pub(super) fn watch(op_id: &str) -> Result<Signals, Problem> {
        let taken = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::WINCH];
        let failed = |error: std::io::Error| Problem::of_fault(Fault::bug(error));
        let blocked = sigwait::block(&taken.map(Signal::as_raw)).map_err(failed)?;
        let state = Arc::new(Mutex::new(State::Early));
        let (shared, op_id) = (Arc::clone(&state), op_id.to_owned());
        let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
            while let Ok(signal) = blocked.wait() {
                took(&mut lock(&shared), signal, &op_id);
            }
        });
        thread.map_err(failed)?;
        Ok(Signals { state })
    }

    /// What is begun can be undone.
    pub(super) fn cancel_by(&self, voice: Voice) {
        *lock(&self.state) = State::Coming(voice, false);
    }

    /// The command can be sent signals.
    pub(super) fn send_by(&self, control: Control) {
        *lock(&self.state) = State::Running(control, Vec::new());
    }

    /// Whether the way to the command was cancelled.
    pub(super) fn are_cancelled(&self) -> bool {
        matches!(*lock(&self.state), State::Coming(_, true))
    }

    /// The command is over.
    pub(super) fn over(&self, status: Status) {
        *lock(&self.state) = State::Over(status);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn took(state: &mut State, signal: i32, op_id: &str) {
    let is_size = signal == Signal::WINCH.as_raw();
    match state {
        // A call that is over by now has its own word for it.
        State::Running(control, _) if is_size => drop(control.resize(terminal::size())),
        _ if is_size => {}
        State::Early => leave(INTERRUPTED),
        State::Coming(voice, cancelled @ false) => {
            *cancelled = true;
            voice.say(Word::Cancel {});
        }
        State::Coming(_, true) => {
            output::ours(&format!("bangerd goes on undoing what was begun: {op_id} in its log\n"));
            leave(INTERRUPTED);
        }
        State::Running(control, when) => {
            let (many, time) = ENOUGH;
            when.retain(|then| then.elapsed() < time);
            when.push(Instant::now());
            if when.len() >= many {
                drop(control.abandon());
            } else if let Some(name) = SignalName::of_number(signal) {
                drop(control.signal(name));
            }
        }
        State::Over(status) => leave(*status),
    }
}

/// Ends this process: its other threads wait for what may take long.
fn leave(status: Status) {
    terminal::restore();
    std::process::exit(status.into());
}
