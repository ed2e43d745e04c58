//! Rights that no operation needs are given up before the helper listens; what it keeps, and why.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits, set_no_new_privs,
};

/// What the helper keeps.
const KEPT: CapabilitySet = CapabilitySet::CHOWN // a socket, a tap's file, the runtime directory go to the owner
    .union(CapabilitySet::DAC_OVERRIDE) // what lies in the owner's directories is removed for him
    .union(CapabilitySet::FOWNER) // a VM's socket, which is the owner's, gets its mode
    .union(CapabilitySet::KILL) // a VMM is the owner's process
    .union(CapabilitySet::SETUID) // files are opened, VMMs run as the owner
    .union(CapabilitySet::SETGID) // with his groups and no others
    .union(CapabilitySet::SETPCAP) // a VMM's bounding set is emptied
    .union(CapabilitySet::NET_ADMIN) // links, addresses, taps, rules
    .union(CapabilitySet::SYS_ADMIN) // mount namespaces, cgroups
    .union(CapabilitySet::SYS_CHROOT) // a jailer's, an image worker's, and to have a mount namespace of one's own
    .union(CapabilitySet::MKNOD) // a jail's devices, e2fsck's
    .union(CapabilitySet::SYS_PTRACE); // which program the owner's process runs: /proc/PID/exe

/// What it keeps aside, in effect in no operation: `iptables-legacy` opens a raw socket to speak to the kernel's old
/// tables, and a program that root starts gets no more than its starter has (`no_new_privs`).
const ASIDE: CapabilitySet = CapabilitySet::NET_RAW;

/// The highest number that a capability can have.
const LAST: u32 = 63;

/// Gives up the rest. To be called while there is one thread: each has its own rights.
pub(crate) fn give_up() -> Result<(), String> {
    // Under a starter's SECBIT_NO_SETUID_FIXUP a change of the file system's uid would leave the rights over files.
    set_capabilities_secure_bits(CapabilitiesSecureBits::empty())
        .map_err(|errno| format!("PR_SET_SECUREBITS to none (a starter locked them): {errno}"))?;
    for number in 0..=LAST {
        let Some(one) = CapabilitySet::from_bits(1 << number) else { continue };
        // A kernel that does not know a capability says so here.
        if KEPT.union(ASIDE).contains(one) || capability_is_in_bounding_set(one) != Ok(true) {
            continue;
        }
        remove_capability_from_bounding_set(one).map_err(|errno| format!("dropping capability {number}: {errno}"))?;
    }
    // Root in a container may have fewer than these.
    let have = rustix::thread::capabilities(None).map_err(|errno| format!("capget: {errno}"))?.permitted;
    let sets = CapabilitySets {
        effective: KEPT & have,
        permitted: KEPT.union(ASIDE) & have,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(|errno| format!("capset: {errno}"))?;
    set_no_new_privs(true).map_err(|errno| format!("PR_SET_NO_NEW_PRIVS: {errno}"))
}

/// No core, no look into the memory: keys pass through it.
pub(crate) fn keep_memory_private() -> Result<(), String> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| format!("PR_SET_DUMPABLE: {errno}"))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|errno| format!("RLIMIT_CORE: {errno}"))
}

/// Makes room for so many descriptors, where the limit is lower.
pub(crate) fn raise_open_files(wanted: u64) -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
        .map_err(|errno| format!("RLIMIT_NOFILE of {wanted} (limits.connections needs as many): {errno}"))
}
