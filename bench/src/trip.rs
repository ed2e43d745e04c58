//! The round trip of a method with nothing to do, against a bare echo over a Unix socket; and what an idle helper is.

use crate::stats::{Times, compare, head};
use crate::world::{Helper, SOCKET, beside};
use anyhow::{Result, ensure};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

const EMPTY: &[u8] = b"{\"version\":1,\"method\":\"priv.clear_resolver_routing\",\"params\":{\"bridge_name\":\"\"}}\n";
const ECHO: &str = "/run/echo.sock";

pub(crate) fn measure(rounds: usize) -> Result<()> {
    let helper = Helper::start(None)?;
    println!("\n### The helper, idle\n");
    println!("resident {} KiB (peak {}), ", helper.status_kib("VmRSS")?, helper.status_kib("VmHWM")?);
    println!("binary {} KiB, ", std::fs::metadata(beside("bangerd-root")?)?.len() / 1024);
    println!("from its start to its first connection {:.1} ms", helper.ready.as_secs_f64() * 1e3);

    let listener = UnixListener::bind(ECHO)?;
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let n = stream.read(&mut buffer).unwrap_or(0);
            let _ = stream.write_all(&buffer[..n]);
        }
    });
    head("A round trip: connect, one line there, one line back");
    let (mut ours, mut theirs) = (Times::default(), Times::default());
    for _ in 0..rounds * 300 {
        ours.take(|| trip(SOCKET))?;
        theirs.take(|| trip(ECHO))?;
    }
    compare("empty method", &ours, &theirs, "bare echo, one thread for all");
    Ok(())
}

fn trip(path: &str) -> Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(EMPTY)?;
    let mut reply = Vec::with_capacity(256);
    stream.read_to_end(&mut reply)?;
    ensure!(reply.ends_with(b"\n"), "no whole reply");
    Ok(())
}
