//! `bangerd`, the owner's daemon: it knows VMs, images, kernels and addresses, and has the root helper do what needs root.
//!
//! Calls go down: `serve` reads one, `ops` chooses, `vm` and `image` act, by the store and the helper. Nothing calls up.

pub mod addresses;
pub mod ahead;
pub mod aside;
pub mod calls;
mod end;
pub mod error;
pub(crate) mod guest;
pub mod image;
pub mod log;
pub mod names;
pub mod ops;
mod reconcile;
pub mod serve;
pub mod settings;
pub mod ssh;
pub mod start;
pub mod store;
mod trace;
pub mod vm;
pub mod vmm;

use crate::root;
use settings::Settings;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use store::Store;
use vm::slots::Slots;
use vmm::Choice;
use wire::client::Client;

/// How long the helper may take for a call: a launch under emulation on a busy machine is the longest.
const HELPER: Duration = Duration::from_secs(120);

/// All that calls share.
pub struct Daemon {
    /// Where things are, and what was configured.
    pub settings: Settings,
    /// What is known.
    pub store: Store,
    /// Images and kernels.
    pub images: image::Images,
    /// ssh's keys.
    pub ssh: ssh::Ssh,
    /// What is going on with VMs.
    pub slots: Arc<Slots>,
    /// What the end waits for.
    pub calls: Arc<calls::Calls>,
    /// Takes the ids of VMs of which something could not be taken away: it is tried again.
    pub lost: Sender<String>,
    /// The VMM of this machine, once it was looked for.
    pub vmm: OnceLock<Choice>,
    /// What the next VM needs.
    pub ahead: ahead::Ahead,
    /// Files of VMs that are gone.
    pub aside: aside::Aside,
    /// When consoles' bytes come.
    pub stamps: Arc<vm::stamps::Stamps>,
    /// VMs that nobody has yet.
    pub(crate) pool: vm::pool::Pool,
    /// Ports of guests that are listened for here.
    pub published: vm::publish::Published,
    /// Where the names of VMs are answered for, where they are.
    pub names: OnceLock<SocketAddr>,
}

impl Daemon {
    /// A client of the root helper; each of its calls carries the operation's id.
    pub fn helper(&self, op_id: &str) -> Client<impl Fn() -> io::Result<root::Stream> + use<'_>> {
        root::client(&self.settings.helper, HELPER).op_id(op_id).told(trace::note)
    }
}
