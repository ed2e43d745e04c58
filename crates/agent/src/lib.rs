//! What runs in the guest, and the protocol by which the host speaks to it.
//!
//! [`relay`] carries many byte streams over one virtio-serial port. [`protocol`] is what one of them
//! says where it goes to the agent. Both are pure: bytes in, events out. [`client`] makes one call.

pub mod client;
pub mod protocol;
pub mod relay;
