//! Many taps deleted at once, against one by one: the kernel's wait for a link that goes is most of it.

use crate::stats::{Times, compare, head};
use crate::world::{Helper, SOCKET, run};
use anyhow::Result;
use std::os::unix::net::UnixStream;
use wire::client::Client;
use wire::name::addr::{BridgeAddr, GuestAddr};
use wire::name::link::{BridgeName, TapName};
use wire::net::{Bridge, Nat, NewTap, Switch};

const TAPS: usize = 20;

pub(crate) fn measure(rounds: usize) -> Result<()> {
    let _helper = Helper::start(None)?;
    let client = Client::new(|| UnixStream::connect(SOCKET));
    let bridge = Bridge { name: BridgeName::new("br-fc-taps")?, addr: BridgeAddr::new("172.22.0.1", "24")? };
    let names: Vec<TapName> = (0..TAPS).map(|nth| TapName::new(&format!("tap-fc-t{nth}"))).collect::<Result<_, _>>()?;
    let make = |with_nat: bool| -> Result<()> {
        for (nth, tap) in names.iter().enumerate() {
            client.create_tap(&NewTap { bridge: bridge.clone(), tap: tap.clone() })?;
            if with_nat {
                let guest = GuestAddr::new(&format!("172.22.0.{}", nth + 2))?;
                client.ensure_nat(&Nat { guest, tap: tap.clone(), switch: Switch::On })?;
            }
        }
        Ok(())
    };
    head(&format!("{TAPS} taps deleted"));
    for with_nat in [false, true] {
        let (mut at_once, mut one_by_one, mut by_ip) = (Times::default(), Times::default(), Times::default());
        for _ in 0..rounds {
            make(with_nat)?;
            at_once.take(|| client.delete_taps(&names))?;
            make(with_nat)?;
            one_by_one.take(|| names.iter().try_for_each(|tap| client.delete_tap(tap)))?;
            make(with_nat)?;
            by_ip.take(|| names.iter().try_for_each(|tap| run(&format!("ip link del {tap}"))))?;
            // What the tables hold of them.
            client.delete_taps(&names)?;
        }
        let what = if with_nat { "delete_taps, each with a guest" } else { "delete_taps" };
        compare(what, &at_once, &one_by_one, &format!("{TAPS} delete_tap"));
        compare(what, &at_once, &by_ip, &format!("{TAPS} ip link del"));
    }
    run("ip link del br-fc-taps")
}
