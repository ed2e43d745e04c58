//! A typed call, and what comes of it: `cargo run -p wire --example call [SOCKET]`.
//!
//! Asks the helper on a socket what of banger's is in the kernel. Where nothing listens it says so and ends with 1.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;
use wire::client::{Client, Error};

fn main() -> ExitCode {
    let socket = std::env::args().nth(1).unwrap_or_else(|| "/run/banger-root/bangerd-root.sock".into());
    let client = Client::new(|| {
        let stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(stream)
    })
    .op_id("example-1");
    match client.list_resources() {
        Ok(found) => {
            println!("{} bridges, {} taps, {} VMs", found.bridges.len(), found.taps.len(), found.vms.len());
            ExitCode::SUCCESS
        }
        Err(Error::Io(error)) => {
            eprintln!("{socket}: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
