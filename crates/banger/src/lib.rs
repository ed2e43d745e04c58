//! What the command line and the owner's daemon share.

pub mod image;
