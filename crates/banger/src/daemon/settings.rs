//! What `bangerd` is told by its command line: places, the helper's socket, the bridge.

use super::error::exit;
use crate::api::Fault;
use crate::config::Config;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use wire::name::addr::BridgeAddr;
use wire::name::link::BridgeName;
use wire::net::Bridge;
use wire::path::Roots;

/// Where the owner's disks, images and store are.
pub const STATE: &str = "/var/lib/banger";
/// Where the owner's sockets are.
pub const RUNTIME: &str = "/run/banger";
/// The daemon's socket.
pub const SOCKET: &str = "/run/banger/bangerd.sock";

/// All of it, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The state directory.
    pub state: PathBuf,
    /// The runtime directory.
    pub runtime: PathBuf,
    /// The socket that callers connect to.
    pub socket: PathBuf,
    /// The root helper's socket.
    pub helper: PathBuf,
    /// The bridge that all VMs are on.
    pub bridge: Bridge,
    /// The image of a VM that names none; `None`: this machine's Debian.
    pub image: Option<String>,
    /// The resolver that guests are told; `None`: the machine's own.
    pub resolver: Option<Ipv4Addr>,
    /// Templates: whether they are made unasked, and how many there may be.
    pub templates: TemplateBounds,
    /// The guest's agent, a static program.
    pub agent: PathBuf,
    /// The files of an image that is not in the index.
    pub files: Option<ImageFiles>,
}

/// What templates may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemplateBounds {
    /// Whether a run leaves one behind unasked.
    pub unasked: bool,
    /// The most of them.
    pub count: usize,
    /// The bytes that they may take on the disk together.
    pub bytes: u64,
}

impl TemplateBounds {
    /// Those that are configured, or 8 of 4 GiB together: an image of Debian with 512 MiB of memory takes some 400 MiB.
    pub fn of(config: &Config) -> TemplateBounds {
        TemplateBounds {
            unasked: config.templates.as_deref() != Some("off"),
            count: config.template_count.unwrap_or(8).into(),
            bytes: config.template_mib.unwrap_or(4 << 10) << 20,
        }
    }
}

/// An image given by three files, all below the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFiles {
    /// An ext4 image; never written.
    pub root: PathBuf,
    /// An uncompressed kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk with the agent.
    pub initrd: PathBuf,
}

impl Settings {
    /// The places as the helper's requests check them.
    pub fn roots(&self) -> Roots {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Roots { state: text(&self.state), runtime: text(&self.runtime) }
    }

    #[cfg(test)]
    pub(crate) fn of_test() -> Settings {
        let [state, runtime, socket, helper, agent] = ["/s", "/r", "/r/s", "/h", "/x"].map(PathBuf::from);
        let bridge = Settings::bridge(&Config::default()).unwrap_or_else(|fault| panic!("{}", fault.message));
        let templates = TemplateBounds::of(&Config::default());
        Settings { state, runtime, socket, helper, bridge, image: None, resolver: None, templates, agent, files: None }
    }

    /// The bridge that is configured, or `br-fc` with 172.16.0.1/24.
    ///
    /// # Errors
    /// `bad_config`: an address and a prefix that don't go together.
    pub fn bridge(config: &Config) -> Result<Bridge, Fault> {
        let name = match &config.bridge_name {
            Some(name) => name.clone(),
            None => BridgeName::new("br-fc").map_err(Fault::bug)?,
        };
        let ip = config.bridge_ip.map_or("172.16.0.1".to_owned(), |ip| ip.to_string());
        let prefix = config.cidr.unwrap_or(24).to_string();
        let addr = BridgeAddr::new(&ip, &prefix).map_err(|error| {
            Fault::new("bad_config", exit::USAGE, "bridge_ip and cidr don't go together")
                .why(error)
                .fix("banger config show says where they are from")
        })?;
        Ok(Bridge { name, addr })
    }
}
