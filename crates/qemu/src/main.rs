//! `banger-qemu`: Firecracker's command line and API over Debian's QEMU, for machines whose KVM runs no guest.
//!
//! Order of start: arguments, signals, log, API socket, then two kinds of threads. The main thread starts QEMU and
//! waits for what ends the process; it has to, because the kernel kills QEMU when the thread that started it ends. All
//! else happens on the API's threads.

mod api;
mod args;
mod boot;
mod config;
mod confine;
mod draft;
mod fault;
mod guest;
mod host;
mod http;
mod launch;
mod load;
mod log;
mod machine;
mod memory;
mod metrics;
mod qmp;
mod rate;
mod save;
mod serial;
mod serve;
mod snapshot;
mod socket;
mod throttle;
mod vmm;
mod vsock;

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::termios::{OptionalActions, Termios};
use wire::firecracker::{Logger, Metrics as MetricsConfig, VmConfig};

use crate::args::{Args, Asked};
use crate::launch::Event;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::socket::OwnSocket;
use crate::vmm::Vmm;

/// Exit codes, Firecracker's: something went wrong; a bad configuration; bad arguments.
const GENERIC_ERROR: u8 = 1;
const BAD_CONFIGURATION: u8 = 152;
const BAD_ARGUMENTS: u8 = 153;
/// How long QEMU may take to end after it was told to.
const ENDING_PATIENCE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let counter = sys::tsc::Sample::take();
    match args::parse(std::env::args_os().skip(1)) {
        Ok(Asked::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Asked::Run(args)) => run(*args, counter),
        Err(message) => {
            eprintln!("banger-qemu: {message}");
            ExitCode::from(BAD_ARGUMENTS)
        }
    }
}

fn run(args: Args, counter: sys::tsc::Sample) -> ExitCode {
    // Before any thread is there: each inherits what is blocked.
    let signals = match sys::sigwait::block(&[Signal::TERM.as_raw(), Signal::INT.as_raw(), Signal::HUP.as_raw()]) {
        Ok(signals) => signals,
        Err(error) => return give_up(GENERIC_ERROR, &format!("signals: {error}")),
    };
    raise_descriptor_limit();
    let log = Arc::new(Log::new(args.id.as_str()));
    let metrics = Arc::new(Metrics::default());
    if let Err(message) = prepare(&args, &log, &metrics) {
        return give_up(GENERIC_ERROR, &message);
    }
    let api = match args.api_sock.as_ref().map(|path| (OwnSocket::bind(path), path)) {
        None => None,
        Some((Ok(socket), _)) => Some(Arc::new(socket)),
        Some((Err(error), path)) => {
            let path = path.display();
            let message =
                format!("Failed to open the API socket at: {path}: {error}. Check that it is not already used.");
            return give_up(GENERIC_ERROR, &message);
        }
    };
    let terminal = rustix::termios::tcgetattr(rustix::stdio::stdin()).ok();
    let (sender, events) = channel();
    let vmm = Arc::new(Vmm::new(
        (args.id.as_str(), args.layer.clone()),
        Arc::clone(&log),
        Arc::clone(&metrics),
        counter,
        sender.clone(),
    ));
    let told = sender.clone();
    let waits = move || {
        while let Ok(signal) = signals.wait() {
            // The main thread is there for as long as the process.
            let _ = told.send(Event::Signal(signal));
        }
    };
    let (works, served, failed) = (Arc::clone(&vmm), api.clone(), sender.clone());
    let work = move || match work(&args, served.as_deref(), &works) {
        Ok(()) => {}
        Err((code, message)) => {
            let _ = failed.send(Event::GivenUp(code, message));
        }
    };
    let threads = [
        std::thread::Builder::new().name("signals".into()).spawn(waits),
        std::thread::Builder::new().name("work".into()).spawn(work),
    ];
    let code = match threads.into_iter().find_map(Result::err) {
        Some(error) => Ended { code: GENERIC_ERROR, why: Some(error.to_string()) },
        None => supervise(&events, &sender),
    };
    // A boot that waits for this thread must learn that nobody answers, before its lock is taken.
    drop(events);
    finish(code, &vmm, api, terminal)
}

/// 1,023 connections of the vsock's need as many descriptors, and the usual limit is 1,024.
fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = limit.maximum.map_or(4096, |maximum| maximum.min(4096));
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        // Where it stays, fewer connections are taken.
        let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
    }
}

/// The log and the metrics of the command line.
fn prepare(args: &Args, log: &Log, metrics: &Metrics) -> Result<(), String> {
    let logger =
        Logger { log_path: args.log_path.clone(), level: args.level, show_level: args.show_level, ..Logger::default() };
    log.update(&logger).map_err(|error| format!("--log-path: {error}"))?;
    if let Some(metrics_path) = args.metrics_path.clone() {
        let config = MetricsConfig { metrics_path, emit_id: false, properties: None };
        metrics.init(&config, args.id.as_str()).map_err(|error| format!("--metrics-path: {error}"))?;
    }
    if !args.without_effect.is_empty() {
        log.info(&format!("Accepted, without effect: {}", args.without_effect.join(", ")));
    }
    Ok(())
}

/// Boots what the configuration file says, then serves the API.
fn work(args: &Args, api: Option<&OwnSocket>, vmm: &Arc<Vmm>) -> Result<(), (u8, String)> {
    if let Some(path) = &args.config_file {
        let bad = |error: String| (BAD_CONFIGURATION, format!("{}: {error}", path.display()));
        let config = read_config(path).map_err(bad)?;
        vmm.configure(config).map_err(|fault| bad(fault.to_string()))?;
        vmm.start(&mut vmm.state()).map_err(|fault| (GENERIC_ERROR, fault.to_string()))?;
    }
    if let Some(socket) = api {
        serve::serve(socket, vmm, args.max_body);
    }
    Ok(())
}

fn read_config(path: &std::path::Path) -> Result<VmConfig, String> {
    const MAX: u64 = 1 << 20;
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX + 1), &mut text)
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX {
        return Err("the configuration is larger than 1 MiB".to_owned());
    }
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err("the configuration is not a JSON object".to_owned());
    }
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

/// How the process ends.
struct Ended {
    code: u8,
    why: Option<String>,
}

/// Starts QEMU when that is ordered, and waits for the end.
fn supervise(events: &Receiver<Event>, sender: &Sender<Event>) -> Ended {
    let mut qemu: Option<OwnedFd> = None;
    loop {
        match events.recv() {
            Ok(Event::Order(order)) => qemu = order.fulfil(sender),
            Ok(Event::Signal(number)) => {
                if let Some(pidfd) = &qemu {
                    end(pidfd, events);
                }
                let code = u8::try_from(128 + number).unwrap_or(GENERIC_ERROR);
                return Ended { code, why: Some(format!("ended by signal {number}")) };
            }
            // A boot that failed is told to who asked for it, and can be tried again.
            Ok(Event::Ended(_, false)) => qemu = None,
            Ok(Event::Ended(status, true)) if status.success() => return Ended { code: 0, why: None },
            Ok(Event::Ended(status, true)) => {
                return Ended { code: GENERIC_ERROR, why: Some(format!("QEMU ended with {status}")) };
            }
            Ok(Event::GivenUp(code, message)) => {
                if let Some(pidfd) = &qemu {
                    end(pidfd, events);
                }
                return Ended { code, why: Some(message) };
            }
            Err(_) => return Ended { code: GENERIC_ERROR, why: None },
        }
    }
}

/// Tells QEMU to end, waits, and kills it where it doesn't.
fn end(qemu: &OwnedFd, events: &Receiver<Event>) {
    let until = Instant::now() + ENDING_PATIENCE;
    // Either fails only if it is gone.
    let _ = rustix::process::pidfd_send_signal(qemu, Signal::TERM);
    while let Ok(event) = events.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if matches!(event, Event::Ended(..)) {
            return;
        }
    }
    let _ = rustix::process::pidfd_send_signal(qemu, Signal::KILL);
    while events.recv_timeout(ENDING_PATIENCE).is_ok_and(|event| !matches!(event, Event::Ended(..))) {}
}

/// The last line of metrics, the sockets' names, the terminal as it was.
fn finish(ended: Ended, vmm: &Vmm, api: Option<Arc<OwnSocket>>, terminal: Option<Termios>) -> ExitCode {
    if let Some(terminal) = terminal {
        // QEMU makes the terminal raw, and may have had no chance to undo it.
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &terminal);
    }
    if let Err(error) = vmm.metrics().flush() {
        vmm.log().error(&format!("The last metrics are lost: {error}"));
    }
    if let Some(why) = &ended.why {
        vmm.log().error(why);
        if ended.code == GENERIC_ERROR || ended.code >= BAD_CONFIGURATION {
            eprintln!("banger-qemu: {why}");
        }
    }
    *vmm.state() = vmm::State::Before(Box::default());
    if let Some(api) = api {
        api.unlink();
    }
    vmm.log().info(&format!("banger-qemu exits. exit_code={}", ended.code));
    ExitCode::from(ended.code)
}

fn give_up(code: u8, message: &str) -> ExitCode {
    eprintln!("banger-qemu: {message}");
    ExitCode::from(code)
}
