//! A panic of this program: the terminal is set back, three lines say what, why and what to do, and a report is left.

use super::problem::Problem;
use super::vm::terminal;
use super::{manner, output};
use crate::time;
use std::backtrace::Backtrace;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::PanicHookInfo;
use std::path::PathBuf;
use std::sync::OnceLock;

/// What this process was to do, and its exit status where it panics.
static AT_WORK: OnceLock<(String, u8)> = OnceLock::new();

/// Has a panic of any thread end the process so, from now on.
pub(super) fn watch() {
    std::panic::set_hook(Box::new(|panic| {
        terminal::restore();
        let (_, exit) = at_work();
        output::failure(&problem(panic), exit);
        std::process::exit(exit.into());
    }));
}

/// What is done from now on: a command's name, and the exit status where it panics.
pub(super) fn working(command: String, exit: u8) {
    let _ = AT_WORK.set((command, exit));
    #[cfg(debug_assertions)]
    on_request();
}

/// Only in what is built for tests: panics where `BANGER_PANIC` is set, with the terminal raw where there is one.
#[cfg(debug_assertions)]
fn on_request() {
    if std::env::var_os("BANGER_PANIC").is_some() {
        let _raw = terminal::raw();
        panic!("BANGER_PANIC is set");
    }
}

fn at_work() -> (&'static str, u8) {
    AT_WORK.get().map_or(("", 1), |(command, exit)| (command, *exit))
}

fn problem(panic: &PanicHookInfo<'_>) -> Problem {
    let said = panic.payload();
    let said = said.downcast_ref::<&str>().copied().or_else(|| said.downcast_ref::<String>().map(String::as_str));
    let place = panic.location().map_or("an unknown place".to_owned(), ToString::to_string);
    let problem = Problem::new("bug", format!("banger itself failed: {}", said.unwrap_or("a panic without words")))
        .why(format!("a mistake in it, at {place}; VMs are bangerd's, and those that stay run on"));
    match report(said.unwrap_or_default(), &place) {
        Ok(path) => problem.fix(format!("report it, with {}", path.display())),
        Err(error) => problem.fix(format!("report it; no file could be left about it: {error}")),
    }
}

/// Writes the report into the user's state directory, else where temporary files are; its path. No argument is in it, which
/// may be a secret.
fn report(said: &str, place: &str) -> io::Result<PathBuf> {
    let name = format!("panic-{}-{}.txt", time::unix_now_ms(), std::process::id());
    let text = format!(
        "banger {} {}\n{}\npanicked at {place}: {said}\nflags: {:?}\n\n{}\n",
        env!("CARGO_PKG_VERSION"),
        at_work().0,
        time::of_unix_ms(time::unix_now_ms()),
        manner::manner(),
        Backtrace::force_capture()
    );
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")));
    let write = |folder: PathBuf| {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let path = folder.join(&name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes()).map(|()| path)
    };
    let written = state.map(|state| write(state.join("banger"))).and_then(Result::ok);
    written.map_or_else(|| write(std::env::temp_dir()), Ok)
}
