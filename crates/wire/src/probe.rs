//! `priv.probe_network`: whose packet is sent, and where it ended.

use crate::code::{Code, Refusal};
use crate::name::addr::GuestAddr;
use crate::name::link::TapName;
use crate::params::{self, zero};
use serde::{Deserialize, Serialize};

/// Whose packet is sent.
///
/// `{"guest_ip":"172.16.0.2","tap":"tap-fc-1"}`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The guest.
    pub guest: GuestAddr,
    /// Its tap: the packet enters by its bridge.
    pub tap: TapName,
}

/// Where the packet ended. The result of `priv.probe_network`; fields are only ever added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Probed {
    /// How it ended.
    pub end: End,
    /// The link that it would have left by; empty where it did not come that far.
    pub uplink: String,
    /// What dropped it, or queued it.
    pub by: Option<EndedBy>,
    /// What that means, and what to do; empty where the way is open.
    pub why: String,
}

/// How a packet can end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum End {
    /// It passed all rules and was about to leave.
    Open,
    /// A rule, or a chain's policy, dropped or rejected it.
    Dropped,
    /// A rule gave it to another program, which decides.
    Queued,
    /// There is no way to where it goes.
    NoRoute,
    /// The host does not forward what comes from the bridge.
    NotForwarded,
    /// No rule of nftables took it, and it did not leave.
    #[default]
    Lost,
}

/// What a packet met last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EndedBy {
    /// The table's family.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule's handle; 0 for the chain's policy.
    pub handle: u64,
    /// The rule in words like nft's, as far as they are known here; `[…]` stands for what isn't.
    pub rule: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct ProbeSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) guest_ip: String,
    #[serde(deserialize_with = "zero")]
    pub(crate) tap: String,
}

impl From<&Probe> for ProbeSays {
    fn from(probe: &Probe) -> ProbeSays {
        ProbeSays { guest_ip: probe.guest.to_string(), tap: probe.tap.to_string() }
    }
}

/// The same checks with the same codes as `priv.ensure_nat`'s of the same fields.
pub(crate) fn probe_network(text: Option<&str>) -> Result<Probe, Refusal> {
    let says = params::read::<ProbeSays>(text)?;
    let guest = GuestAddr::new(&says.guest_ip).map_err(|e| e.refuse(Code::BadParams, "guest_ip"))?;
    let tap = TapName::new(&says.tap).map_err(|e| e.refuse(Code::BadParams, "tap"))?;
    Ok(Probe { guest, tap })
}
