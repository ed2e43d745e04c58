//! What the kernel says of the guest: its figures, and who listens.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent::protocol::{Kind, Listed, Listener, MAX_PAYLOAD, Stats, encode, stream};
use rustix::thread::sched_getaffinity;

/// The most listeners that are told.
const MAX_LISTENERS: usize = 1024;
/// The most characters of a program's name (linux/sched.h: TASK_COMM_LEN, with a NUL), so that all lines together, each
/// character escaped, stay below a stream's first grant.
const MAX_NAME: usize = 15;
/// Both kinds of a socket that listens, as /proc/net has them (net/tcp_states.h: TCP_LISTEN; TCP_CLOSE for UDP).
const TABLES: [(&str, &str, &str); 4] =
    [("tcp", "tcp", "0A"), ("tcp", "tcp6", "0A"), ("udp", "udp", "07"), ("udp", "udp6", "07")];

/// The guest's figures; 0 for one that this kernel doesn't tell.
pub(super) fn stats() -> Stats {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu_busy_ms, memory) = (busy(&read("/proc/stat")), read("/proc/meminfo"));
    let (net_rx_bytes, net_tx_bytes) = carried(&read("/proc/net/dev"));
    let disk = rustix::fs::statvfs("/").map(|fs| (fs.f_blocks * fs.f_frsize, fs.f_bfree * fs.f_frsize));
    let (disk_bytes, free) = disk.unwrap_or((0, 0));
    Stats {
        boot: boot_id(),
        uptime_ms: thousandths(&read("/proc/uptime")),
        load1_milli: thousandths(&read("/proc/loadavg")),
        cpus: sched_getaffinity(None).map_or(0, |set| set.count()),
        cpu_busy_ms,
        memory_bytes: kibibytes(&memory, "MemTotal:"),
        memory_available_bytes: kibibytes(&memory, "MemAvailable:"),
        disk_bytes,
        disk_used_bytes: disk_bytes.saturating_sub(free),
        net_rx_bytes,
        net_tx_bytes,
    }
}

/// This boot, as 32 digits.
pub(super) fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.chars().filter(char::is_ascii_hexdigit).collect()
}

/// The first number of a text, `12.34`, in thousandths.
fn thousandths(text: &str) -> u64 {
    let number = text.split_ascii_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    number.map_or(0, |number| (number * 1000.0) as u64)
}

/// All but idle and waiting for disks, of the line for all processors, which counts in hundredths (USER_HZ).
fn busy(stat: &str) -> u64 {
    let fields = stat.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what guests used is in user.
    ticks.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, ticks)| ticks * 10).sum()
}

fn kibibytes(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_ascii_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn carried(dev: &str) -> (u64, u64) {
    let mut sums = (0, 0);
    for line in dev.lines().skip(2) {
        let Some((name, fields)) = line.split_once(':') else { continue };
        let fields: Vec<u64> = fields.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
        if let (false, [rx, _, _, _, _, _, _, _, tx, ..]) = (name.trim() == "lo", fields.as_slice()) {
            sums = (sums.0 + rx, sums.1 + tx);
        }
    }
    sums
}

/// Writes the listeners as lines of DATA frames, and counts them.
pub(super) fn listeners(out: &mut Vec<u8>) -> Listed {
    let mut found = Vec::new();
    for (proto, table, state) in TABLES {
        let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        found.extend(text.lines().skip(1).filter_map(|line| parse(proto, state, line)));
    }
    let left_out = found.len().saturating_sub(MAX_LISTENERS);
    found.truncate(MAX_LISTENERS);
    let programs = programs(&found.iter().map(|(_, inode)| *inode).collect::<Vec<_>>());
    let mut piece = Vec::new();
    for (listener, inode) in &mut found {
        listener.program = programs.get(inode).cloned();
        // A struct of text and numbers can't fail.
        let line = serde_json::to_vec(listener).unwrap_or_default();
        if piece.len() + line.len() >= MAX_PAYLOAD {
            encode(out, Kind::Data, stream::OUT, &std::mem::take(&mut piece));
        }
        piece.extend(line);
        piece.push(b'\n');
    }
    if !piece.is_empty() {
        encode(out, Kind::Data, stream::OUT, &piece);
    }
    Listed { listed: found.len() as u32, left_out: left_out as u32 }
}

/// A line of /proc/net/tcp and its like: number, local address, remote one, state, …, inode as the tenth word.
fn parse(proto: &str, state: &str, line: &str) -> Option<(Listener, u64)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let &[_, local, remote, has, _, _, _, _, _, inode, ..] = fields.as_slice() else { return None };
    // A UDP socket that is connected to somebody listens to nobody else.
    if has != state || !remote.ends_with(":0000") {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)?;
    let listener = Listener { proto: proto.into(), address: address_of(address)?, port, program: None };
    Some((listener, inode.parse().ok()?))
}

/// Words of the machine's own byte order, in hexadecimal.
fn address_of(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// Whose sockets those are, as far as the processes let it be seen.
fn programs(inodes: &[u64]) -> HashMap<u64, String> {
    let mut found = HashMap::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if process.file_name().as_encoded_bytes().first().is_none_or(|first| !first.is_ascii_digit()) {
            continue;
        }
        for fd in std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let link = std::fs::read_link(fd.path()).unwrap_or_default();
            let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            let Some(inode) = inode.filter(|inode| inodes.contains(inode)) else { continue };
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let name: String = name.trim_end_matches('\n').chars().take(MAX_NAME).collect();
            found.entry(inode).or_insert(name);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_s_line() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 4711 1 0 100 0";
        let (listener, inode) = parse("tcp", "0A", line).unwrap();
        assert_eq!((listener.address, listener.port, inode), ([127, 0, 0, 1].into(), 8080, 4711));
        assert_eq!(parse("tcp", "0A", &line.replace(" 0A ", " 01 ")), None, "connected");
        assert_eq!(parse("tcp", "0A", &line.replace("1F90", "0000")), None);
        assert_eq!(parse("tcp", "0A", "   0: 0100007F:1F90"), None);
        let six = address_of("00000000000000000000000001000000").unwrap();
        assert_eq!(six, IpAddr::from(Ipv6Addr::LOCALHOST));
    }

    #[test]
    fn figures_are_read_as_the_kernel_writes_them() {
        assert_eq!(busy("cpu  100 1 50 9000 700 2 3 4 60 0\ncpu0 1 1"), 1600);
        assert_eq!(thousandths("0.25 0.1 1/2 3"), 250);
        assert_eq!(kibibytes("MemFree: 1 kB\nMemTotal:  2048 kB\n", "MemTotal:"), 2 << 20);
        let dev = "head\nhead\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0: 70 1 0 0 0 0 0 0 80 1 0 0 0 0 0 0\n";
        assert_eq!(carried(dev), (70, 80));
        let stats = stats();
        assert!(stats.uptime_ms > 0 && stats.cpus > 0 && stats.memory_available_bytes <= stats.memory_bytes);
        assert_eq!(stats.boot.len(), 32);
    }

    #[test]
    fn a_listener_of_this_process_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut out = Vec::new();
        let listed = listeners(&mut out);
        assert!(listed.listed > 0);
        let text = String::from_utf8_lossy(&out);
        let port = socket.local_addr().unwrap().port();
        let line = text.lines().find(|line| line.contains(&format!("\"port\":{port},"))).expect("the line");
        assert!(line.contains("\"address\":\"127.0.0.1\"") && !line.contains("null"), "{line}");
    }
}
