//! `vm ssh`: plain ssh, with the settings that the daemon keeps for its VMs, and the way there.

use super::Status;
use crate::api::Request;
use crate::api::ssh::Way;
use crate::cli::config;
use crate::cli::problem::Problem;
use crate::cli::reach::Reach;
use clap::{ArgAction, Args, ValueEnum};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;

#[derive(Args)]
pub(crate) struct Ssh {
    /// Let the guest use this machine's ssh agent.
    #[arg(short = 'A')]
    forward_agent: bool,
    /// These two without their short forms, which behind the name are ssh's.
    #[arg(long, hide = true, action = ArgAction::Count)]
    verbose: u8,
    #[arg(long, hide = true)]
    quiet: bool,
    /// Which way to go [default: auto].
    #[arg(long, value_name = "WAY", value_enum)]
    via: Option<Via>,
    /// The VM: its name, or 4 or more digits of its id.
    name: String,
    /// What ssh takes behind a host: options as -v, -l USER, -L 8000:localhost:8000, then a command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "SSH-ARG")]
    words: Vec<OsString>,
    #[command(flatten)]
    reach: Reach,
}

/// The way into a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// The network, where this machine is on the VMs' bridge; else the agent.
    Auto,
    /// The VM's address.
    Network,
    /// The VM's agent, whatever its network does.
    Agent,
}

/// Becomes ssh. It returns only where it can't.
pub(super) fn ssh(ssh: &Ssh) -> Result<Status, Problem> {
    let way: Way = ssh.reach.ask(Request::VmSsh { name: ssh.name.clone() })?;
    let configured = || Via::from_str(config().ssh_via.as_deref()?, false).ok();
    let network = match ssh.via.or_else(configured).unwrap_or(Via::Auto) {
        Via::Auto => is_reached(way.address, way.bridge),
        Via::Network => true,
        Via::Agent => false,
    };
    let mut command = Command::new("ssh");
    command.arg("-F").arg(&way.config);
    if network {
        let (name, key) = (format!("HostName={}", way.address), format!("HostKeyAlias={}", way.host));
        command.args(["-o", &name, "-o", &key, "-o", "ProxyCommand=none"]);
    }
    if ssh.forward_agent {
        command.args(["-o", "ForwardAgent=yes", "-o", "IdentityAgent=SSH_AUTH_SOCK"]);
    }
    let error = command.arg(&way.host).args(&ssh.words).exec();
    Err(match error.kind() {
        ErrorKind::NotFound => {
            Problem::machine("no_ssh", "there is no program ssh here").fix("sudo apt install openssh-client")
        }
        _ => Problem::new("ssh", "ssh can't be started").why(error),
    })
}

/// Whether this machine's way to the VM is the bridge; asked of the kernel, and nothing is sent.
fn is_reached(address: Ipv4Addr, bridge: Ipv4Addr) -> bool {
    let from = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((address, 22))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == bridge)
}
