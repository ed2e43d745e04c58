//! A thousand guests: what one more costs, and what a packet costs, against ten.

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
/// Guests that are timed about the tenth and the last one.
const WINDOW: usize = 20;
/// Packets of one time, and times one after the other.
const PACKETS: u32 = 20_000;
const SENDS: usize = 3;

/// Measures both.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    head("A thousand guests");
    packets(rounds)?;
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

fn add(client: &Caller, nth: usize, times: Option<&mut (Times, Times)>) -> Result<()> {
    let (tap, nat) = guest(nth)?;
    let unused = &mut Default::default();
    let (taps, ways) = times.unwrap_or(unused);
    taps.take(|| client.create_tap(&tap))?;
    Ok(ways.take(|| client.ensure_nat(&nat))?)
}

/// One more guest: its tap, its way out.
fn guests() -> Result<()> {
    let _helper = Helper::start(None)?;
    let client = caller();
    let (mut first, mut last) = Default::default();
    for nth in 0..MANY {
        let times = match nth {
            FEW..30 => Some(&mut first),
            _ if nth >= MANY - WINDOW => Some(&mut last),
            _ => None,
        };
        add(&client, nth, times)?;
    }
    compare("create_tap, the 10th to 30th", &first.0, &last.0, "the 980th to 1,000th: so many times slower");
    compare("ensure_nat on, the 10th to 30th", &first.1, &last.1, "the 980th to 1,000th: so many times slower");
    let (_, mut nat) = guest(MANY - 1)?;
    let mut again = Times::default();
    for _ in 0..10 * WINDOW {
        for switch in [Switch::Off, Switch::On] {
            nat.switch = switch;
            let call = || client.ensure_nat(&nat);
            if switch == Switch::On { again.take(call)? } else { call()? }
        }
    }
    compare("ensure_nat on, the 10th to 30th", &first.1, &again, "the 1,000th, again and again");
    remove(&client, 0..MANY)?;
    run("ip link del br-fc")?;
    run("ip link del br-fc-b")
}

/// A packet's way: by a tap, its bridge, our chains and the masquerade to the uplink. The other guests come and go.
fn packets(rounds: usize) -> Result<()> {
    let _helper = Helper::start(None)?;
    let client = caller();
    (0..FEW).try_for_each(|nth| add(&client, nth, None))?;
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
        (FEW..MANY).try_for_each(|nth| add(&client, nth, None))?;
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
