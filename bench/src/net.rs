//! The network methods against the programs that do the same: `ip`, `sysctl`, `iptables`, `nft`.
//!
//! The programs' steps are those of the existing helper.

use crate::bare::{self, Bare};
use crate::stats::{Times, compare, head};
use crate::world::{Helper, SOCKET, run, try_run};
use anyhow::{Context, Result};
use std::os::unix::net::UnixStream;
use wire::client::Client;
use wire::name::addr::{BridgeAddr, GuestAddr};
use wire::name::link::{BridgeName, TapName};
use wire::net::{Bridge, Nat, NewTap, Switch};

const GUESTS: usize = 200;

/// Two columns of times for one thing.
#[derive(Default)]
struct Pair {
    ours: Times,
    theirs: Times,
}

pub(crate) fn measure(rounds: usize) -> Result<()> {
    let _helper = Helper::start(None)?;
    let client = Client::new(|| UnixStream::connect(SOCKET));
    let bridge = Bridge { name: BridgeName::new("br-fc")?, addr: BridgeAddr::new("172.16.0.1", "24")? };
    let tap = TapName::new("tap-fc-1")?;
    let nat = |switch| -> Result<Nat> { Ok(Nat { guest: GuestAddr::new("172.16.0.2")?, tap: tap.clone(), switch }) };
    let mut rows: Vec<(&str, &str, Pair)> = [
        ("ensure_bridge, new", "4 ip"),
        ("ensure_bridge, there already", "2 ip"),
        ("create_tap", "5 ip"),
        ("create_tap, there already", "5 ip"),
        ("ensure_nat on, table and bridge there", "ip, sysctl, 6 iptables"),
        ("ensure_nat on, there already", "ip, sysctl, 3 iptables"),
        ("ensure_nat off", "ip, 6 iptables"),
        ("delete_tap", "1 ip"),
    ]
    .map(|(what, against)| (what, against, Pair::default()))
    .into();
    by_programs_table()?;
    // Bridge and tables are there from here on: another guest keeps them.
    let other = NewTap { bridge: bridge.clone(), tap: TapName::new("tap-fc-keep")? };
    client.create_tap(&other)?;
    client.ensure_nat(&Nat { guest: GuestAddr::new("172.16.0.9")?, tap: other.tap.clone(), switch: Switch::On })?;
    bridge_new("br-by-ip", "172.18.0.1/24")?;
    let fresh = Bridge { name: BridgeName::new("br-fc-new")?, addr: BridgeAddr::new("172.17.9.1", "24")? };
    for round in 0..rounds * 10 {
        let mut row = rows.iter_mut().map(|(_, _, pair)| pair);
        let mut next = || row.next().context("a row");
        let new = NewTap { bridge: bridge.clone(), tap: tap.clone() };
        both(next()?, || Ok(client.ensure_bridge(&fresh)?), || bridge_new("br-new", "172.21.0.1/24"))?;
        both(next()?, || Ok(client.ensure_bridge(&bridge)?), bridge_there)?;
        both(next()?, || Ok(client.create_tap(&new)?), tap_new)?;
        both(next()?, || Ok(client.create_tap(&new)?), tap_new)?;
        let on = nat(Switch::On)?;
        both(next()?, || Ok(client.ensure_nat(&on)?), || nat_on(true))?;
        both(next()?, || Ok(client.ensure_nat(&on)?), || nat_on(false))?;
        let off = nat(Switch::Off)?;
        both(next()?, || Ok(client.ensure_nat(&off)?), nat_off)?;
        both(next()?, || Ok(client.delete_tap(&tap)?), || run("ip link del tap-by-ip"))?;
        run("ip link del br-fc-new")?;
        run("ip link del br-new")?;
        if round == 0 {
            // The first of each warms caches and is not counted.
            rows.iter_mut().for_each(|(_, _, pair)| *pair = Pair::default());
        }
    }
    head("Network methods");
    for (what, against, pair) in &rows {
        compare(what, &pair.ours, &pair.theirs, against);
    }
    tap_by_bare_calls(&client, rounds)?;
    many_guests(&client, rounds)
}

fn both(pair: &mut Pair, ours: impl FnOnce() -> Result<()>, theirs: impl FnOnce() -> Result<()>) -> Result<()> {
    pair.ours.take(ours)?;
    pair.theirs.take(theirs)
}

fn bridge_new(name: &str, address: &str) -> Result<()> {
    try_run(&format!("ip link show {name}"))?;
    run(&format!("ip link add {name} type bridge"))?;
    run(&format!("ip addr add {address} dev {name}"))?;
    run(&format!("ip link set {name} up"))
}

fn bridge_there() -> Result<()> {
    run("ip link show br-by-ip")?;
    run("ip link set br-by-ip up")
}

fn tap_new() -> Result<()> {
    if try_run("ip link show tap-by-ip")? {
        run("ip link del tap-by-ip")?;
    }
    run("ip tuntap add dev tap-by-ip mode tap user 4242 group 4242")?;
    run("ip link set tap-by-ip master br-by-ip")?;
    run("ip link set tap-by-ip up")?;
    run("ip link set br-by-ip up")
}

const RULES: [&str; 3] = [
    "-t nat POSTROUTING -s 172.18.0.2/32 -o eth0 -j MASQUERADE",
    "-t filter FORWARD -i tap-by-ip -o eth0 -j ACCEPT",
    "-t filter FORWARD -i eth0 -o tap-by-ip -m state --state RELATED,ESTABLISHED -j ACCEPT",
];

fn iptables(what: &str, rule: &str) -> String {
    let (table, rest) = rule.split_at(rule.find(|c: char| c.is_ascii_uppercase()).unwrap_or(0));
    format!("iptables -w {table} {what} {rest}")
}

fn by_programs_table() -> Result<()> {
    run("iptables -w -t nat -N BENCH")?;
    run("iptables -w -t filter -N BENCH")
}

fn nat_on(new: bool) -> Result<()> {
    run("ip route show default")?;
    run("sysctl -q -w net.ipv4.conf.lo.forwarding=1")?;
    for rule in RULES {
        if !try_run(&iptables("-C", rule))? && new {
            run(&iptables("-A", rule))?;
        }
    }
    Ok(())
}

fn nat_off() -> Result<()> {
    run("ip route show default")?;
    for rule in RULES {
        if try_run(&iptables("-C", rule))? {
            run(&iptables("-D", rule))?;
        }
    }
    Ok(())
}

/// `create_tap` against the kernel calls alone.
fn tap_by_bare_calls<S, F>(client: &Client<F>, rounds: usize) -> Result<()>
where
    S: std::io::Read + std::io::Write,
    F: Fn() -> std::io::Result<S>,
{
    let bridge = Bridge { name: BridgeName::new("br-fc-bare")?, addr: BridgeAddr::new("172.20.0.1", "24")? };
    client.ensure_bridge(&bridge)?;
    run("ip link add br-bare type bridge")?;
    run("ip link set br-bare up")?;
    let (index, mut bare) = (bare::index("br-bare")?, Bare::open()?);
    let new = NewTap { bridge, tap: TapName::new("tap-fc-bare")? };
    let mut pair = Pair::default();
    for _ in 0..rounds * 10 {
        both(&mut pair, || Ok(client.create_tap(&new)?), || bare.tap("tap-bare", index))?;
        client.delete_tap(&new.tap)?;
        run("ip link del tap-bare")?;
    }
    compare("create_tap", &pair.ours, &pair.theirs, "the kernel calls alone, in one process");
    Ok(())
}

/// The same with many guests there: a set element is as cheap as before.
fn many_guests<S, F>(client: &Client<F>, rounds: usize) -> Result<()>
where
    S: std::io::Read + std::io::Write,
    F: Fn() -> std::io::Result<S>,
{
    let bridge = Bridge { name: BridgeName::new("br-fc-many")?, addr: BridgeAddr::new("172.19.0.1", "16")? };
    let guest = |i: usize| -> Result<(TapName, GuestAddr)> {
        Ok((TapName::new(&format!("tap-fc-m{i}"))?, GuestAddr::new(&format!("172.19.{}.{}", i / 200, i % 200 + 2))?))
    };
    let mut first = Times::default();
    let mut last = Times::default();
    for i in 0..GUESTS {
        let (tap, address) = guest(i)?;
        client.create_tap(&NewTap { bridge: bridge.clone(), tap: tap.clone() })?;
        let nat = Nat { guest: address, tap, switch: Switch::On };
        if i < 20 {
            first.take(|| client.ensure_nat(&nat))?
        } else {
            client.ensure_nat(&nat)?
        };
    }
    let (tap, address) = guest(GUESTS - 1)?;
    for _ in 0..rounds * 5 {
        client.ensure_nat(&Nat { guest: address, tap: tap.clone(), switch: Switch::Off })?;
        last.take(|| client.ensure_nat(&Nat { guest: address, tap: tap.clone(), switch: Switch::On }))?;
    }
    compare(&format!("ensure_nat on, with {GUESTS} guests"), &last, &first, "the same with 0 to 20");
    Ok(())
}
