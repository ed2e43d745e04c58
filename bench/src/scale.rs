//! A thousand guests: what one more costs, and what a packet costs, against ten.

use crate::bare::{self, Bare};
use crate::nat::{Caller, caller};
use crate::stats::{Times, compare, head};
use crate::world::{Helper, run};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::Write as _;
use wire::name::addr::{BridgeAddr, GuestAddr};
use wire::name::link::{BridgeName, TapName};
use wire::net::{Bridge, Nat, NewTap, Switch};

const MANY: usize = 1000;
const FEW: usize = 10;
/// Guests that are timed about the tenth and the last one, and how often.
const WINDOW: usize = 20;
const AGAIN: usize = 8;
/// Packets of one time, and times one after the other.
const PACKETS: u32 = 20_000;
const SENDS: usize = 3;

/// Measures both.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    head("A thousand guests");
    if rounds > 0 {
        packets(rounds)?;
    }
    bare_taps()?;
    guests()
}

/// The nth guest, on one of two bridges: one holds 1,023 taps.
fn guest(nth: usize) -> Result<(NewTap, Nat)> {
    let (name, net) = [("br-fc", 16), ("br-fc-b", 17)][nth % 2];
    let bridge = Bridge { name: BridgeName::new(name)?, addr: BridgeAddr::new(&format!("172.{net}.0.1"), "16")? };
    let tap = TapName::new(&format!("tap-fc-{nth}"))?;
    let address = GuestAddr::new(&format!("172.{net}.{}.{}", 1 + nth / 200, 2 + nth % 200))?;
    Ok((NewTap { bridge, tap: tap.clone() }, Nat { guest: address, tap, switch: Switch::On }))
}

fn add(client: &Caller, nth: usize, [taps, ways]: &mut [Times; 2]) -> Result<()> {
    let (tap, nat) = guest(nth)?;
    taps.take(|| client.create_tap(&tap))?;
    Ok(ways.take(|| client.ensure_nat(&nat))?)
}

/// Guests from `FEW` to `MANY`, and times of two things for those about the first and about the last of them, which come
/// and go again and again.
fn first_and_last(
    client: &Caller,
    mut add: impl FnMut(usize, &mut [Times; 2]) -> Result<()>,
) -> Result<[[Times; 2]; 2]> {
    let (mut there, mut all) = (0, <[[Times; 2]; 2]>::default());
    for (times, window) in all.iter_mut().zip([FEW..FEW + WINDOW, MANY - WINDOW..MANY]) {
        (there..window.start).try_for_each(|nth| add(nth, &mut Default::default()))?;
        for _ in 0..AGAIN {
            window.clone().try_for_each(|nth| add(nth, times))?;
            remove(client, window.clone())?;
        }
        there = window.start;
    }
    remove(client, 0..there)?;
    Ok(all)
}

fn tell(what: &str, few: &Times, many: &Times) {
    let few_and_many = format!("with {MANY}: so many times slower");
    compare(&format!("{what}, with {FEW} to {}", FEW + WINDOW), few, many, &few_and_many);
}

/// What one more tap takes the kernel alone: so much its number costs, whoever makes it.
fn bare_taps() -> Result<()> {
    let mut bridges = Vec::new();
    for name in ["br-fc", "br-fc-b"] {
        run(&format!("ip link add {name} type bridge"))?;
        run(&format!("ip link set {name} up"))?;
        bridges.push(bare::index(name)?);
    }
    let mut bare = Bare::open()?;
    // They have our mark, so it takes them away.
    let _helper = Helper::start(None)?;
    let [[few, _], [many, _]] = first_and_last(&caller(), |nth, [taps, _]| {
        let tap = guest(nth)?.0.tap;
        taps.take(|| bare.tap(tap.as_str(), bridges[nth % 2]))
    })?;
    tell("a tap by the kernel calls alone", &few, &many);
    run("ip link del br-fc")?;
    run("ip link del br-fc-b")
}

/// One more guest: its tap, its way out.
fn guests() -> Result<()> {
    let _helper = Helper::start(None)?;
    let client = caller();
    let [[few_taps, few_ways], [many_taps, many_ways]] =
        first_and_last(&client, |nth, times| add(&client, nth, times))?;
    tell("create_tap", &few_taps, &many_taps);
    tell("ensure_nat on, a new tap's", &few_ways, &many_ways);
    run("ip link del br-fc")?;
    run("ip link del br-fc-b")
}

/// A packet's way: by a tap, its bridge, our chains and the masquerade to the uplink. The other guests come and go.
fn packets(rounds: usize) -> Result<()> {
    let _helper = Helper::start(None)?;
    let client = caller();
    (0..FEW).try_for_each(|nth| add(&client, nth, &mut Default::default()))?;
    run("ip neigh replace 198.51.100.1 lladdr 02:00:00:00:00:99 dev eth0")?;
    let mut tap = File::from(sys::tapfd::attach("tap-fc-0")?);
    let frame = frame()?;
    let send = |tap: &mut File| (0..PACKETS).try_for_each(|_| tap.write_all(&frame));
    send(&mut tap)?;
    let before = sent()?;
    let (mut few, mut many) = (Times::default(), Times::default());
    for _ in 0..rounds {
        // The first of a block, which finds another's caches, is not counted.
        send(&mut tap)?;
        (0..SENDS).try_for_each(|_| few.take(|| send(&mut tap)))?;
        (FEW..MANY).try_for_each(|nth| add(&client, nth, &mut Default::default()))?;
        send(&mut tap)?;
        (0..SENDS).try_for_each(|_| many.take(|| send(&mut tap)))?;
        remove(&client, FEW..MANY)?;
    }
    let (through, asked) = (sent()? - before, u64::from(PACKETS) * (2 * rounds * (SENDS + 1)) as u64);
    anyhow::ensure!(through * 100 >= asked * 99, "{through} of {asked} packets left by the uplink");
    compare(&format!("{PACKETS} packets with 10 guests"), &few, &many, "with 1,000: so many times slower");
    remove(&client, 0..FEW)?;
    run("ip link del br-fc")?;
    run("ip link del br-fc-b")
}

/// Takes guests away with their taps, many at once.
fn remove(client: &Caller, which: std::ops::Range<usize>) -> Result<()> {
    let taps = which.map(|nth| Ok(guest(nth)?.0.tap)).collect::<Result<Vec<_>>>()?;
    taps.chunks(64).try_for_each(|some| Ok(client.delete_taps(some)?))
}

fn sent() -> Result<u64> {
    Ok(fs::read_to_string("/sys/class/net/eth0/statistics/tx_packets")?.trim().parse()?)
}

/// A frame of the first guest's to the host outside: virtio-net's header, Ethernet, IPv4, UDP, 18 bytes.
fn frame() -> Result<Vec<u8>> {
    let bridge = fs::read_to_string("/sys/class/net/br-fc/address")?;
    let bridge: Vec<u8> =
        bridge.trim().split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    let mut ip = vec![0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(guest(0)?.1.guest.ip().octets());
    ip.extend([198, 51, 100, 1]);
    let sum: u32 = ip.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    let folded = !u16::try_from((sum & 0xffff) + (sum >> 16)).context("a checksum")?;
    ip[10..12].copy_from_slice(&folded.to_be_bytes());
    let udp = [0x30, 0x39, 0x0d, 0x05, 0, 26, 0, 0];
    Ok([&[0; 10][..], &bridge, &[2, 0, 0, 0, 0, 7], &[8, 0], &ip, &udp, &[0; 18]].concat())
}
