//! What a client of ssh's is told.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// The result of `vm.ssh`: the way into a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// What ssh calls it: `web.vm`.
    pub host: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// This machine's own address, where it has a way to that one.
    pub bridge: Ipv4Addr,
    /// As in [`Config`].
    pub config: PathBuf,
}

/// The result of `ssh.config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The file with ssh's settings for `*.vm`: keys, known hosts, the way through the agent.
    pub config: PathBuf,
}
