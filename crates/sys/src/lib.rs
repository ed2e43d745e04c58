//! The unsafe code of the workspace: one system interface a file, each safe to call.

pub mod child;
pub mod guest;
pub mod kvm;
pub mod sigwait;
pub mod tapfd;
pub mod tsc;
pub mod vsock;
