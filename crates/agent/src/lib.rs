//! What runs in the guest, and the protocol by which the host speaks to it.
//!
//! [`relay`] carries many byte streams over one virtio-serial port. It is pure: bytes in, events out.

pub mod relay;
