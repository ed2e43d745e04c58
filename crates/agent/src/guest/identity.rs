//! What makes a machine that was loaded from a template another one: clock, randomness, names, interface. All of it by
//! system calls; no program is started for it.

use std::io;
use std::net::Ipv4Addr;

use agent::protocol::{ErrorBody, Interface, Start};
use rustix::mount::mount_bind;

use super::boot;
use super::call::failed;
use super::clock::Told;
use super::config;

/// Where the files of a machine's identity lie while its root may not be written: in memory.
const PLACE: &str = "/run/banger";
/// Those files.
const FILES: [&str; 3] = ["hostname", "machine-id", "resolv.conf"];

/// Puts the files of the identity into memory, over those of the disk: what is written to a template's disk for the first
/// time after a load costs a journal's work. To be done before a machine is saved.
///
/// # Errors
/// The ERROR that answers.
pub(super) fn prepare() -> Result<(), ErrorBody> {
    make_place().map_err(at("place"))?;
    for name in FILES {
        let (memory, disk) = (format!("{PLACE}/{name}"), format!("/etc/{name}"));
        // What the template has stays, until there is an identity.
        std::fs::write(&memory, std::fs::read(&disk).unwrap_or_default()).map_err(at(name))?;
        let made = std::fs::File::options().create(true).append(true).open(&disk).is_ok();
        if made || std::fs::exists(&disk).is_ok_and(|there| there) {
            mount_bind(&memory, &disk).map_err(|error| failed("failed", name, error.raw_os_error()))?;
        }
    }
    Ok(())
}

/// Becomes the machine that `start` describes; a template that was loaded gets a boot of its own as well.
///
/// # Errors
/// The ERROR that answers: what is wrong with the request, before anything was done, or the step that failed.
pub(super) fn take(start: &Start, armed: bool) -> Result<(), ErrorBody> {
    let told = Told::now(start.unix_ns);
    let wanted = Wanted::check(start)?;
    told.set()?;
    sys::entropy::reseed(wanted.entropy).map_err(at("entropy"))?;
    if armed {
        renew_boot().map_err(at("boot"))?;
    }
    if let Some(name) = &start.hostname {
        rustix::system::sethostname(name.as_bytes()).map_err(|error| at("hostname")(error.into()))?;
        write("hostname", name)?;
    }
    if let Some(id) = &start.machine_id {
        write("machine-id", id)?;
    }
    if let Some((interface, network)) = start.network.as_ref().zip(wanted.network) {
        set_interface(interface, &network).map_err(at("network"))?;
    }
    if !start.resolver.is_empty() {
        boot::write_resolvers(&start.resolver).map_err(at("resolver"))?;
    }
    // The first setting of a clock takes its time in a machine that has just been loaded; a second one is exact.
    told.set()
}

/// Adds 64 bytes of the host's randomness.
///
/// # Errors
/// The ERROR that answers.
pub(super) fn add_entropy(hex: &str) -> Result<(), ErrorBody> {
    let bytes = unhex(hex).ok_or_else(|| wrong("entropy"))?;
    sys::entropy::reseed(bytes).map_err(at("entropy"))
}

/// The parts of a request that are more than text.
#[derive(Debug)]
struct Wanted {
    entropy: [u8; 64],
    network: Option<Network>,
}

#[derive(Debug)]
struct Network {
    mac: Option<[u8; 6]>,
    address: Ipv4Addr,
    mask: Ipv4Addr,
}

impl Wanted {
    fn check(start: &Start) -> Result<Self, ErrorBody> {
        let entropy = unhex(&start.entropy).ok_or_else(|| wrong("entropy"))?;
        if start.hostname.as_ref().is_some_and(|name| !config::is_hostname(name)) {
            return Err(wrong("hostname"));
        }
        if start.machine_id.as_ref().is_some_and(|id| unhex::<16>(id).is_none()) {
            return Err(wrong("machine-id"));
        }
        let network = match &start.network {
            Some(interface) => Some(network_of(interface).ok_or_else(|| wrong("network"))?),
            None => None,
        };
        Ok(Self { entropy, network })
    }
}

fn network_of(interface: &Interface) -> Option<Network> {
    let (address, mask) = config::address(&interface.address)?;
    let mac = match &interface.mac {
        Some(text) if text.len() == 17 => Some(unhex(&text.replace(':', ""))?),
        Some(_) => return None,
        None => None,
    };
    Some(Network { mac, address, mask })
}

fn set_interface(interface: &Interface, network: &Network) -> io::Result<()> {
    let device = interface.device.as_str();
    if let Some(mac) = network.mac {
        sys::guest::link_down(device)?;
        sys::guest::set_mac(device, mac)?;
    }
    sys::guest::set_address(device, network.address, network.mask)?;
    sys::guest::link_up(device)?;
    match interface.gateway.map(sys::guest::default_route) {
        // A machine that was not armed has it already.
        Some(Err(error)) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The kernel gives its boot one id, which a template's VMs would share.
fn renew_boot() -> io::Result<()> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let file = format!("{PLACE}/boot-id");
    std::fs::write(&file, id)?;
    Ok(mount_bind(&file, "/proc/sys/kernel/random/boot_id")?)
}

fn make_place() -> io::Result<()> {
    match std::fs::create_dir(PLACE) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Through the mount over it, where there is one. A root that can't be written and has no such file has none to be wrong.
fn write(name: &'static str, text: &str) -> Result<(), ErrorBody> {
    match std::fs::write(format!("/etc/{name}"), format!("{text}\n")) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        done => done.map_err(at(name)),
    }
}

fn at(step: &str) -> impl FnOnce(io::Error) -> ErrorBody {
    move |error| failed("failed", step, error.raw_os_error().unwrap_or(0))
}

fn wrong(step: &str) -> ErrorBody {
    failed("failed", step, rustix::io::Errno::INVAL.raw_os_error())
}

/// Exactly so many bytes, of lower or upper case.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let mut out = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (to, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *to = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Start {
        Start { v: 1, entropy: "0f".repeat(64), ..Start::default() }
    }

    fn refused(change: fn(&mut Start)) -> String {
        let mut start = start();
        change(&mut start);
        Wanted::check(&start).unwrap_err().step
    }

    #[test]
    fn what_is_wrong_is_named_before_anything_is_done() {
        assert_eq!(Wanted::check(&start()).unwrap().entropy, [15; 64]);
        assert_eq!(refused(|s| s.entropy = "0f".repeat(63)), "entropy");
        assert_eq!(refused(|s| s.entropy = "xx".repeat(64)), "entropy");
        assert_eq!(refused(|s| s.hostname = Some("a b".into())), "hostname");
        assert_eq!(refused(|s| s.machine_id = Some("0f".into())), "machine-id");
        fn network(mac: &str, address: &str) -> Option<Interface> {
            Some(Interface { device: "eth0".into(), mac: Some(mac.into()), address: address.into(), gateway: None })
        }
        assert_eq!(refused(|s| s.network = network("06:00:ac:10:00:0", "172.16.0.2/24")), "network");
        assert_eq!(refused(|s| s.network = network("06:00:ac:10:00:02", "172.16.0.2")), "network");
        let good = Start { network: network("06:00:ac:10:00:02", "172.16.0.2/24"), ..start() };
        assert_eq!(Wanted::check(&good).unwrap().network.unwrap().mac, Some([6, 0, 172, 16, 0, 2]));
    }
}
