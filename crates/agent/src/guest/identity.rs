//! What makes a machine that was loaded from a template another one: clock, randomness, names, interface. All of it by
//! system calls; no program is started for it.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use agent::protocol::{ErrorBody, Interface, OwnFile, Start};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use sys::guest::Link;

use super::boot;
use super::call::failed;
use super::clock::Came;
use super::config;

/// Where the files of a machine's identity lie while its root may not be written: in memory.
const PLACE: &str = "/run/banger";
/// Those files; a host may name more.
const FILES: [&str; 3] = ["/etc/hostname", "/etc/machine-id", "/etc/resolv.conf"];
/// The boot's id, in memory as well, and where the kernel shows it.
const BOOT_ID: (&str, &str) = ("/run/banger/boot-id", "/proc/sys/kernel/random/boot_id");

/// Puts the files of the identity into memory, over those of the disk: what is written to a template's disk for the first
/// time after a load costs a journal's work. To be done before a machine is saved.
///
/// # Errors
/// The ERROR that answers.
pub(super) fn prepare(more: &[String]) -> Result<(), ErrorBody> {
    if !more.iter().all(|path| is_plain(path)) {
        return Err(wrong("files"));
    }
    make_place().map_err(at("place"))?;
    // It is up when the machine is loaded, which spares that a third of its network's time. Without an address it says nothing.
    let _ = Link::new(boot::DEVICE).and_then(|link| link.up());
    for (nth, path) in FILES.into_iter().chain(more.iter().map(String::as_str)).enumerate() {
        cover(&format!("{PLACE}/{nth}"), path).map_err(at("files"))?;
    }
    let (memory, shown) = BOOT_ID;
    std::fs::copy(shown, memory).and_then(|_| Ok(mount_bind(memory, shown)?)).map_err(at("boot"))
}

/// Lays a file in memory over one of the disk, where that is there or can be made. What the template has stays, until there
/// is an identity.
fn cover(memory: &str, disk: &str) -> io::Result<()> {
    let held = std::fs::read(disk);
    if held.is_err() && File::options().create(true).append(true).open(disk).is_err() {
        return Ok(());
    }
    std::fs::write(memory, held.unwrap_or_default())?;
    std::fs::set_permissions(memory, std::fs::metadata(disk)?.permissions())?;
    Ok(mount_bind(memory, disk)?)
}

/// Becomes the machine that `start` describes, which `came`; a template that was loaded gets a boot of its own as well.
///
/// # Errors
/// The ERROR that answers: what is wrong with the request, before anything was done, or the step that failed.
pub(super) fn take(start: &Start, armed: bool, came: Came) -> Result<(), ErrorBody> {
    let told = came.with(start.unix_ns);
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
    for file in &start.files {
        put(file).map_err(at("files"))?;
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
        if start.files.iter().any(|file| !is_plain(&file.path) || file.mode > 0o777) {
            return Err(wrong("files"));
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
    let link = Link::new(&interface.device)?;
    if let Some(mac) = network.mac {
        match link.set_mac(mac) {
            // A driver that wants it down for that.
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                link.down()?;
                link.set_mac(mac)?;
            }
            done => done?,
        }
    }
    link.set_address(network.address, network.mask)?;
    link.up()?;
    match interface.gateway.map(|gateway| link.default_route(gateway)) {
        // A machine that was not armed has it already.
        Some(Err(error)) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The kernel gives its boot one id, which a template's VMs would share. A new one is a random UUID, RFC 9562, 5.4.
fn renew_boot() -> io::Result<()> {
    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let digits = format!("{:032x}", u128::from_be_bytes(random));
    let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
    std::fs::write(BOOT_ID.0, format!("{a}-{b}-{c}-{d}-{e}\n"))
}

/// Names no other file than it says.
fn is_plain(path: &str) -> bool {
    path.starts_with('/') && path.len() < 4096 && !path.split('/').skip(1).any(|part| matches!(part, "" | "." | ".."))
}

/// Writes a file, in memory where the agent was armed for it and the disk needs none. Nobody reads it meanwhile: no program
/// runs yet.
fn put(file: &OwnFile) -> io::Result<()> {
    let path = Path::new(&file.path);
    if file.lasting {
        // Nothing lies over one that the agent was not armed for.
        let _ = unmount(path, UnmountFlags::DETACH);
    }
    let mut open = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    if open.metadata()?.permissions().mode() & 0o777 != file.mode {
        open.set_permissions(Permissions::from_mode(file.mode))?;
    }
    open.write_all(file.text.as_bytes())
}

fn make_place() -> io::Result<()> {
    match std::fs::create_dir(PLACE) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Through the mount over it, where there is one. A root that can't be written and has no such file has none to be wrong.
fn write(name: &'static str, text: &str) -> Result<(), ErrorBody> {
    match std::fs::write(format!("/etc/{name}"), format!("{text}\n")) {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => Ok(()),
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
        let file = |path: &str, mode| OwnFile { path: path.into(), mode, text: String::new(), lasting: false };
        for wrong in [file("etc/hosts", 0o644), file("/etc/../x", 0o644), file("/etc//x", 0o644), file("/x", 0o4755)] {
            assert_eq!(Wanted::check(&Start { files: vec![wrong], ..start() }).unwrap_err().step, "files");
        }
        let good = Start { network: network("06:00:ac:10:00:02", "172.16.0.2/24"), ..start() };
        assert_eq!(Wanted::check(&good).unwrap().network.unwrap().mac, Some([6, 0, 172, 16, 0, 2]));
    }
}
