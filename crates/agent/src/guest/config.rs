//! `/etc/banger/guest.json`: what the host wrote into the disk for this guest. It goes before the command line.

use std::io::Read;
use std::net::Ipv4Addr;

use serde::Deserialize;

use super::settings::Network;

const PATH: &str = "/etc/banger/guest.json";
const LIMIT: u64 = 16 * 1024;

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    hostname: Option<String>,
    address: Option<String>,
    gateway: Option<Ipv4Addr>,
    resolver: Option<Vec<Ipv4Addr>>,
}

/// The command line's network with the file's words over it, and the resolvers that the file names.
///
/// # Errors
/// What is wrong with the file; the command line's settings then hold alone.
pub(super) fn over(network: &Network) -> Result<(Network, Vec<Ipv4Addr>), String> {
    let file = match std::fs::File::open(PATH) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((network.clone(), Vec::new())),
        Err(error) => return Err(format!("{PATH}: {error}")),
    };
    let mut text = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut text).map_err(|error| format!("{PATH}: {error}"))?;
    read(&text).and_then(|file| apply(file, network)).map_err(|error| format!("{PATH}: {error}"))
}

fn read(text: &[u8]) -> Result<File, String> {
    if text.len() as u64 > LIMIT {
        return Err(format!("more than {LIMIT} bytes"));
    }
    if text.first() != Some(&b'{') {
        return Err("not a JSON object".into());
    }
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

fn apply(file: File, network: &Network) -> Result<(Network, Vec<Ipv4Addr>), String> {
    let mut out = network.clone();
    if let Some(text) = &file.address {
        out.address = Some(address(text).ok_or("address: write it as 172.16.0.2/24")?);
    }
    if let Some(name) = file.hostname {
        if !is_hostname(&name) {
            return Err("hostname: 1 to 64 letters, digits, - and .".into());
        }
        out.hostname = Some(name);
    }
    out.gateway = file.gateway.or(out.gateway);
    let resolvers = file.resolver.unwrap_or_default();
    if resolvers.len() > 8 { Err("resolver: at most 8".into()) } else { Ok((out, resolvers)) }
}

/// Whether the kernel and everybody else would take it for a host's name.
pub(super) fn is_hostname(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

/// An address and its mask.
pub(super) fn address(text: &str) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix: u32 = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix))?;
    Some((address.parse().ok()?, Ipv4Addr::from_bits(u32::MAX << (32 - prefix))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str) -> Result<(Network, Vec<Ipv4Addr>), String> {
        let network = Network { gateway: Some([10, 0, 0, 1].into()), ..Network::default() };
        read(text.as_bytes()).and_then(|file| apply(file, &network))
    }

    #[test]
    fn the_file_goes_before_the_command_line_key_by_key() {
        let (network, resolvers) =
            applied(r#"{"hostname":"web","address":"172.16.0.2/24","resolver":["172.16.0.1"]}"#).unwrap();
        assert_eq!(network.address, Some(([172, 16, 0, 2].into(), [255, 255, 255, 0].into())));
        assert_eq!(network.hostname.as_deref(), Some("web"));
        assert_eq!(network.gateway, Some([10, 0, 0, 1].into()), "not in the file");
        assert_eq!(resolvers, [Ipv4Addr::new(172, 16, 0, 1)]);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for text in [
            "",
            "[]",
            "null",
            r#"{"hostname":"a b"}"#,
            r#"{"hostname":""}"#,
            r#"{"address":"172.16.0.2"}"#,
            r#"{"address":"172.16.0.2/0"}"#,
            r#"{"address":"172.16.0.2/33"}"#,
            r#"{"gateway":"x"}"#,
            r#"{"gatewai":"1.2.3.4"}"#,
            r#"{"gateway":"1.2.3.4"} x"#,
        ] {
            assert!(applied(text).is_err(), "{text}");
        }
        assert!(read(&[b'{'; 16 * 1024 + 1]).is_err());
    }
}
