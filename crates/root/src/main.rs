//! `bangerd-root`: the privileged operations, for one owner, over one socket. The order of its start, top to bottom.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests make files and start programs by path, as a person does")
)]

mod args;
mod conn;
mod disk;
mod fail;
mod gate;
mod host;
mod install;
mod links;
mod listen;
mod locks;
mod log;
mod mark;
mod net;
mod notify;
mod ops;
mod places;
mod program;
mod rights;
mod serve;
mod settings;
mod steps;
mod trusted;
mod vm;
mod watch;
mod work;

use args::Asked;
use host::Host;
use listen::Listener;
use log::{Level, Log, Value};
use notify::Started;
use places::Place;
use serve::Server;
use settings::{Flags, Settings};
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;
use sys::creds::Identity;
use sys::dir::{Dir, Facts};

fn main() -> ExitCode {
    let asked = args::parse(std::env::args_os().skip(1));
    let flags = match asked {
        Ok(Asked::Serve(flags)) => flags,
        Ok(Asked::Print(text)) => {
            return std::io::stdout().write_all(text.as_bytes()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
        }
        Err(mistake) => {
            let _ = writeln!(std::io::stderr(), "bangerd-root: {mistake}");
            return ExitCode::from(2);
        }
    };
    match run(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(mistake) => {
            let log = Log::new(Level::Info, 1);
            log.own(Level::Error, "helper can not start", &[("message", Value::Text(&mistake, 2048))]);
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> Result<(), String> {
    let (started, passed) = leave_the_starter()?;
    let settings = Settings::read(flags)?;
    let install = install::read(&settings.install_meta)?;
    // One a connection and a VM, for each operation as many as a launch in a jail has at most, some for the helper's own.
    let limits = &settings.limits;
    let descriptors = limits.connections + limits.vms + 32 * limits.workers + 128;
    rights::raise_open_files(descriptors as u64)?;
    // Before there is a second thread: they are blocked in every one, and this one takes them.
    let signals = sys::sigwait::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
        .map_err(|error| format!("blocking signals: {error}"))?;

    let run_dir = listen::roots_dir(&settings.run_dir)?;
    let _lock = listen::lock(&run_dir)?;
    // It lives as long as the process: threads and what they hold refer to it.
    let host: &'static Host = Box::leak(Box::new(places(settings, install.owner, &run_dir)?));
    rights::give_up()?;
    // Its descriptor is one of the helper's own from the beginning. Where it can't be read now each asker is told.
    let _ = sys::mounts::table();
    // With the rights that a request has, and before anybody can be in the way or see what an earlier helper left.
    host.images.recover(host)?;
    host.vms.watch();
    net::isolate(host);
    net::watch(host);
    disk::watch(host);
    let listener = match passed.len() {
        0 => Listener::make(&host.settings, &host.owner)?,
        _ => Listener::passed(passed)?,
    };
    let server = Server::new(host, listener)?;
    server.open()?;
    tell_started(server, &install.version, &install.commit);
    tell(server, &started, "READY=1");
    wait(server, &started, signals);
    tell(server, &started, "STOPPING=1");
    let ended = server.stop();
    let message = if ended { "helper stopped" } else { "helper stopped, operations were still running" };
    server.log().own(if ended { Level::Info } else { Level::Warn }, message, &[]);
    Ok(())
}

/// Nothing of whoever started us counts: environment, descriptors, umask, groups, a core of our memory.
fn leave_the_starter() -> Result<(Started, Vec<rustix::fd::OwnedFd>), String> {
    let started = Started::from_environment();
    sys::sandbox::clear_environment().map_err(|error| format!("clearing the environment: {error}"))?;
    let passed = sys::sandbox::take_passed(started.listen_fds)
        .map_err(|error| format!("taking {} passed descriptors (LISTEN_FDS): {error}", started.listen_fds))?;
    // Both: a set-user-ID bit on the program lets nobody else start it.
    if !rustix::process::geteuid().is_root() || !rustix::process::getuid().is_root() {
        return Err("bangerd-root must be started as root".into());
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    std::env::set_current_dir("/").map_err(|error| format!("chdir /: {error}"))?;
    sys::creds::drop_groups().map_err(|error| format!("setgroups: {error}"))?;
    sys::sandbox::bound_allocator();
    rights::keep_memory_private()?;
    Ok((started, passed))
}

/// Opens the places that operations work in, and what they keep.
fn places(settings: Settings, owner: Identity, run_dir: &Dir) -> Result<Host, String> {
    let state = owners_dir(&settings.roots.state, &owner, "--state-dir")?;
    let runtime = owners_dir(&settings.roots.runtime, &owner, "--runtime-dir")?;
    let lib_dir = match Dir::open(&settings.lib_dir) {
        Err(error) if error.is_missing() => listen::make_dir(&settings.lib_dir, 0o700)?,
        _ => trusted::dir(&settings.lib_dir)?,
    };
    let records = match run_dir.dir("records") {
        Err(error) if error.is_missing() => run_dir.make_dir("records", 0o700),
        opened => opened,
    };
    let records = Place::new(records.map_err(|error| error.to_string())?);
    let again = |dir: &Dir| dir.dir(".").map_err(|error| error.to_string());
    let images = disk::Images::new(again(&lib_dir)?, again(run_dir)?);
    let (state, runtime) = (Place::new(state), Place::new(runtime));
    let told = |fail: fail::Fail| [vec![fail.message], fail.causes].concat().join(": ");
    let log = || Log::new(settings.log_level, settings.limits.log_lines_per_second);
    Ok(Host {
        log: log(),
        faults: steps::Faults::parse(&settings.fault).map_err(|mistake| format!("fault: {mistake}"))?,
        locks: locks::Locks::default(),
        disk: disk::Disk::default(),
        images,
        net: net::Net::open(&settings).map_err(told)?,
        memories: vm::Memories::default(),
        vms: vm::Vms::adopt(&records, &state, &runtime, &owner, log(), settings.limits.vm_log_bytes()).map_err(told)?,
        records,
        state,
        runtime,
        settings,
        owner,
    })
}

/// A directory that the owner writes and nobody else but root, in a directory of root's. A boot takes the runtime
/// directory away, so it is made where it is missing.
fn owners_dir(path: &str, owner: &Identity, flag: &str) -> Result<Dir, String> {
    trusted::dir(trusted::split(path).0).map_err(|mistake| format!("{flag}: {mistake}"))?;
    let dir = match Dir::open(path) {
        Err(error) if error.is_missing() && flag == "--runtime-dir" => {
            let made = listen::make_dir(path, 0o711)?;
            made.set_owner(owner.uid, owner.gid).map_err(|error| error.to_string())?;
            made
        }
        Err(error) if error.is_missing() => {
            return Err(format!("{flag}: {path} does not exist; `banger helper init` makes it"));
        }
        Err(error) => return Err(format!("{flag}: {error}")),
        Ok(dir) => dir,
    };
    let facts = Facts::of(&dir).map_err(|error| format!("{flag}: {error}"))?;
    if facts.uid != owner.uid && facts.uid != 0 {
        return Err(format!("{flag}: {path} belongs to uid {}, neither to the owner nor to root", facts.uid));
    }
    if facts.mode & 0o002 != 0 || (facts.mode & 0o020 != 0 && facts.gid != owner.gid) {
        return Err(format!("{flag}: {path} can be written by others than the owner (chmod go-w {path})"));
    }
    Ok(dir)
}

fn tell_started(server: &Server, version: &str, commit: &str) {
    let fields = [
        ("version", Value::Text(env!("CARGO_PKG_VERSION"), 64)),
        ("installed_version", Value::Text(version, 64)),
        ("installed_commit", Value::Text(commit, 64)),
    ];
    server.log().own(Level::Info, "helper started", &fields);
}

fn tell(server: &Server, started: &Started, state: &str) {
    if let Err(error) = started.tell(state) {
        let text = format!("{state}: {error}");
        server.log().own(Level::Warn, "systemd was not told", &[("message", Value::Text(&text, 512))]);
    }
}

/// Waits for the signal to stop, and tells the watchdog meanwhile that somebody is at the door.
fn wait(server: &Server, started: &Started, signals: sys::sigwait::Blocked) {
    // Twice as often as it must be.
    let every = started.watchdog.map_or(Duration::from_secs(3600), |every| every / 2);
    loop {
        match signals.wait_for(every) {
            Ok(Some(_)) | Err(_) => return,
            Ok(None) if started.watchdog.is_some() && server.is_alive() => tell(server, started, "WATCHDOG=1"),
            Ok(None) => {}
        }
    }
}
