//! The helper's wire: what may be said to `bangerd-root`, and what it means.
//!
//! Everything here is pure: bytes in, checked values out. Nothing is opened, no name is looked up. Start reading in
//! [`method`], the table of the methods.

pub mod client;
pub mod code;
pub mod disk;
pub mod firecracker;
pub mod frame;
pub mod image;
pub mod method;
pub mod name;
pub mod net;
mod params;
pub mod path;
pub mod probe;
pub mod qcow2;
pub mod reply;
mod scan;
#[cfg(feature = "schema")]
pub mod schema;
pub mod time;
pub mod units;
pub mod vm;
pub mod worker;

pub use code::{Code, Refusal};
pub use method::{Method, Request};
pub use reply::Reply;
