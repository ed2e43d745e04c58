//! What a guest is started from: a root file system, a kernel, and the initrd that carries the agent.

pub mod build;
pub mod debian;
pub mod error;
pub mod ext4;
pub mod initrd;
pub mod kernel;
pub mod oci;
pub mod program;
pub mod progress;
pub mod store;
pub mod tree;

mod elf;
mod packed;
mod tar;
mod xz_zstd;
