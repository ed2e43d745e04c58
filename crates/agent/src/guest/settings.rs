//! What the kernel's command line says to the agent.

use std::net::Ipv4Addr;

/// What to do when the program of `banger.run=` has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Then {
    /// Go on serving calls.
    #[default]
    Stay,
    /// End the machine.
    Poweroff,
}

/// The network's settings, from the command line or from the root's own file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Network {
    pub(super) hostname: Option<String>,
    pub(super) address: Option<(Ipv4Addr, Ipv4Addr)>,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) device: Option<String>,
}

/// All of the command line that concerns the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) root: String,
    pub(super) root_type: String,
    pub(super) read_only: bool,
    pub(super) network: Network,
    pub(super) run: Option<String>,
    pub(super) then: Then,
    pub(super) stages: bool,
    pub(super) grow: bool,
    /// The distribution's own init is to be the first process.
    pub(super) init: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root: "/dev/vda".into(),
            root_type: "ext4".into(),
            read_only: false,
            network: Network::default(),
            run: None,
            then: Then::default(),
            stages: false,
            grow: false,
            init: false,
        }
    }
}

impl Settings {
    /// Reads a command line; of an argument that stands twice, the later counts. Also what it couldn't read of ours.
    pub(super) fn read(cmdline: &str) -> (Self, Vec<String>) {
        let (mut out, mut faults) = (Self::default(), Vec::new());
        for argument in arguments(cmdline) {
            let (key, value) = argument.split_once('=').unwrap_or((&argument, ""));
            match (key, value) {
                ("root", device) if device.starts_with('/') => out.root = device.into(),
                ("rootfstype", kind) => out.root_type = kind.into(),
                ("ro", "") => out.read_only = true,
                ("rw", "") => out.read_only = false,
                ("ip", text) => match network(text) {
                    Some(network) => out.network = network,
                    None => faults.push(argument.clone()),
                },
                ("banger.run", command) => out.run = Some(command.into()),
                ("banger.then", "poweroff") => out.then = Then::Poweroff,
                ("banger.then", "stay") => out.then = Then::Stay,
                ("banger.stages", "1") => out.stages = true,
                ("banger.grow", "1") => out.grow = true,
                ("banger.init", "1") => out.init = true,
                ("root", _) => faults.push(argument.clone()),
                (other, _) if other.starts_with("banger.") => faults.push(argument.clone()),
                _ => {}
            }
        }
        (out, faults)
    }
}

/// The arguments as the kernel cuts them: at blanks outside double quotes, the quotes taken away.
fn arguments(cmdline: &str) -> Vec<String> {
    let (mut out, mut quoted, mut current) = (Vec::new(), false, String::new());
    for char in cmdline.chars() {
        match char {
            '"' => quoted = !quoted,
            blank if blank.is_ascii_whitespace() && !quoted => {
                if !current.is_empty() {
                    out.push(std::mem::take(&mut current));
                }
            }
            other => current.push(other),
        }
    }
    if !current.is_empty() {
        out.push(current);
    }
    out
}

/// `ADDR:SERVER:GATEWAY:MASK:HOST:DEVICE:HOW`, as the kernel's own documentation has it (nfsroot). Empty fields are
/// unset; an address without a mask is none.
fn network(text: &str) -> Option<Network> {
    let mut fields = text.split(':');
    let mut next = || fields.next().filter(|field| !field.is_empty());
    let (address, _server, gateway, mask) = (next(), next(), next(), next());
    let (hostname, device) = (next().map(String::from), next().map(String::from));
    let address = match (address, mask) {
        (None, _) => None,
        (Some(address), Some(mask)) => Some((address.parse().ok()?, mask.parse().ok()?)),
        (Some(_), None) => return None,
    };
    let gateway = match gateway {
        Some(gateway) => Some(gateway.parse().ok()?),
        None => None,
    };
    Some(Network { hostname, address, gateway, device })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_of_the_helper() {
        let line = "console=ttyS0 reboot=k panic=1 root=/dev/vda ro ip=172.16.0.2::172.16.0.1:255.255.255.0:web:eth0:off \
                    banger.run=\"echo hello; uname -r\" banger.then=poweroff banger.init=1 quiet\n";
        let (settings, faults) = Settings::read(line);
        assert_eq!(settings.run.as_deref(), Some("echo hello; uname -r"));
        assert_eq!((settings.then, settings.read_only, settings.stages), (Then::Poweroff, true, false));
        assert_eq!(settings.network.hostname.as_deref(), Some("web"));
        assert_eq!(settings.network.device.as_deref(), Some("eth0"));
        assert_eq!(settings.network.gateway, Some([172, 16, 0, 1].into()));
        assert_eq!(settings.network.address, Some(([172, 16, 0, 2].into(), [255, 255, 255, 0].into())));
        assert!(settings.init && !settings.grow && faults.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_and_the_rest_counts() {
        let (settings, faults) = Settings::read("ip=nonsense banger.then=explode banger.rum=x root=LABEL=a rw");
        assert_eq!(faults, ["ip=nonsense", "banger.then=explode", "banger.rum=x", "root=LABEL=a"]);
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn an_empty_line_is_the_default() {
        assert_eq!(Settings::read(""), (Settings::default(), Vec::new()));
        assert_eq!(Settings::read("ip=10.0.0.2::::::").1, ["ip=10.0.0.2::::::"], "no mask");
    }
}
