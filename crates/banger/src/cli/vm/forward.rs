//! `vm forward`: listeners here, each connection of which goes on to a port in a guest through its agent.

use super::dial;
use super::link::Link;
use crate::api::Fault;
use crate::api::vm::Port;
use crate::cli::output;
use crate::cli::problem::Problem;
use crate::cli::reach::Reach;
use crate::daemon::error::exit;
use clap::Args;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

#[derive(Args)]
pub(crate) struct Forward {
    /// The VM: its name, or 4 or more digits of its id.
    name: String,
    /// [ADDRESS:]HOST[:GUEST]: the port here, and the one in the VM where that is another. 0: a free one here.
    #[arg(required = true, value_name = "PORTS", value_parser = rule)]
    ports: Vec<Rule>,
    #[command(flatten)]
    reach: Reach,
}

/// How long nothing is accepted after an accept that failed: no descriptor may be left for now.
const BREATH: Duration = Duration::from_millis(100);

/// Where to listen, and where to in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    here: SocketAddr,
    guest: u16,
}

/// Reads `[ADDRESS:]HOST[:GUEST]`; an address of IPv6 has brackets.
pub(super) fn rule(text: &str) -> Result<Rule, String> {
    let wrong = || {
        let shown = wire::code::shown(text);
        format!("{shown} is no [ADDRESS:]HOST[:GUEST], such as 8000, 8000:80, 0.0.0.0:8000 or [::1]:8000:80")
    };
    let (address, ports) = split(text).ok_or_else(wrong)?;
    let (host, guest) = ports.split_once(':').unwrap_or((ports, ports));
    let here = SocketAddr::new(address, port(host).ok_or_else(wrong)?);
    Ok(Rule { here, guest: guest_port(text, guest)? })
}

/// Reads `[ADDRESS:]HOST:GUEST`, which has both ports: elsewhere one alone means another thing.
pub(super) fn published(text: &str) -> Result<Port, String> {
    let wrong = || {
        let shown = wire::code::shown(text);
        format!("{shown} is no [ADDRESS:]HOST:GUEST, such as 8080:80, 0:80, 0.0.0.0:8080:80 or [::1]:8080:80")
    };
    let (address, ports) = split(text).ok_or_else(wrong)?;
    let (host, guest) = ports.split_once(':').ok_or_else(wrong)?;
    Ok(Port { address, port: port(host).ok_or_else(wrong)?, guest: guest_port(text, guest)? })
}

fn guest_port(text: &str, guest: &str) -> Result<u16, String> {
    let found = port(guest).filter(|port| *port != 0);
    found.ok_or_else(|| format!("{}: the VM's port has a number, 1 to 65535", wire::code::shown(text)))
}

/// Reads `[ADDRESS:]PORT`: a place in a guest.
pub(super) fn target(text: &str) -> Result<SocketAddr, String> {
    let found = split(text).and_then(|(address, rest)| Some((address, port(rest).filter(|port| *port != 0)?)));
    let (address, port) = found
        .ok_or_else(|| format!("{} is no [ADDRESS:]PORT, such as 22 or 172.16.0.2:80", wire::code::shown(text)))?;
    Ok(SocketAddr::new(address, port))
}

/// The address that a text begins with, else this machine's own, and the rest.
fn split(text: &str) -> Option<(IpAddr, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once("]:")?;
        return Some((IpAddr::V6(address.parse().ok()?), rest));
    }
    match text.split_once(':') {
        Some((first, rest)) if first.contains('.') => Some((IpAddr::V4(first.parse().ok()?), rest)),
        _ => Some((Ipv4Addr::LOCALHOST.into(), text)),
    }
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

pub(super) fn forward(forward: &Forward) -> Result<(), Problem> {
    // Whether the VM is there is asked before anybody can connect; this connection then says when it has ended.
    let link = Link::to(&forward.reach, &forward.name)?;
    let vm = link.vm().to_owned();
    let listeners: Vec<(TcpListener, u16)> =
        forward.ports.iter().map(|rule| Ok((listen(rule.here)?, rule.guest))).collect::<Result<_, Problem>>()?;
    for (listener, guest) in listeners {
        let here = listener.local_addr().map_err(|error| Problem::of_fault(Fault::bug(error)))?;
        let (reach, name) = (forward.reach.clone(), vm.clone());
        begin(move || accept(&listener, &reach, &name, guest)).map_err(|error| Problem::of_fault(Fault::bug(error)))?;
        output::ours(&format!("{here} -> {vm}:{guest}\n"));
    }
    let ended = link.ended();
    Err(Problem::of_fault(match ended.code.as_str() {
        "lost" => Fault::new("lost", exit::FAILED, format!("{vm} has ended, and its ports with it")),
        _ => ended,
    }))
}

fn listen(at: SocketAddr) -> Result<TcpListener, Problem> {
    TcpListener::bind(at).map_err(|error| {
        let problem = Problem::new("listen", format!("{at} can't be listened on")).why(&error);
        match error.kind() {
            std::io::ErrorKind::AddrInUse => problem.fix("another port here: banger vm forward NAME OTHER:GUEST"),
            std::io::ErrorKind::PermissionDenied => problem.fix("a port from 1024 on: banger vm forward NAME 8080:80"),
            _ => problem,
        }
    })
}

fn accept(listener: &TcpListener, reach: &Reach, name: &str, guest: u16) {
    loop {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(BREATH);
            continue;
        };
        let (reach, name) = (reach.clone(), name.to_owned());
        // Where no thread is to be had the connection is closed with what it was to run.
        let _ = begin(move || pass_on(&stream, &reach, &name, guest));
    }
}

/// One connection, from its beginning to its end.
fn pass_on(stream: &TcpStream, reach: &Reach, name: &str, guest: u16) {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, guest));
    let ended = || drop(stream.shutdown(Shutdown::Write));
    if let Err(problem) = dial::through(reach, name, to, [stream.as_fd(), stream.as_fd()], ended) {
        output::failure(&problem, problem.exit());
    }
}

fn begin(work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new().spawn(work).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_a_person_writes_them() {
        for (text, here, guest) in [
            ("8000", "127.0.0.1:8000", 8000),
            ("8000:80", "127.0.0.1:8000", 80),
            ("0:80", "127.0.0.1:0", 80),
            ("0.0.0.0:8000", "0.0.0.0:8000", 8000),
            ("0.0.0.0:8000:80", "0.0.0.0:8000", 80),
            ("[::1]:8000:80", "[::1]:8000", 80),
        ] {
            assert_eq!(rule(text), Ok(Rule { here: here.parse().unwrap(), guest }), "{text}");
        }
        for bad in
            ["", "0", "x", "80:", ":80", "80:0", "65536", "+80", "1:2:3", "::1:80", "1.2.3:80", "[::1]80", "a.b:1"]
        {
            assert!(rule(bad).is_err(), "{bad}");
        }
        for (text, address, port, guest) in [
            ("8080:80", "127.0.0.1", 8080, 80),
            ("0:80", "127.0.0.1", 0, 80),
            ("0.0.0.0:8080:80", "0.0.0.0", 8080, 80),
            ("[::1]:8080:80", "::1", 8080, 80),
        ] {
            assert_eq!(published(text), Ok(Port { address: address.parse().unwrap(), port, guest }), "{text}");
        }
        for bad in ["", "80", "0.0.0.0:8080", "8080:0", "80:", ":80", "1:2:3", "::1:80:80", "8080:65536", "8080:80/tcp"]
        {
            assert!(published(bad).is_err(), "{bad}");
        }
        assert_eq!(target("22"), Ok("127.0.0.1:22".parse().unwrap()));
        assert_eq!(target("[::1]:22"), Ok("[::1]:22".parse().unwrap()));
        assert!(target("0").is_err() && target("22:23").is_err() && target("web").is_err());
    }
}
