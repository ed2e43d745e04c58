//! The world around a helper in a network test: what is in the kernel by `ip` and `nft`, an outside, guests that speak.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use crate::common::{eventually, output};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// Where the packets go: a host behind the uplink.
pub const OUTSIDE: &str = "198.51.100.1";

/// A bridge's parameters.
pub fn bridge(name: &str, ip: &str) -> Value {
    json!({"bridge_name": name, "bridge_ip": ip, "cidr": "24"})
}

/// A tap's parameters, on `br-fc`.
pub fn tap(name: &str) -> Value {
    json!({"bridge_name": "br-fc", "bridge_ip": "172.16.0.1", "cidr": "24", "tap_name": name})
}

/// A tap's name as parameters.
pub fn named(name: &str) -> Value {
    json!({"tap_name": name})
}

/// A guest's way out.
pub fn nat(ip: &str, tap: &str, enable: bool) -> Value {
    json!({"guest_ip": ip, "tap": tap, "enable": enable})
}

/// `ip` with its arguments in one text.
pub fn ip(arguments: &str) -> String {
    output("ip", &arguments.split(' ').collect::<Vec<_>>())
}

/// One link by `ip -j -d link`; `None` where there is none of that name.
pub fn link(name: &str) -> Option<Value> {
    links().into_iter().find(|link| link["ifname"] == name)
}

/// All links.
pub fn links() -> Vec<Value> {
    serde_json::from_str(&ip("-j -d link")).expect("JSON")
}

/// A link's IPv4 and IPv6 addresses.
pub fn addresses(name: &str) -> Vec<String> {
    let all: Vec<Value> = serde_json::from_str(&ip("-j addr")).expect("JSON");
    let link = all.iter().find(|link| link["ifname"] == name).expect("the link");
    let infos = link["addr_info"].as_array().expect("addresses");
    infos.iter().map(|info| format!("{}/{}", info["local"].as_str().expect("an address"), info["prefixlen"])).collect()
}

/// The elements of a set of ours, as nft prints them in JSON.
pub fn set(family: &str, name: &str) -> Vec<String> {
    for object in ruleset() {
        let set = &object["set"];
        if set["family"] == family && set["table"] == "banger" && set["name"] == name {
            let elements = set["elem"].as_array().cloned().unwrap_or_default();
            return elements.iter().map(element).collect();
        }
    }
    Vec::new()
}

fn element(element: &Value) -> String {
    let parts = element["concat"].as_array().cloned().unwrap_or_else(|| vec![element.clone()]);
    parts
        .iter()
        .map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned))
        .collect::<Vec<_>>()
        .join(" . ")
}

/// The ruleset by `nft -j`, without handles and counters. Of a table's flags only whether somebody owns it: what else
/// there is, nft prints as what it is not.
pub fn ruleset() -> Vec<Value> {
    let all: Value = serde_json::from_str(&output("nft", &["-j", "list", "ruleset"])).expect("JSON");
    let mut objects = all["nftables"].as_array().cloned().unwrap_or_default();
    objects.retain(|object| object.get("metainfo").is_none());
    objects.iter_mut().for_each(clean);
    for table in objects.iter_mut().filter_map(|object| object.get_mut("table")?.as_object_mut()) {
        let flags = table.remove("flags");
        let is_owned = flags.as_ref().and_then(Value::as_array).is_some_and(|flags| flags.contains(&json!("owner")))
            || flags == Some(json!("owner"));
        table.insert("owned".into(), is_owned.into());
    }
    objects
}

fn clean(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("handle");
            for key in ["packets", "bytes"] {
                map.remove(key);
            }
            if let Some(Value::Array(elements)) = map.get_mut("elem") {
                elements.sort_by_key(ToString::to_string);
            }
            map.values_mut().for_each(clean);
        }
        Value::Array(values) => values.iter_mut().for_each(clean),
        _ => {}
    }
}

/// All that an operation must leave as it was when it fails: links, addresses, routes, rules, switches, the record.
pub fn snapshot() -> BTreeMap<&'static str, String> {
    let mut links = links();
    links.sort_by_key(|link| link["ifindex"].as_u64());
    links.iter_mut().for_each(settle);
    let mut addresses: Vec<Value> = serde_json::from_str(&ip("-j addr")).expect("JSON");
    addresses.iter_mut().for_each(settle);
    let routes: Vec<Value> = serde_json::from_str(&ip("-j -4 route show table all")).expect("JSON");
    let mut routes: Vec<_> = routes
        .into_iter()
        .map(|mut route| {
            settle(&mut route);
            route.to_string()
        })
        .collect();
    routes.sort();
    let record = fs::read_to_string("/run/banger-root/records/forwarding").unwrap_or_default();
    BTreeMap::from([
        ("links", serde_json::to_string_pretty(&links).expect("JSON")),
        ("addresses", serde_json::to_string_pretty(&addresses).expect("JSON")),
        ("rules", serde_json::to_string_pretty(&ruleset()).expect("JSON")),
        ("forwarding", switches("forwarding")),
        ("arp_ignore", switches("arp_ignore")),
        ("routes", routes.join("\n")),
        ("record", record),
    ])
}

/// Takes out what the kernel changes by itself and late: timers, and all that follows from a carrier.
fn settle(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for key in [
                "operstate",
                "gc_timer",
                "hello_timer",
                "state",
                "qdisc",
                "tso_max_size",
                "tso_max_segs",
                "topology_change",
                "tentative",
            ] {
                map.remove(key);
            }
            if let Some(Value::Array(flags)) = map.get_mut("flags") {
                flags.retain(|flag| {
                    !["NO-CARRIER", "LOWER_UP", "linkdown"].contains(&flag.as_str().unwrap_or_default())
                });
            }
            map.values_mut().for_each(settle);
        }
        Value::Array(values) => values.iter_mut().for_each(settle),
        _ => {}
    }
}

/// Says what differs between two snapshots, line by line.
pub fn difference(before: &BTreeMap<&'static str, String>, after: &BTreeMap<&'static str, String>) -> String {
    let mut text = String::new();
    for (key, was) in before {
        let is = &after[key];
        let (was, is): (Vec<_>, Vec<_>) = (was.lines().collect(), is.lines().collect());
        // A thousand links are a hundred thousand lines.
        let (had, has): (HashSet<_>, HashSet<_>) = (was.iter().collect(), is.iter().collect());
        for line in was.iter().filter(|line| !has.contains(line)) {
            text.push_str(&format!("{key} lost {line}\n"));
        }
        for line in is.iter().filter(|line| !had.contains(line)) {
            text.push_str(&format!("{key} has {line}\n"));
        }
    }
    text
}

fn switches(name: &str) -> String {
    let mut all: Vec<_> = fs::read_dir("/proc/sys/net/ipv4/conf")
        .expect("conf")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .map(|link| format!("{link} {}\n", sysctl(&link, name)))
        .collect();
    all.sort();
    all.concat()
}

/// An IPv4 switch of a link.
pub fn sysctl(link: &str, name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{link}/{name}")).expect(name).trim().to_owned()
}

/// Writes an IPv4 switch of a link.
pub fn set_sysctl(link: &str, name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/ipv4/conf/{link}/{name}"), value).expect(name);
}

/// An uplink `eth0` whose other end is in a namespace `outside`, with a default route by it; forwarding off.
pub fn uplink() {
    fs::create_dir_all("/run/netns").expect("a place");
    // A new namespace has the first one's IPv4 switches.
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("ip_forward");
    ip("link set lo up");
    ip("netns add outside");
    ip("link add eth0 type veth peer name up0 netns outside");
    ip("addr add 198.51.100.2/24 dev eth0");
    ip("link set eth0 up");
    ip("-n outside addr add 198.51.100.1/24 dev up0");
    ip("-n outside link set up0 up");
    ip("-n outside link set lo up");
    ip("route add default via 198.51.100.1");
    // The kernel gives it its own IPv6 address a moment after the other end is up: not in the middle of a comparison.
    eventually("the uplink's own address", || addresses("eth0").iter().any(|address| address.starts_with("fe80:")));
}

/// Runs `act` on a thread of its own in a named network namespace.
pub fn within<T: Send + 'static>(
    namespace: &str,
    act: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let path = format!("/run/netns/{namespace}");
    std::thread::spawn(move || {
        let file = File::open(&path).expect("the namespace");
        let net = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), net).expect("setns");
        act()
    })
}

/// A guest: a namespace of that name whose `eth0` is the other end of a tap, as a VMM would carry its frames.
pub struct Guest {
    name: &'static str,
}

impl Guest {
    /// Boots one: opens the tap as the owner's VMM does, and carries frames from and to a stack of its own.
    pub fn boot(name: &'static str, tap: &str, ip_with_prefix: &str, gateway: &str) -> Guest {
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} tuntap add eth0 mode tap vnet_hdr"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} addr add {ip_with_prefix} dev eth0"));
        let host = sys::tapfd::attach(tap).expect("the tap");
        let guest = within(name, || sys::tapfd::attach("eth0").expect("the guest's end")).join().expect("joined");
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} route add default via {gateway}"));
        let (host, guest) = (File::from(host), File::from(guest));
        let (host_too, guest_too) = (host.try_clone().expect("dup"), guest.try_clone().expect("dup"));
        std::thread::spawn(move || carry(host, guest_too));
        std::thread::spawn(move || carry(guest, host_too));
        Guest { name }
    }

    /// Sends `text` by TCP and gives the answer; `None` where none came.
    pub fn tcp(&self, to: &str, text: &'static str) -> Option<String> {
        let to = to.to_owned();
        within(self.name, move || {
            let mut stream = TcpStream::connect_timeout(&to.parse().expect("an address"), PATIENCE).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            stream.write_all(text.as_bytes()).ok()?;
            let mut answer = [0; 256];
            let length = stream.read(&mut answer).ok()?;
            Some(String::from_utf8_lossy(&answer[..length]).into_owned())
        })
        .join()
        .expect("joined")
    }

    /// The same by UDP, from any port.
    pub fn udp(&self, to: &str, text: &'static str) -> Option<String> {
        let to = to.to_owned();
        within(self.name, move || {
            let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
            socket.set_read_timeout(Some(PATIENCE)).ok()?;
            socket.send_to(text.as_bytes(), to).ok()?;
            let mut answer = [0; 256];
            let (length, _) = socket.recv_from(&mut answer).ok()?;
            Some(String::from_utf8_lossy(&answer[..length]).into_owned())
        })
        .join()
        .expect("joined")
    }

    /// A TCP connection that stays open.
    pub fn connect(&self, to: &str) -> Option<TcpStream> {
        let to = to.to_owned();
        within(self.name, move || {
            let stream = TcpStream::connect_timeout(&to.parse().expect("an address"), PATIENCE).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            Some(stream)
        })
        .join()
        .expect("joined")
    }
}

/// How long an answer within this machine may take.
pub const PATIENCE: Duration = Duration::from_millis(800);

fn carry(mut from: File, mut to: File) {
    let mut frame = [0; 70_000];
    loop {
        match from.read(&mut frame) {
            Ok(0) => return,
            Ok(length) => {
                let _ = to.write(&frame[..length]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let mut poll = [rustix::event::PollFd::new(&from, rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut poll, None);
            }
            Err(_) => return,
        }
    }
}

/// Answers TCP and UDP at a port in a namespace with who asked, and what was said.
pub fn echo(namespace: &str, port: u16) {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let also = ready.clone();
    within(namespace, move || {
        let listener = TcpListener::bind(("0.0.0.0", port)).expect("a port");
        ready.send(()).expect("told");
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let from = stream.peer_addr().expect("a peer").ip();
                let mut said = [0; 256];
                while let Ok(length @ 1..) = stream.read(&mut said) {
                    let answer = format!("{from} said {}", String::from_utf8_lossy(&said[..length]));
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    within(namespace, move || {
        let socket = UdpSocket::bind(("0.0.0.0", port)).expect("a port");
        also.send(()).expect("told");
        let mut said = [0; 256];
        // An answer to one that is gone must not end the others'.
        loop {
            if let Ok((length, from)) = socket.recv_from(&mut said) {
                let answer = format!("{} said {}", from.ip(), String::from_utf8_lossy(&said[..length]));
                let _ = socket.send_to(answer.as_bytes(), from);
            }
        }
    });
    is_ready.recv().expect("TCP");
    is_ready.recv().expect("UDP");
}
