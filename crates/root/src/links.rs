//! The kernel's links and how it is asked about them: what networks and VMs both read, below both.

pub(crate) mod address;
pub(crate) mod link;
pub(crate) mod message;
pub(crate) mod netlink;
