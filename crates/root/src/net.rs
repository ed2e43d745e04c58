//! Links, addresses, rules: the six network methods.

use crate::fail::Fail;
use crate::host::Host;
use wire::name::link::{BridgeName, TapName};
use wire::net::{Bridge, Nat, NewTap, ResolverRoute};

/// What the network methods keep between calls.
pub(crate) struct Net {}

impl Net {
    /// Opens what the methods need.
    pub(crate) fn open() -> Result<Net, Fail> {
        Ok(Net {})
    }
}

fn not_yet() -> Fail {
    Fail::new("this method is not built yet")
}

pub(crate) fn ensure_bridge(_host: &Host, _bridge: &Bridge) -> Result<(), Fail> {
    Err(not_yet())
}
pub(crate) fn create_tap(_host: &Host, _new: &NewTap) -> Result<(), Fail> {
    Err(not_yet())
}
pub(crate) fn delete_tap(_host: &Host, _tap: &TapName) -> Result<(), Fail> {
    Err(not_yet())
}
pub(crate) fn ensure_nat(_host: &Host, _nat: &Nat) -> Result<(), Fail> {
    Err(not_yet())
}
pub(crate) fn sync_resolver_routing(_host: &Host, _route: &ResolverRoute) -> Result<(), Fail> {
    Err(not_yet())
}
pub(crate) fn clear_resolver_routing(_host: &Host, _bridge: &BridgeName) -> Result<(), Fail> {
    Err(not_yet())
}
/// Fills in `bridges`, `taps`, `guests`.
pub(crate) fn list(_host: &Host, _found: &mut wire::reply::Resources) -> Result<(), Fail> {
    Ok(())
}
