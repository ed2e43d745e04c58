//! The network methods: what their parameters say, and what they mean.

use crate::code::{Code, Refusal};
use crate::name::addr::{BridgeAddr, GuestAddr, ServerAddr};
use crate::name::link::{BridgeName, TapName};
use crate::params::{self, texts, zero};
use serde::{Deserialize, Serialize};

/// A bridge as it is to be.
///
/// `{"bridge_name":"br-fc","bridge_ip":"172.16.0.1","cidr":"24"}`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: BridgeName,
    /// Its address, with the prefix.
    pub addr: BridgeAddr,
}

/// A tap on a bridge.
///
/// `{"bridge_name":"br-fc","bridge_ip":"172.16.0.1","cidr":"24","tap_name":"tap-fc-1"}`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTap {
    /// The bridge, made where it is missing.
    pub bridge: Bridge,
    /// The tap.
    pub tap: TapName,
}

/// Where systemd-resolved sends `~vm`.
///
/// `{"bridge_name":"br-fc","server_addr":"127.0.0.1:42069"}`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverRoute {
    /// The link that carries the domain.
    pub bridge: BridgeName,
    /// The name server.
    pub server: ServerAddr,
}

/// Whether something is to be or not to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It is to be.
    On,
    /// It is not to be.
    Off,
}

/// A guest's way out.
///
/// `{"guest_ip":"172.16.0.2","tap":"tap-fc-1","enable":true}`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    /// The guest.
    pub guest: GuestAddr,
    /// Its tap.
    pub tap: TapName,
    /// On or off.
    pub switch: Switch,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct BridgeSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) bridge_name: String,
    #[serde(deserialize_with = "zero")]
    pub(crate) bridge_ip: String,
    #[serde(deserialize_with = "zero")]
    pub(crate) cidr: String,
}

impl BridgeSays {
    /// The existing helper checks none of the three itself, so all of them are `operation_failed`.
    fn check(&self) -> Result<Bridge, Refusal> {
        let failed = Code::OperationFailed;
        let name = BridgeName::new(&self.bridge_name).map_err(|e| e.refuse(failed, "bridge_name"))?;
        let addr = BridgeAddr::new(&self.bridge_ip, &self.cidr).map_err(|e| {
            e.refuse(failed, if self.bridge_ip.parse::<std::net::Ipv4Addr>().is_ok() { "cidr" } else { "bridge_ip" })
        })?;
        Ok(Bridge { name, addr })
    }
}

impl From<&Bridge> for BridgeSays {
    fn from(bridge: &Bridge) -> BridgeSays {
        BridgeSays {
            bridge_name: bridge.name.to_string(),
            bridge_ip: bridge.addr.ip().to_string(),
            cidr: bridge.addr.prefix().to_string(),
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct NewTapSays {
    #[serde(deserialize_with = "zero")]
    bridge_name: String,
    #[serde(deserialize_with = "zero")]
    bridge_ip: String,
    #[serde(deserialize_with = "zero")]
    cidr: String,
    #[serde(deserialize_with = "zero")]
    tap_name: String,
}

impl From<&NewTap> for NewTapSays {
    fn from(new: &NewTap) -> NewTapSays {
        let BridgeSays { bridge_name, bridge_ip, cidr } = BridgeSays::from(&new.bridge);
        NewTapSays { bridge_name, bridge_ip, cidr, tap_name: new.tap.to_string() }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct TapSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) tap_name: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct TapsSays {
    #[serde(deserialize_with = "texts")]
    pub(crate) tap_names: Vec<String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct ResolverSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) bridge_name: String,
    #[serde(deserialize_with = "zero")]
    pub(crate) server_addr: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct ClearResolverSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) bridge_name: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct NatSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) guest_ip: String,
    #[serde(deserialize_with = "zero")]
    pub(crate) tap: String,
    #[serde(deserialize_with = "zero")]
    pub(crate) enable: bool,
}

pub(crate) fn ensure_bridge(text: Option<&str>) -> Result<Bridge, Refusal> {
    params::read::<BridgeSays>(text)?.check()
}

/// The tap's name is checked first, as the existing helper does.
pub(crate) fn create_tap(text: Option<&str>) -> Result<NewTap, Refusal> {
    let NewTapSays { bridge_name, bridge_ip, cidr, tap_name } = params::read(text)?;
    let tap = TapName::new(&tap_name).map_err(|e| e.refuse(Code::OperationFailed, "tap_name"))?;
    let bridge = BridgeSays { bridge_name, bridge_ip, cidr }.check()?;
    Ok(NewTap { bridge, tap })
}

pub(crate) fn delete_tap(text: Option<&str>) -> Result<TapName, Refusal> {
    let says = params::read::<TapSays>(text)?;
    TapName::new(&says.tap_name).map_err(|e| e.refuse(Code::OperationFailed, "tap_name"))
}

/// The most taps of one request: as many as one bridge holds.
pub const MAX_TAPS: usize = 1023;

/// Ours, so its bound and its names answer with the code of [`delete_tap`]'s name. No names: nothing to do.
pub(crate) fn delete_taps(text: Option<&str>) -> Result<Vec<TapName>, Refusal> {
    let TapsSays { tap_names } = params::read(text)?;
    if tap_names.len() > MAX_TAPS {
        let many = format!("{} taps, and one request may name {MAX_TAPS}", tap_names.len());
        return Err(Refusal::new(Code::OperationFailed, "tap_names", many));
    }
    let name = |name: &String| TapName::new(name).map_err(|e| e.refuse(Code::OperationFailed, "tap_names"));
    tap_names.iter().map(name).collect()
}

/// `None` where there is nothing to do: both fields blank.
pub(crate) fn sync_resolver_routing(text: Option<&str>) -> Result<Option<ResolverRoute>, Refusal> {
    let says = params::read::<ResolverSays>(text)?;
    if is_blank(&says.bridge_name) && is_blank(&says.server_addr) {
        return Ok(None);
    }
    let bridge = resolver_bridge(&says.bridge_name)?;
    let server = ServerAddr::new(&says.server_addr).map_err(|e| e.refuse(Code::BadParams, "server_addr"))?;
    Ok(Some(ResolverRoute { bridge, server }))
}

/// `None` where there is nothing to do: a blank name.
pub(crate) fn clear_resolver_routing(text: Option<&str>) -> Result<Option<BridgeName>, Refusal> {
    let says = params::read::<ClearResolverSays>(text)?;
    if is_blank(&says.bridge_name) {
        return Ok(None);
    }
    resolver_bridge(&says.bridge_name).map(Some)
}

pub(crate) fn ensure_nat(text: Option<&str>) -> Result<Nat, Refusal> {
    let says = params::read::<NatSays>(text)?;
    let guest = GuestAddr::new(&says.guest_ip).map_err(|e| e.refuse(Code::BadParams, "guest_ip"))?;
    let tap = TapName::new(&says.tap).map_err(|e| e.refuse(Code::BadParams, "tap"))?;
    Ok(Nat { guest, tap, switch: if says.enable { Switch::On } else { Switch::Off } })
}

fn resolver_bridge(text: &str) -> Result<BridgeName, Refusal> {
    BridgeName::new(text).map_err(|e| e.refuse(Code::BadParams, "bridge_name"))
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}
