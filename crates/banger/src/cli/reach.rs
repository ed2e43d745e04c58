//! How the daemon is reached, and what the caller wants to see of a call.

use super::problem::Problem;
use super::progress::{Progress, Style};
use super::{manner, output, text};
use crate::api::{Call, Fault, Request, client};
use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Nobody waits longer for names that a shell proposes.
const SOON: Duration = Duration::from_millis(100);

/// What every command takes that asks bangerd and prints a document.
#[derive(Args)]
pub(crate) struct Asked {
    /// Print one JSON document, or these fields of it alone. An error is JSON too.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

impl Asked {
    /// Whether rows are wanted as JSON; names alone are none.
    pub(crate) fn lists_as_json(&self) -> Result<bool, Problem> {
        if self.json && manner::is_quiet() {
            return Err(Problem::usage("--json and --quiet each say what is printed")
                .fix("--json=name     names alone, as JSON"));
        }
        Ok(self.json)
    }
}

/// What may stand before the command's name too: the command's own flags of these names take it from here.
#[derive(Args)]
pub(crate) struct Early {
    /// Print one JSON document where the command prints one, or these fields of it alone. Errors are JSON too.
    #[arg(long, global = true)]
    json: bool,
    /// The socket of who is asked: bangerd's, of banger helper the root helper's.
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    /// How to tell of stages on standard error [default: auto].
    #[arg(long, value_name = "HOW", global = true)]
    progress: Option<Style>,
}

impl Early {
    /// The words that ask for the same of another `banger`, which has a bangerd of its own.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let progress = self.progress.and_then(|style| style.to_possible_value());
        let progress = progress.map(|style| format!("--progress={}", style.get_name()));
        progress.into_iter().chain(self.json.then(super::fields::word)).map(OsString::from).collect()
    }
}

/// The daemon's socket.
#[derive(Args, Clone)]
pub(crate) struct Reach {
    /// bangerd's socket.
    #[arg(long, value_name = "PATH", env = "BANGER_SOCKET", default_value = crate::daemon::settings::SOCKET, global = true)]
    pub(crate) socket: PathBuf,
    /// The operation's id: errors and the logs of bangerd and the root helper repeat it.
    #[arg(long, value_name = "ID", env = "BANGER_OP_ID", hide = true, global = true)]
    op_id: Option<String>,
    /// How to tell of stages on standard error [default: auto].
    #[arg(long, value_name = "HOW", env = "BANGER_PROGRESS", global = true)]
    progress: Option<Style>,
}

impl Reach {
    /// How stages are told.
    pub(crate) fn progress(&self) -> Style {
        let configured = || Style::from_str(super::config().progress.as_deref()?, false).ok();
        self.progress.or_else(configured).filter(|style| *style != Style::Auto).unwrap_or_else(manner::style)
    }

    /// A call with an id of its own.
    pub(crate) fn call(&self, request: Request) -> Call {
        let op_id = self.op_id.clone().unwrap_or_else(crate::daemon::serve::new_op_id);
        if manner::is_verbose() {
            let (at, name) = (text::line(&self.socket.display().to_string()), crate::daemon::ops::name(&request));
            output::ours(&format!("asked of {at}: {name}, {op_id}\n"));
        }
        Call { op_id, trace: manner::traces(), request }
    }

    /// Asks, shows the stages, and gives the result.
    pub(crate) fn ask<T: DeserializeOwned>(&self, request: Request) -> Result<T, Problem> {
        self.try_ask(request).map_err(Problem::of_fault)
    }

    /// The same, with the fault as it came.
    pub(crate) fn try_ask<T: DeserializeOwned>(&self, request: Request) -> Result<T, Fault> {
        let call = self.call(request);
        let progress = Progress::begin(self.progress(), &call.op_id);
        client::ask(&self.socket, &call, |stage| progress.stage(&stage))
    }
}

/// Asks bangerd for what can be done without; `None` where it isn't there or needs longer than anybody would wait for
/// it.
pub(crate) fn soon<T: DeserializeOwned + Send + 'static>(request: Request) -> Option<T> {
    let call = Call { op_id: crate::daemon::serve::new_op_id(), trace: false, request };
    in_time(move || client::ask::<T>(&socket(), &call, |_| {}))?.ok()
}

/// The daemon's socket, where no flag says it.
pub(crate) fn socket() -> PathBuf {
    std::env::var_os("BANGER_SOCKET").map_or(crate::daemon::settings::SOCKET.into(), PathBuf::from)
}

/// What `act` gives, where it does so soon. Its thread ends with the process.
pub(crate) fn in_time<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = mpsc::channel();
    thread::Builder::new().spawn(move || tell.send(act())).ok()?;
    told.recv_timeout(SOON).ok()
}

/// A duration in milliseconds, as requests carry it.
pub(crate) fn milliseconds(time: Option<Duration>) -> Option<u64> {
    time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
