//! What the command line and the owner's daemon share.

pub mod cli;
pub mod image;
pub mod root;
