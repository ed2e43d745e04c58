//! What we ask of systemd-resolved: org.freedesktop.resolve1(5), and of the bus itself.

use super::message::{Target, Values};
use std::net::IpAddr;
use wire::name::addr::ServerAddr;

/// systemd-resolved.
pub(super) const MANAGER: Target = Target {
    name: "org.freedesktop.resolve1",
    path: "/org/freedesktop/resolve1",
    interface: "org.freedesktop.resolve1.Manager",
};

/// The bus.
pub(super) const BUS: Target =
    Target { name: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

/// The usual port of a name server.
const PORT: u16 = 53;

/// A method with its parameters.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) member: &'static str,
    pub(super) signature: &'static str,
    pub(super) body: Values,
}

fn of(member: &'static str, signature: &'static str, write: impl FnOnce(&mut Values)) -> Call {
    let mut body = Values::default();
    write(&mut body);
    Call { member, signature, body }
}

/// The link's only server. At another port it takes a newer method, of systemd 246.
pub(super) fn dns(link: u32, server: ServerAddr) -> Call {
    let port = server.port.filter(|&port| port != PORT);
    let (member, signature) = match port {
        None => ("SetLinkDNS", "ia(iay)"),
        Some(_) => ("SetLinkDNSEx", "ia(iayqs)"),
    };
    of(member, signature, |body| {
        body.u32(link).structs(|servers| {
            servers.structure();
            match server.ip {
                IpAddr::V4(ip) => servers.u32(libc::AF_INET.cast_unsigned()).bytes(&ip.octets()),
                IpAddr::V6(ip) => servers.u32(libc::AF_INET6.cast_unsigned()).bytes(&ip.octets()),
            };
            if let Some(port) = port {
                // No name to prove by TLS.
                servers.u16(port).text("");
            }
        });
    })
}

/// `~vm`: names below it go to the link's server, and it is no search domain.
pub(super) fn domains(link: u32) -> Call {
    of("SetLinkDomains", "ia(sb)", |body| {
        body.u32(link).structs(|domains| {
            domains.structure().text("vm").u32(1);
        });
    })
}

/// Other names don't go to the link's server.
pub(super) fn no_default_route(link: u32) -> Call {
    of("SetLinkDefaultRoute", "ib", |body| {
        body.u32(link).u32(0);
    })
}

/// A method of the kind `SetLinkLLMNR`, with "no".
pub(super) fn off(member: &'static str, link: u32) -> Call {
    of(member, "is", |body| {
        body.u32(link).text("no");
    })
}

/// Everything that the link was told is forgotten.
pub(super) fn revert(link: u32) -> Call {
    of("RevertLink", "i", |body| {
        body.u32(link);
    })
}

/// A question to the bus about resolved: `NameHasOwner`, `GetConnectionUnixProcessID`.
pub(super) fn about_resolved(member: &'static str) -> Call {
    of(member, "s", |body| {
        body.text(MANAGER.name);
    })
}

/// The first call on a bus.
pub(super) fn hello() -> Call {
    of("Hello", "", |_| {})
}
