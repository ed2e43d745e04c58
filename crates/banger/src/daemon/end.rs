//! The daemon's end, where a signal asks for it: no call is taken any more, what is nobody's yet is taken away by the way down that
//! all VMs have, and calls that go on come to theirs. VMs that are somebody's run on; the next daemon takes them over.

use super::image::template;
use super::serve;
use super::vm::pool;
use super::vm::work::Work;
use super::{Daemon, log};
use crate::api::Fault;
use crate::daemon::error::exit::INTERRUPTED;
use rustix::net::{Shutdown, shutdown};
use rustix::process::Signal;
use std::os::unix::net::UnixListener;
use std::process;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;
use sys::sigwait::{self, Blocked};

/// All of it takes no longer. What is left is the next start's, as if this process had been killed.
const BOUND: Duration = Duration::from_secs(20);

/// Signals that end this process.
pub(super) struct End(Arc<OnceLock<UnixListener>>);

impl End {
    /// Takes them from now on. To be called before there is another thread.
    pub(super) fn watch() -> Result<End, Fault> {
        let signals = sigwait::block(&[Signal::TERM, Signal::INT].map(Signal::as_raw)).map_err(Fault::bug)?;
        let socket = Arc::new(OnceLock::new());
        let end = End(Arc::clone(&socket));
        let work = move || took(signals, &socket);
        thread::Builder::new().name("end".into()).spawn(work).map_err(Fault::bug)?;
        Ok(end)
    }

    /// The first of them shuts this socket; until it is known, it ends this process.
    pub(super) fn shuts(&self, listener: &UnixListener) -> Result<(), Fault> {
        let _ = self.0.set(listener.try_clone().map_err(Fault::bug)?);
        Ok(())
    }
}

/// The second ends this process at once, and the time does when it is over.
fn took(signals: Blocked, socket: &OnceLock<UnixListener>) {
    let first = signals.wait();
    let Some(listener) = socket.get().filter(|_| first.is_ok()) else { process::exit(0) };
    tell("STOPPING=1");
    log::say("INFO", "bangerd is told to end", "");
    // Its accept returns; one that does not is not waited for.
    let _ = shutdown(listener, Shutdown::Both);
    match signals.wait_for(BOUND) {
        Ok(None) => {
            log::say("WARN", "bangerd ends before all is over; the next start takes away what is left", "");
            process::exit(0);
        }
        _ => process::exit(INTERRUPTED.into()),
    }
}

/// Takes away what is nobody's, and waits for calls. Nothing is made behind it: this process ends with it.
pub(super) fn come(daemon: &Daemon) {
    let op_id = serve::new_op_id();
    let tell = |fault: &Fault| log::fault("end", &op_id, fault);
    let work = Work::new(daemon, &op_id);
    daemon.calls.close();
    daemon.pool.close();
    daemon.ahead.close();
    let _templates = template::stop(&work).inspect_err(tell);
    let _pool = pool::empty(daemon).inspect_err(tell);
    let _ = daemon.ahead.give_taps_back(daemon).inspect_err(tell);
    daemon.calls.wait();
    log::say("INFO", "bangerd ends", "");
}

/// Tells systemd, where it has started this process. Where nobody hears it, nobody waits for it.
pub(super) fn tell(what: &str) {
    if let Ok(systemd) = std::env::var("NOTIFY_SOCKET") {
        let _ = sys::notify::tell(&systemd, what);
    }
}
