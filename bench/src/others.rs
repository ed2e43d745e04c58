//! A guest's network against netavark's and against the CNI plugins bridge and host-local, as Debian packs them.
//!
//! They end in a veth in a container's namespace, we in a tap; bridge, address, masquerade are the same. The namespace
//! is made outside the time.

use crate::stats::{Times, compare, head};
use crate::world::{Helper, SOCKET, run};
use anyhow::{Context, Result, ensure};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use wire::client::Client;
use wire::name::addr::{BridgeAddr, GuestAddr};
use wire::name::link::{BridgeName, TapName};
use wire::net::{Bridge, Nat, NewTap, Switch};

const NETAVARK: &str = "/usr/lib/podman/netavark";
const CNI: &str = "/usr/lib/cni";

/// A way to give a guest its network, and to take it away: whole, or without a way out.
trait Network {
    fn add(&self, guest: u8, way_out: bool) -> Result<()>;
    fn remove(&self, guest: u8, way_out: bool) -> Result<()>;
    /// The bridge goes, so that the next guest is the first.
    fn forget_bridge(&self) -> Result<()>;
}

struct Ours<F>(Client<F>);

impl<S: std::io::Read + std::io::Write, F: Fn() -> std::io::Result<S>> Ours<F> {
    fn nat(guest: u8, switch: Switch) -> Result<Nat> {
        Ok(Nat { guest: GuestAddr::new(&format!("172.23.0.{guest}"))?, tap: tap(guest)?, switch })
    }
}

fn tap(guest: u8) -> Result<TapName> {
    Ok(TapName::new(&format!("tap-fc-o{guest}"))?)
}

impl<S: std::io::Read + std::io::Write, F: Fn() -> std::io::Result<S>> Network for Ours<F> {
    fn add(&self, guest: u8, way_out: bool) -> Result<()> {
        let bridge = Bridge { name: BridgeName::new("br-fc-other")?, addr: BridgeAddr::new("172.23.0.1", "24")? };
        self.0.ensure_bridge(&bridge)?;
        self.0.create_tap(&NewTap { bridge, tap: tap(guest)? })?;
        if way_out { Ok(self.0.ensure_nat(&Self::nat(guest, Switch::On)?)?) } else { Ok(()) }
    }

    fn remove(&self, guest: u8, way_out: bool) -> Result<()> {
        if way_out {
            self.0.ensure_nat(&Self::nat(guest, Switch::Off)?)?;
        }
        Ok(self.0.delete_tap(&tap(guest)?)?)
    }

    fn forget_bridge(&self) -> Result<()> {
        run("ip link del br-fc-other")
    }
}

struct Netavark;

impl Netavark {
    fn run(&self, what: &str, guest: u8, way_out: bool) -> Result<()> {
        let (name, subnet) = if way_out { ("na0", "10.88.0") } else { ("na1", "10.89.0") };
        let id = format!("{:064x}", u16::from(guest) + if way_out { 0 } else { 256 });
        let asked = format!(
            r#"{{"container_id":"{id}","container_name":"g{guest}","networks":{{"{name}":{{"interface_name":"eth0","static_ips":["{subnet}.{guest}"]}}}},"network_info":{{"{name}":{{"name":"{name}","id":"{id}","driver":"bridge","network_interface":"{name}","subnets":[{{"subnet":"{subnet}.0/24","gateway":"{subnet}.1"}}],"ipv6_enabled":false,"internal":{},"dns_enabled":false,"ipam_options":{{"driver":"host-local"}}}}}}}}"#,
            !way_out
        );
        let mut command = Command::new(NETAVARK);
        command.args(["--config", "/run/netavark", what, &format!("/run/netns/g{guest}")]);
        feed(&mut command, &asked)
    }
}

impl Network for Netavark {
    fn add(&self, guest: u8, way_out: bool) -> Result<()> {
        self.run("setup", guest, way_out)
    }

    fn remove(&self, guest: u8, way_out: bool) -> Result<()> {
        self.run("teardown", guest, way_out)
    }

    fn forget_bridge(&self) -> Result<()> {
        // It takes its bridge away with the last container.
        Ok(())
    }
}

struct Plugins;

impl Plugins {
    fn run(&self, what: &str, guest: u8, way_out: bool) -> Result<()> {
        let ipam = r#"{"type":"host-local","dataDir":"/run/cni","ranges":[[{"subnet":"10.90.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}"#;
        let (bridge, more) = if way_out {
            ("cni0", format!(r#""isGateway":true,"ipMasq":true,"ipam":{ipam}"#))
        } else {
            ("cni1", r#""ipam":{}"#.to_owned())
        };
        let asked = format!(r#"{{"cniVersion":"0.4.0","name":"{bridge}","type":"bridge","bridge":"{bridge}",{more}}}"#);
        let mut command = Command::new(format!("{CNI}/bridge"));
        command.env("CNI_COMMAND", what).env("CNI_CONTAINERID", format!("g{guest}")).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", format!("/run/netns/g{guest}")).env("CNI_PATH", CNI);
        feed(&mut command, &asked)
    }
}

impl Network for Plugins {
    fn add(&self, guest: u8, way_out: bool) -> Result<()> {
        self.run("ADD", guest, way_out)
    }

    fn remove(&self, guest: u8, way_out: bool) -> Result<()> {
        self.run("DEL", guest, way_out)
    }

    fn forget_bridge(&self) -> Result<()> {
        run("ip link del cni0")
    }
}

/// Runs a program that is told on its standard input what to do.
fn feed(command: &mut Command, text: &str) -> Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

/// The first guest and its bridge, the next one, its end, one without a way out and its end, the last one's end.
#[derive(Default)]
struct Row([Times; 6]);

impl Row {
    fn round(&mut self, network: &dyn Network) -> Result<()> {
        let [first, next, gone, fenced, unfenced, last] = &mut self.0;
        first.take(|| network.add(2, true))?;
        next.take(|| network.add(3, true))?;
        gone.take(|| network.remove(3, true))?;
        fenced.take(|| network.add(4, false))?;
        unfenced.take(|| network.remove(4, false))?;
        last.take(|| network.remove(2, true))?;
        network.forget_bridge()
    }
}

const ROWS: [&str; 6] = [
    "the first guest: ensure_bridge (new), create_tap, ensure_nat",
    "the next guest: ensure_bridge (there), create_tap, ensure_nat",
    "its end: ensure_nat off, delete_tap",
    "a guest without a way out: ensure_bridge (there), create_tap",
    "its end: delete_tap",
    "the last guest's end: ensure_nat off, delete_tap",
];

pub(crate) fn measure(rounds: usize) -> Result<()> {
    let _helper = Helper::start(None)?;
    std::fs::create_dir_all("/run/netns")?;
    for guest in 2..=4 {
        run(&format!("ip netns add g{guest}"))?;
    }
    let ours = Ours(Client::new(|| UnixStream::connect(SOCKET)));
    let networks: [(&dyn Network, &str); 3] =
        [(&ours, ""), (&Netavark, "netavark setup or teardown"), (&Plugins, "CNI bridge and host-local, ADD or DEL")];
    let mut rows = [Row::default(), Row::default(), Row::default()];
    for round in 0..=rounds * 3 {
        for (row, (network, _)) in rows.iter_mut().zip(networks) {
            row.round(network)?;
        }
        if round == 0 {
            // The first of each warms caches and is not counted.
            rows = Default::default();
        }
    }
    head("A guest's network, beside netavark and CNI");
    let [mine, others @ ..] = &rows;
    for (nth, what) in ROWS.iter().enumerate() {
        for (row, (_, against)) in others.iter().zip(&networks[1..]) {
            compare(what, &mine.0[nth], &row.0[nth], against);
        }
    }
    Ok(())
}
