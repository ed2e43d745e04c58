//! The three ways to run: as the first process, as a service, for one call.

mod boot;
mod call;
mod config;
mod console;
mod doorbell;
mod port;
mod process;
mod pump;
mod serve;
mod settings;

use std::process::ExitCode;

use console::{say, stage};
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

/// Serves calls in a guest whose first process is another.
pub(crate) fn service() -> ExitCode {
    let served = Serve::new(Role::Service).and_then(|mut serve| {
        serve.find_host();
        serve.forever()
    });
    if let Err(error) = served {
        say(&format!("can't go on: {error}"));
    }
    ExitCode::FAILURE
}

/// Serves the one call on the standard input.
pub(crate) fn one_call() -> ExitCode {
    let served = Serve::new(Role::OneCall).and_then(|mut serve| {
        let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        let null = std::fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
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
