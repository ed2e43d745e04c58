//! From root to a VMM's user, with no way back.

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// The highest number that a capability can have.
const LAST: u32 = 63;

/// This process, which has one thread, becomes that user: no groups but his one, no capability and none to be had again,
/// no program that gives more rights, no key that root had.
pub(crate) fn become_for_good(uid: u32, gid: u32) -> Result<(), String> {
    set_capabilities_secure_bits(CapabilitiesSecureBits::empty())
        .map_err(|errno| format!("PR_SET_SECUREBITS to none (a starter locked them): {errno}"))?;
    for one in (0..=LAST).filter_map(|number| CapabilitySet::from_bits(1 << number)) {
        // A kernel that does not know a capability says so here.
        if capability_is_in_bounding_set(one) == Ok(true) {
            remove_capability_from_bounding_set(one).map_err(|errno| format!("PR_CAPBSET_DROP({one:?}): {errno}"))?;
        }
    }
    clear_ambient_capability_set().map_err(|errno| format!("PR_CAP_AMBIENT_CLEAR_ALL: {errno}"))?;
    // Root's still: it does not count among the keys that the user may have.
    sys::exec::own_keyring().map_err(|error| format!("keyctl(new session keyring): {error}"))?;
    set_thread_groups(&[]).map_err(|errno| format!("setgroups(none): {errno}"))?;
    let gid = Gid::from_raw(gid);
    set_thread_res_gid(gid, gid, gid).map_err(|errno| format!("setresgid({}): {errno}", gid.as_raw()))?;
    let uid = Uid::from_raw(uid);
    set_thread_res_uid(uid, uid, uid).map_err(|errno| format!("setresuid({}): {errno}", uid.as_raw()))?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(|errno| format!("capset(none): {errno}"))?;
    set_no_new_privs(true).map_err(|errno| format!("PR_SET_NO_NEW_PRIVS: {errno}"))
}
