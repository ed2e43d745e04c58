//! The world beyond the NAT: a host in a network namespace of its own, behind a link that is this machine's way out. It knows
//! no way to the guests' network, so an answer that comes back proves the masquerade.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::programs;

/// The host's address: one that is kept for documentation.
pub(crate) const HOST: &str = "203.0.113.1";
/// This machine's, on the same link.
pub(crate) const OURS: &str = "203.0.113.2";
/// Where the host answers over TCP.
pub(crate) const PORT: u16 = 7000;

const NAMESPACE: &str = "beyond";

/// The host, there until this is dropped.
pub(crate) struct Outside(());

impl Outside {
    /// Makes the link, the namespace and the host.
    pub(crate) fn make() -> Result<Self> {
        ip(&["link", "set", "lo", "up"])?;
        ip(&["netns", "add", NAMESPACE])?;
        let outside = Self(());
        ip(&["link", "add", "uplink", "type", "veth", "peer", "name", "far", "netns", NAMESPACE])?;
        ip(&["addr", "add", &format!("{OURS}/24"), "dev", "uplink"])?;
        ip(&["-n", NAMESPACE, "addr", "add", &format!("{HOST}/24"), "dev", "far"])?;
        ip(&["-n", NAMESPACE, "link", "set", "far", "up"])?;
        ip(&["link", "set", "uplink", "up"])?;
        ip(&["route", "add", "default", "via", HOST])?;
        serve()?;
        Ok(outside)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // With the namespace goes its end of the link, and with that the other end.
        if let Err(e) = ip(&["netns", "del", NAMESPACE]) {
            eprintln!("{e:#}");
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    programs::output("ip", arguments).context("can't make the world beyond the NAT").map(drop)
}

/// Listens in the other namespace, on a thread that stays there.
fn serve() -> Result<()> {
    let (send, listens) = mpsc::channel();
    thread::spawn(move || {
        let listener = listen();
        let failed = listener.as_ref().err().map(|e| format!("{e:#}"));
        // The receiver waits for exactly this.
        let _ = send.send(failed);
        let Ok(listener) = listener else { return };
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(&stream));
        }
    });
    match listens.recv()? {
        None => Ok(()),
        Some(e) => Err(anyhow::anyhow!("the host beyond can't listen: {e}")),
    }
}

fn listen() -> Result<TcpListener> {
    let namespace = File::open(format!("/run/netns/{NAMESPACE}"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(TcpListener::bind(SocketAddr::new(HOST.parse()?, PORT))?)
}

/// One line in, one line out: who asked, as it is seen from here.
fn answer(mut stream: &TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    let peer = stream.peer_addr().ok()?.ip();
    writeln!(stream, "{HOST} heard \"{}\" from {peer}", programs::plain(&line)).ok()
}
