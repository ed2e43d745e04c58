//! The unsafe code of the workspace: one system interface a file, each safe to call.

pub mod child;
pub mod confine;
pub mod confined;
pub mod creds;
pub mod dir;
pub mod dm;
pub mod entropy;
pub mod exec;
pub mod fork;
pub mod ground;
pub mod guest;
pub mod handle;
pub mod kvm;
pub mod landlock;
pub mod loopdev;
pub mod mount;
pub mod netlink;
pub mod netlink_events;
pub mod pidfd;
pub mod sandbox;
pub mod sigwait;
pub mod spawn;
pub mod tapfd;
pub mod tsc;
pub mod tun;
pub mod vsock;
