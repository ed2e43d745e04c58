//! What the six network methods bring about, as a model: small enough to be right by reading.

#![allow(unreachable_pub, reason = "a part of a test")]

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The bridges, by number: name and the first three parts of its subnet.
pub const BRIDGES: [(&str, &str); 2] = [("br-fc", "172.16.0"), ("br-fc-b", "172.16.1")];

/// A caller's taps and addresses on a bridge, by number.
pub const TAPS: u64 = 3;
pub const GUESTS: u64 = 3;

/// A call. Taps and addresses are the caller's own, so what becomes of them does not depend on the others'.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Bridge(usize),
    Tap(u64, usize),
    NoTap(u64),
    On(u64, usize, u64),
    Off(u64, usize, u64),
    Resolver(usize),
    NoResolver(usize),
}

/// A tap: the bridge it is on, the address that it is held to, whether that has a way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    pub bridge: usize,
    pub pin: Option<String>,
    pub way: bool,
}

/// What is there of a caller's.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub bridges: BTreeSet<usize>,
    pub taps: BTreeMap<String, Tap>,
}

pub fn tap(caller: u64, nth: u64) -> String {
    format!("tap-fc-{caller}-{nth}")
}

pub fn address(caller: u64, bridge: usize, nth: u64) -> String {
    format!("{}.{}", BRIDGES[bridge].1, 10 + caller * 10 + nth)
}

impl Call {
    /// Method and parameters.
    pub fn request(self, caller: u64) -> (&'static str, Value) {
        let bridge = |nth: usize| {
            let (name, net) = BRIDGES[nth];
            json!({"bridge_name": name, "bridge_ip": format!("{net}.1"), "cidr": "24"})
        };
        let nat = |nth, on, guest, enable: bool| json!({"guest_ip": address(caller, on, guest), "tap": tap(caller, nth), "enable": enable});
        match self {
            Call::Bridge(on) => ("priv.ensure_bridge", bridge(on)),
            Call::Tap(nth, on) => {
                let mut params = bridge(on);
                params["tap_name"] = tap(caller, nth).into();
                ("priv.create_tap", params)
            }
            Call::NoTap(nth) => ("priv.delete_tap", json!({"tap_name": tap(caller, nth)})),
            Call::On(nth, on, guest) => ("priv.ensure_nat", nat(nth, on, guest, true)),
            Call::Off(nth, on, guest) => ("priv.ensure_nat", nat(nth, on, guest, false)),
            Call::Resolver(on) => {
                ("priv.sync_resolver_routing", json!({"bridge_name": BRIDGES[on].0, "server_addr": "127.0.0.1:42069"}))
            }
            Call::NoResolver(on) => ("priv.clear_resolver_routing", json!({"bridge_name": BRIDGES[on].0})),
        }
    }
}

impl Model {
    /// Does it, and says whether it succeeds.
    pub fn act(&mut self, caller: u64, call: Call) -> bool {
        match call {
            Call::Bridge(on) => {
                self.bridges.insert(on);
                true
            }
            Call::Tap(nth, on) => {
                self.bridges.insert(on);
                let there = self.taps.entry(tap(caller, nth)).or_insert(Tap { bridge: on, pin: None, way: false });
                // A guest with a way out keeps its address where its tap stays; else the tap is as new.
                if there.bridge != on || !there.way {
                    *there = Tap { bridge: on, pin: None, way: false };
                }
                true
            }
            Call::NoTap(nth) => {
                self.taps.remove(&tap(caller, nth));
                true
            }
            Call::On(nth, on, guest) => {
                let (name, address) = (tap(caller, nth), address(caller, on, guest));
                let holder =
                    self.taps.iter().find(|(other, tap)| **other != name && tap.pin.as_ref() == Some(&address));
                let holder = holder.map(|(other, tap)| (other.clone(), tap.way));
                if self.taps.get(&name).is_none_or(|tap| tap.bridge != on) || holder.as_ref().is_some_and(|it| it.1) {
                    return false;
                }
                // One that has no way out is held to it no longer.
                if let Some((other, _)) = holder {
                    self.taps.entry(other).and_modify(|tap| tap.pin = None);
                }
                self.taps.insert(name, Tap { bridge: on, pin: Some(address), way: true });
                true
            }
            Call::Off(nth, on, guest) => {
                let address = address(caller, on, guest);
                if let Some(tap) = self.taps.get_mut(&tap(caller, nth)).filter(|tap| tap.pin == Some(address)) {
                    tap.way = false;
                }
                true
            }
            Call::Resolver(_) | Call::NoResolver(_) => true,
        }
    }
}

/// A generator of numbers from a seed (splitmix64).
pub struct Seed(pub u64);

impl Seed {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// Any call, those that make something more often than those that take it away.
    pub fn call(&mut self) -> Call {
        let (tap, on, guest) = (self.below(TAPS), self.below(BRIDGES.len() as u64) as usize, self.below(GUESTS));
        match self.below(16) {
            0 => Call::Bridge(on),
            1..=4 => Call::Tap(tap, on),
            5 | 6 => Call::NoTap(tap),
            7..=11 => Call::On(tap, on, guest),
            12 | 13 => Call::Off(tap, on, guest),
            14 => Call::Resolver(on),
            _ => Call::NoResolver(on),
        }
    }
}
