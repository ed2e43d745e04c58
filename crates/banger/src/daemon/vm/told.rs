//! What a VMM tells of itself over its API, and what it is asked for there. Whoever broke out of a guest is the VMM, so all of it is a stranger's word.

use crate::root::Stream;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::Duration;
use wire::firecracker::MacAddr;

/// A VMM whose VM runs answers at once; for one that doesn't nobody waits longer.
const LIMIT: Duration = Duration::from_secs(1);
/// The most of a head, and of a body, that is read.
const MOST: u64 = 64 << 10;
/// The longest version that is believed.
const VERSION: usize = 32;

/// What it told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Its version.
    pub(super) version: Option<String>,
    /// The address of its VM's interface.
    pub(super) mac: Option<String>,
}

#[derive(Deserialize)]
struct Instance {
    vmm_version: String,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "network-interfaces", default)]
    interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
struct Interface {
    guest_mac: Option<String>,
}

/// Asks the VMM that listens on `api`; what it doesn't tell is `None`.
pub(super) fn ask(api: &Path) -> Told {
    Stream::open(api, LIMIT).map(ask_on).unwrap_or_default()
}

fn ask_on(stream: impl Read + Write) -> Told {
    let mut stream = BufReader::new(stream);
    let version = get(&mut stream, "/").ok().map(|instance: Instance| instance.vmm_version);
    let config: Option<Config> = get(&mut stream, "/vm/config").ok();
    let mac = config.and_then(|config| config.interfaces.into_iter().next()?.guest_mac);
    let is_plain = |text: &String| text.len() <= VERSION && text.bytes().all(|byte| byte.is_ascii_graphic());
    Told {
        version: version.filter(is_plain),
        mac: mac.and_then(|mac| MacAddr::new(mac.to_ascii_lowercase()).ok()).map(|mac| mac.to_string()),
    }
}

fn get<T: DeserializeOwned>(stream: &mut BufReader<impl Read + Write>, path: &str) -> io::Result<T> {
    let ask = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
    stream.get_mut().write_all(ask.as_bytes())?;
    let (mut head, mut length) = (stream.by_ref().take(MOST), None);
    for number in 0.. {
        let mut line = String::new();
        head.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some("") => break,
            Some(status) if number == 0 && status.split(' ').nth(1) != Some("200") => return Err(senseless()),
            Some(line) => {
                let field = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
                length = field.and_then(|(_, value)| value.trim().parse::<u64>().ok()).or(length);
            }
            None => return Err(senseless()),
        }
    }
    let length = length.filter(|length| *length <= MOST).ok_or_else(senseless)?;
    let mut body = Vec::new();
    stream.by_ref().take(length).read_to_end(&mut body)?;
    serde_json::from_slice(&body).map_err(|_| senseless())
}

/// Has a VMM do something for which it has no words but that it is done.
///
/// # Errors
/// It doesn't answer within `limit`, or what it says instead.
pub(crate) fn ask_for(api: &Path, limit: Duration, method: &str, path: &str, body: &str) -> io::Result<()> {
    let mut stream = BufReader::new(Stream::open(api, limit)?);
    let length = body.len();
    let ask = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.get_mut().write_all(ask.as_bytes())?;
    let (mut head, mut lines) = (stream.by_ref().take(MOST), Vec::new());
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(senseless());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    if lines.first().and_then(|status| status.split(' ').nth(1)) == Some("204") {
        return Ok(());
    }
    let length = lines.iter().filter_map(|line| line.split_once(':'));
    let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: u64 = length.filter_map(|(_, value)| value.trim().parse().ok()).next().unwrap_or(0);
    let mut said = Vec::new();
    stream.by_ref().take(length.min(MOST)).read_to_end(&mut said)?;
    Err(io::Error::other(crate::cli::line(&String::from_utf8_lossy(&said))))
}

fn senseless() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// What is understood of a VMM that answers so, whatever it is asked.
    fn told(answers: &str) -> Told {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answers.as_bytes()).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        ask_on(ours)
    }

    fn answer(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn what_is_asked_for_is_done_or_said_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let refusal = answer("{\"fault_message\":\"no\\u001b\"}").replace("200 OK", "400 Bad Request");
        let answers = ["HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n".to_owned(), refusal, "HTTP/1.1 2".to_owned()];
        let vmm = std::thread::spawn(move || {
            answers.map(|answer| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = vec![0; 1024];
                let length = stream.read(&mut asked).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8(asked[..length].to_vec()).unwrap()
            })
        });
        let ask = || ask_for(&path, LIMIT, "PATCH", "/vm", "{\"a\":1}");
        assert!(ask().is_ok());
        assert!(ask().unwrap_err().to_string().contains("fault_message"));
        assert_eq!(ask().unwrap_err().kind(), io::ErrorKind::InvalidData);
        let asked = vmm.join().unwrap();
        assert!(
            asked[0].starts_with("PATCH /vm HTTP/1.1\r\n") && asked[0].ends_with("Content-Length: 7\r\n\r\n{\"a\":1}")
        );
    }

    #[test]
    fn a_strangers_word_is_taken_as_far_as_it_makes_sense() {
        let instance = answer(r#"{"id":"a","state":"Running","vmm_version":"1.17.0","app_name":"x"}"#);
        let config = answer(r#"{"drives":[],"network-interfaces":[{"iface_id":"1","guest_mac":"02:AB:00:00:00:01"}]}"#);
        let all = Told { version: Some("1.17.0".into()), mac: Some("02:ab:00:00:00:01".into()) };
        assert_eq!(told(&format!("{instance}{config}")), all);
        for (version, mac) in [("1\\u001b[2J", "02:ab:00:00:00:0"), (&"1".repeat(33), "01:00:00:00:00:00")] {
            let instance = answer(&format!(r#"{{"vmm_version":"{version}"}}"#));
            let config = answer(&format!(r#"{{"network-interfaces":[{{"guest_mac":"{mac}"}}]}}"#));
            assert_eq!(told(&format!("{instance}{config}")), Told::default());
        }
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(100 << 10));
        let long = "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{}".to_owned();
        for bad in [String::new(), "x\r\n\r\n".into(), "HTTP/1.1 400 Bad\r\n\r\n".into(), endless, long] {
            assert_eq!(told(&bad), Told::default(), "{:.40}", bad);
        }
        assert_eq!(told(&instance), Told { mac: None, ..all }, "it hangs up");
    }
}
