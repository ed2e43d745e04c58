//! What the command line and the owner's daemon share.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
mod duration;
pub mod image;
mod near;
pub mod root;
mod size;
pub mod time;
pub mod workspace;
