//! What runs in the guest, and the protocol by which the host speaks to it.
//!
//! [`relay`] carries many byte streams over one virtio-serial port. [`protocol`] is what one of them
//! says where it goes to the agent, [`flow`] the credit of its streams. All of it is pure: bytes in, events out. [`host`]
//! is the host's half, for interactive use; [`client`] makes one call and waits.

pub mod client;
pub mod copy;
pub mod flow;
pub mod host;
pub mod listeners;
pub mod protocol;
pub mod relay;
pub mod tar;
