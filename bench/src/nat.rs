//! A guest's way out against what people run today: the existing helper's programs for it, in its order, one a step.

use crate::stats::{Times, compare, head};
use crate::world::{Helper, SOCKET, run, try_run};
use anyhow::Result;
use serde_json::value::RawValue;
use std::ops::RangeInclusive;
use std::os::unix::net::UnixStream;
use wire::client::Client;
use wire::name::addr::{BridgeAddr, GuestAddr};
use wire::name::link::{BridgeName, TapName};
use wire::net::{Bridge, Nat, NewTap, Switch};

/// A client of the helper's, with a connection for each call.
pub(crate) type Caller = Client<fn() -> std::io::Result<UnixStream>>;

/// Connects to the helper of the measurement.
pub(crate) fn caller() -> Caller {
    Client::new(|| UnixStream::connect(SOCKET))
}

/// Times of the helper and of the programs for the same.
#[derive(Default)]
struct Pair(Times, Times);

impl Pair {
    fn take(&mut self, ours: impl FnOnce() -> Result<()>, theirs: impl FnOnce() -> Result<()>) -> Result<()> {
        self.0.take(ours)?;
        self.1.take(theirs)
    }
}

/// Guests of a block. All are switched on by the one, then by the other, and so on: each finds its own caches warm, and
/// both see the same disturbances. The first of a block, which finds the other's, is not counted.
const BLOCK: u8 = 10;

/// Measures `ensure_nat`. Tables, bridge and taps are there, as `create_tap` leaves them, and another guest is.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    let _helper = Helper::start(None)?;
    let client = caller();
    let bridge = Bridge { name: BridgeName::new("br-fc")?, addr: BridgeAddr::new("172.16.0.1", "24")? };
    let nat = |guest: u8, switch| -> Result<Nat> {
        let tap = TapName::new(&format!("tap-fc-{guest}"))?;
        Ok(Nat { guest: GuestAddr::new(&format!("172.16.0.{}", guest + 2))?, tap, switch })
    };
    let taps = |guests: RangeInclusive<u8>| -> Result<()> {
        guests.into_iter().try_for_each(|guest| {
            Ok(client.create_tap(&NewTap { bridge: bridge.clone(), tap: nat(guest, Switch::On)?.tap })?)
        })
    };
    taps(0..=BLOCK)?;
    client.ensure_nat(&nat(BLOCK, Switch::On)?)?;
    // A tap that had a guest before keeps its pins: a new VM comes on a new tap.
    let new_taps = || -> Result<()> {
        let all = (0..BLOCK).map(|guest| Ok(nat(guest, Switch::On)?.tap)).collect::<Result<Vec<_>>>()?;
        client.delete_taps(&all)?;
        taps(0..=BLOCK - 1)
    };
    let (mut new, mut there, mut gone, mut cold) = (Pair::default(), Pair::default(), Pair::default(), Pair::default());
    let (mut empty, nothing) = (Times::default(), RawValue::from_string(r#"{"bridge_name":""}"#.into())?);
    for _ in 0..rounds * 4 {
        for (pair, switch) in [(&mut new, Switch::On), (&mut there, Switch::On), (&mut gone, Switch::Off)] {
            block(pair, |guest| Ok(client.ensure_nat(&nat(guest, switch)?)?), |guest| programs(guest, switch))?;
        }
        new_taps()?;
        for guest in 0..BLOCK {
            empty.take(|| client.call_raw("priv.clear_resolver_routing", &nothing))?;
            cold.take(|| Ok(client.ensure_nat(&nat(guest, Switch::On)?)?), || programs(guest, Switch::On))?;
        }
        for guest in 0..BLOCK {
            client.ensure_nat(&nat(guest, Switch::Off)?)?;
            programs(guest, Switch::Off)?;
        }
        new_taps()?;
    }
    head("A guest's way out: a whole round trip, a connection a call, against the existing helper's programs");
    compare("ensure_nat on, new guest", &new.0, &new.1, "`ip`, `sysctl`, 6 `iptables`");
    compare("the same, each one after the programs", &cold.0, &cold.1, "`ip`, `sysctl`, 6 `iptables`");
    compare("ensure_nat on, there already", &there.0, &there.1, "`ip`, `sysctl`, 3 `iptables`");
    compare("ensure_nat off", &gone.0, &gone.1, "`ip`, 6 `iptables`");
    compare("an empty method, after the programs", &empty, &cold.0, "ensure_nat on, new guest, behind it");
    Ok(())
}

fn block(pair: &mut Pair, ours: impl Fn(u8) -> Result<()>, theirs: impl Fn(u8) -> Result<()>) -> Result<()> {
    let Pair(by_us, by_them) = pair;
    for (times, act) in [(by_us, &ours as &dyn Fn(u8) -> Result<()>), (by_them, &theirs)] {
        act(0)?;
        for guest in 1..BLOCK {
            times.take(|| act(guest))?;
        }
    }
    Ok(())
}

fn programs(guest: u8, switch: Switch) -> Result<()> {
    match switch {
        Switch::On => programs_on(guest),
        Switch::Off => programs_off(guest),
    }
}

fn rules(guest: u8) -> [String; 3] {
    [
        format!("-t nat POSTROUTING -s 172.18.0.{}/32 -o eth0 -j MASQUERADE", guest + 2),
        format!("-t filter FORWARD -i tap-ip-{guest} -o eth0 -j ACCEPT"),
        format!("-t filter FORWARD -i eth0 -o tap-ip-{guest} -m state --state RELATED,ESTABLISHED -j ACCEPT"),
    ]
}

fn iptables(what: &str, rule: &str) -> String {
    let (table, rest) = rule.split_at(rule.find(|c: char| c.is_ascii_uppercase()).unwrap_or(0));
    format!("iptables {table} {what} {rest}")
}

/// The uplink is asked for, forwarding switched on, and each rule added where `-C` says that it is missing.
fn programs_on(guest: u8) -> Result<()> {
    run("ip route show default")?;
    // Theirs is `ip_forward`, which would open the host of both: the same program with the same work.
    run("sysctl -q -w net.ipv4.conf.lo.forwarding=1")?;
    for rule in rules(guest) {
        if !try_run(&iptables("-C", &rule))? {
            run(&iptables("-A", &rule))?;
        }
    }
    Ok(())
}

fn programs_off(guest: u8) -> Result<()> {
    run("ip route show default")?;
    for rule in rules(guest) {
        if try_run(&iptables("-C", &rule))? {
            run(&iptables("-D", &rule))?;
        }
    }
    Ok(())
}
