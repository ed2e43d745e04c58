//! What a guest is started from: a kernel out of a distribution's package, and the initrd that carries the agent.

pub mod initrd;
pub mod kernel;

mod elf;
mod xz_zstd;
