//! What makes a VM this one and no other: written into its disk before its first start, never into an image; told to the
//! agent where it goes on from a template.

use crate::api::Fault;
use crate::daemon::settings::Settings;
use crate::daemon::store::vms::Vm;
use agent::protocol::{Interface, OwnFile, Start};
use serde_json::json;
use std::fs;
use std::net::Ipv4Addr;
use wire::image::NewFile;
use wire::name::guest_path::GuestPath;
use wire::name::vm_id::VmId;

/// The names that a VM knows without asking.
pub(crate) const HOSTS: &str = "/etc/hosts";
/// Resolvers that a guest is told, at most.
const RESOLVERS: usize = 3;

/// The files, for one call of the helper's.
pub(crate) fn files(settings: &Settings, vm: &Vm) -> Result<Vec<NewFile>, Fault> {
    let mut files = read_at_boot(settings, vm, &machine_id()?)?;
    files.push(hosts(vm)?);
    Ok(files)
}

/// Those of them by which a boot makes the guest this VM. One that goes on from a template is told instead, and its disk has
/// a template's.
pub(crate) fn read_at_boot(settings: &Settings, vm: &Vm, machine_id: &str) -> Result<Vec<NewFile>, Fault> {
    Ok(vec![
        file("/etc/hostname", format!("{}\n", vm.name), 0o644)?,
        file("/etc/machine-id", format!("{machine_id}\n"), 0o444)?,
        guest(settings, vm)?,
    ])
}

/// What the agent reads when it boots.
pub(crate) fn guest(settings: &Settings, vm: &Vm) -> Result<NewFile, Fault> {
    let address = &settings.bridge.addr;
    let guest = json!({
        "hostname": vm.name, "address": format!("{}/{}", vm.address, address.prefix()), "gateway": address.ip(),
        "resolver": told_resolvers(settings, vm),
    });
    file("/etc/banger/guest.json", guest.to_string(), 0o644)
}

/// What a template's disk gets: nobody's name, and no address, so that its interface says nothing.
pub(crate) fn nobodys() -> Result<Vec<NewFile>, Fault> {
    Ok(vec![
        file("/etc/hostname", "banger\n".into(), 0o644)?,
        file("/etc/machine-id", String::new(), 0o444)?,
        file("/etc/banger/guest.json", "{}".into(), 0o644)?,
    ])
}

/// What the agent of a VM from a template is told, and writes, `files` among it.
pub(crate) fn start(settings: &Settings, vm: &Vm, files: Vec<NewFile>) -> Result<Start, Fault> {
    let own = |file: NewFile| {
        let text = String::from_utf8(file.data).map_err(Fault::bug)?;
        // The disk of one that stays becomes its own.
        Ok(OwnFile { path: file.path.to_string(), mode: file.mode.into(), text, lasting: vm.kept })
    };
    let bridge = &settings.bridge.addr;
    Ok(Start {
        hostname: Some(vm.name.clone()),
        machine_id: Some(machine_id()?),
        network: Some(Interface {
            device: "eth0".into(),
            mac: Some(mac(vm)?),
            address: format!("{}/{}", vm.address, bridge.prefix()),
            gateway: Some(bridge.ip()),
        }),
        resolver: told_resolvers(settings, vm),
        files: files.into_iter().map(own).collect::<Result<_, Fault>>()?,
        ..Start::default()
    })
}

/// The names that it knows without asking.
pub(crate) fn hosts(vm: &Vm) -> Result<NewFile, Fault> {
    let text = format!("127.0.0.1 localhost\n127.0.1.1 {}\n::1 localhost ip6-localhost\n", vm.name);
    file(HOSTS, text, 0o644)
}

/// The address of a VM's interface that goes on from a template. Of one that stays it is what the root helper gives it when
/// it boots, so that it is the same then, and who knows it need not learn another. Of one that doesn't, no other VM on the
/// bridge has its four last bytes; the first says that it was given here and is one machine's.
pub(crate) fn mac(vm: &Vm) -> Result<String, Fault> {
    if vm.kept {
        return VmId::new(&vm.id).map(|id| id.mac()).map_err(Fault::bug);
    }
    let [a, b, c, d] = vm.address.octets();
    Ok(format!("06:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}"))
}

fn machine_id() -> Result<String, Fault> {
    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Fault::bug(std::io::Error::from(errno)))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn file(path: &str, text: String, mode: u16) -> Result<NewFile, Fault> {
    Ok(NewFile { path: GuestPath::new(path).map_err(Fault::bug)?, data: text.into_bytes(), mode })
}

fn told_resolvers(settings: &Settings, vm: &Vm) -> Vec<Ipv4Addr> {
    match settings.resolver {
        _ if !vm.nat => Vec::new(),
        Some(address) => vec![address],
        None => resolvers(),
    }
}

/// The host's own resolvers, as far as a guest can reach them: those on the host's loopback are no guest's.
fn resolvers() -> Vec<Ipv4Addr> {
    let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let found = files.iter().map(|path| read_resolvers(&fs::read_to_string(path).unwrap_or_default()));
    found.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
}

fn read_resolvers(text: &str) -> Vec<Ipv4Addr> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = servers.filter_map(|rest| rest.trim().parse::<Ipv4Addr>().ok());
    addresses.filter(|address| !address.is_loopback() && !address.is_unspecified()).take(RESOLVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::vms::tests::planned;

    #[test]
    fn what_a_guest_reads_of_itself() {
        let files = files(&Settings::of_test(), &planned(9)).unwrap();
        let text = |path: &str| {
            let file = files.iter().find(|file| file.path.to_string() == path).unwrap();
            String::from_utf8(file.data.clone()).unwrap()
        };
        assert_eq!(text("/etc/hostname"), "vm-9\n");
        let guest: serde_json::Value = serde_json::from_str(&text("/etc/banger/guest.json")).unwrap();
        assert_eq!((&guest["address"], &guest["gateway"]), (&json!("172.16.0.9/24"), &json!("172.16.0.1")));
        assert_eq!(text("/etc/machine-id").len(), 33);
        let of_run = Vm { kept: false, ..planned(9) };
        let start = start(&Settings::of_test(), &of_run, vec![hosts(&of_run).unwrap()]).unwrap();
        let network = start.network.unwrap();
        assert_eq!((start.hostname.as_deref(), network.address.as_str()), (Some("vm-9"), "172.16.0.9/24"));
        assert_eq!(
            (network.mac.as_deref(), network.gateway),
            (Some("06:00:ac:10:00:09"), Some([172, 16, 0, 1].into()))
        );
        assert_eq!(
            (start.files[0].path.as_str(), start.files[0].text.as_str()),
            ("/etc/hosts", text("/etc/hosts").as_str())
        );
        assert_ne!(start.machine_id.unwrap(), text("/etc/machine-id").trim());
        let stays = Vm { kept: true, ..planned(9) };
        assert_eq!(mac(&stays).unwrap(), VmId::new(&stays.id).unwrap().mac(), "as when it boots");
    }

    #[test]
    fn a_resolver_on_the_hosts_loopback_is_no_guests() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver 10.0.0.1\n nameserver ::1\nnameserver 1.1.1.1 \n";
        assert_eq!(read_resolvers(text), [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(1, 1, 1, 1)]);
    }
}
