//! The ways to run: as the first process, beside another one, on a socket that somebody gave.

mod accounts;
mod boot;
mod call;
mod clock;
mod config;
mod console;
mod doorbell;
mod environment;
mod facts;
mod handover;
mod identity;
mod port;
mod process;
mod pump;
mod reap;
mod serve;
mod settings;
mod ssh;
mod tty;

use std::process::ExitCode;

use console::{say, stage};
pub(crate) use handover::WORD as HANDED_OVER;
use serve::{Role, Serve};

/// Boots the guest and serves it. What can't be helped resets the machine.
pub(crate) fn first_process() -> ! {
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("{panic}"));
        boot::reset();
    }));
    let settings = match boot::boot() {
        Ok(settings) => settings,
        Err(error) => {
            say(&error);
            boot::reset();
        }
    };
    if settings.init
        && let Err(error) = handover::hand_over()
    {
        say(&error);
        boot::reset();
    }
    let served = Serve::new(Role::First).and_then(|mut serve| {
        if let Some(command) = &settings.run {
            serve.run_program(command, settings.then);
            stage("program");
        }
        serve.find_host();
        serve.forever()
    });
    if let Err(error) = served {
        say(&format!("can't go on: {error}"));
    }
    boot::reset()
}

/// Serves calls beside the init that the first process has become.
pub(crate) fn handed_over() -> ExitCode {
    handover::await_init();
    beside(Role::HandedOver)
}

/// Serves calls in a guest whose first process is another, and has started this one.
pub(crate) fn service() -> ExitCode {
    beside(Role::Service)
}

fn beside(role: Role) -> ExitCode {
    let served = Serve::new(role).and_then(|mut serve| {
        serve.find_host();
        serve.forever()
    });
    if let Err(error) = served {
        say(&format!("can't go on: {error}"));
    }
    ExitCode::FAILURE
}

/// Whether the standard input is a connection.
pub(crate) fn is_called() -> bool {
    let stat = rustix::fs::fstat(rustix::stdio::stdin());
    stat.is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_socket())
}

/// Serves the one call on the standard input; where that listens, all that come. `ours`: the machine's clock, names and
/// network may be set.
pub(crate) fn called(ours: bool) -> ExitCode {
    let served = Serve::new(Role::Called { ours }).and_then(|mut serve| {
        let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        let null = std::fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        if rustix::net::sockopt::socket_acceptconn(&socket)? {
            serve.listen_on(socket)?;
            return serve.forever();
        }
        serve.add_connection(socket)?;
        serve.until_idle()
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("can't go on: {error}"));
            ExitCode::FAILURE
        }
    }
}
