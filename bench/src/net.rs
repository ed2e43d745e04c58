//! Bridges and taps against the programs that do the same: `ip`, in the steps of the existing helper.

use crate::bare::{self, Bare};
use crate::stats::{Times, compare, head};
use crate::world::{Helper, SOCKET, run, try_run};
use anyhow::{Context, Result};
use std::os::unix::net::UnixStream;
use wire::client::Client;
use wire::name::addr::{BridgeAddr, GuestAddr};
use wire::name::link::{BridgeName, TapName};
use wire::net::{Bridge, Nat, NewTap, Switch};

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
    let mut rows: Vec<(&str, &str, Pair)> = [
        ("ensure_bridge, new", "4 ip"),
        ("ensure_bridge, there already", "2 ip"),
        ("create_tap", "5 ip"),
        ("create_tap, there already", "5 ip"),
        ("delete_tap", "1 ip"),
    ]
    .map(|(what, against)| (what, against, Pair::default()))
    .into();
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
    tap_by_bare_calls(&client, rounds)
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

type Turn<'a> = &'a mut dyn FnMut() -> Result<()>;

/// One and then the other, and in the next round the other way round.
fn in_turn<'a>(round: usize, ours: Turn<'a>, theirs: Turn<'a>) -> Result<()> {
    let [first, second] = if round.is_multiple_of(2) { [ours, theirs] } else { [theirs, ours] };
    first()?;
    second()
}

/// Taps of a block: all are made by the one way, and deleted, then by the other, and the next time the other way round. Each
/// finds its own caches warm, and no tap of the other's. The first of a block, which finds the other's caches, is not counted.
const BLOCK: u8 = 10;

/// `create_tap` against the kernel calls alone: in blocks, and each one after a program, which leaves no cache to either.
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
    let taps = (0..BLOCK).map(|nth| Ok(TapName::new(&format!("tap-fc-bare-{nth}"))?)).collect::<Result<Vec<_>>>()?;
    let names: Vec<_> = (0..BLOCK).map(|nth| format!("tap-bare-{nth}")).collect();
    let create =
        |tap: &TapName| -> Result<()> { Ok(client.create_tap(&NewTap { bridge: bridge.clone(), tap: tap.clone() })?) };
    let delete = |name: &String| run(&format!("ip link del {name}"));
    let (mut warm, mut cold) = (Pair::default(), Pair::default());
    for round in 0..rounds * 4 {
        in_turn(
            round,
            &mut || {
                create(&taps[0])?;
                taps[1..].iter().try_for_each(|tap| warm.ours.take(|| create(tap)))?;
                Ok(client.delete_taps(&taps).map(drop)?)
            },
            &mut || {
                bare.tap(&names[0], index)?;
                names[1..].iter().try_for_each(|name| warm.theirs.take(|| bare.tap(name, index)))?;
                names.iter().try_for_each(delete)
            },
        )?;
    }
    for round in 0..rounds * 10 {
        in_turn(
            round,
            &mut || {
                run("ip link show br-bare")?;
                cold.ours.take(|| create(&taps[0]))?;
                Ok(client.delete_tap(&taps[0]).map(drop)?)
            },
            &mut || {
                run("ip link show br-bare")?;
                cold.theirs.take(|| bare.tap(&names[0], index))?;
                delete(&names[0])
            },
        )?;
    }
    compare("create_tap", &warm.ours, &warm.theirs, "the kernel calls alone, in one process");
    compare("the same, each one after a program", &cold.ours, &cold.theirs, "the kernel calls alone, in one process");
    Ok(())
}
