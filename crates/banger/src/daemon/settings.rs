//! What `bangerd` is told by its command line: places, the helper's socket, the bridge.

use super::error::exit;
use super::vm::disk::Method;
use super::vmm::Wanted;
use crate::api::Fault;
use crate::config::{Config, SyncedFile};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;
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
    /// Which VMM is wanted.
    pub vmm: Wanted,
    /// The jailer that is wanted, where it is there.
    pub jailer: Option<PathBuf>,
    /// The directory of jails, below the state directory.
    pub jails: PathBuf,
    /// How disks are made of images; `None`: by what works here.
    pub disk: Option<Method>,
    /// What every VM gets when it starts.
    pub synced: Vec<SyncedFile>,
    /// When a VM that nothing uses is stopped.
    pub stale: Stale,
}

/// When a VM that nothing uses is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// After so long; `None`: never.
    pub after: Option<Duration>,
    /// How often it is looked at.
    pub look: Duration,
}

impl Stale {
    /// As it is configured.
    pub fn of(config: &Config) -> Stale {
        let look = config.stats_poll_interval.unwrap_or(Duration::from_secs(10));
        Stale { after: config.auto_stop_stale_after, look }
    }
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
        let (vmm, jails, stale) = (Wanted::default(), state.join("jail"), Stale::of(&Config::default()));
        Settings {
            state,
            runtime,
            socket,
            helper,
            bridge,
            image: None,
            resolver: None,
            templates,
            agent,
            files: None,
            vmm,
            jailer: None,
            jails,
            disk: None,
            synced: Vec::new(),
            stale,
        }
    }

    /// The directory of jails that is configured, or `jail` in the state directory, below which the root helper makes them.
    ///
    /// # Errors
    /// `bad_config`: one that is elsewhere.
    pub fn jails(config: &Config, state: &Path) -> Result<PathBuf, Fault> {
        let jails = config.jailer_chroot_base.clone().unwrap_or_else(|| state.join("jail"));
        if jails.starts_with(state) && jails != state {
            return Ok(jails);
        }
        let message = format!("jailer_chroot_base can't be {}", jails.display());
        Err(Fault::new("bad_config", exit::USAGE, message)
            .why("the root helper makes jails below the owner's state directory alone")
            .fix(format!("jailer_chroot_base: a directory below {}", state.display())))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jails_are_below_the_state() {
        let jails = |text: &str| {
            let config = Config { jailer_chroot_base: Some(text.into()), ..Config::default() };
            Settings::jails(&config, Path::new("/s"))
        };
        assert_eq!(jails("/s/j/k"), Ok("/s/j/k".into()));
        assert_eq!(Settings::jails(&Config::default(), Path::new("/s")), Ok("/s/jail".into()));
        for bad in ["/s", "/srv/jailer", "/"] {
            assert_eq!(jails(bad).unwrap_err().code, "bad_config", "{bad}");
        }
    }
}
