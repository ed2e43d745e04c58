//! `[REGISTRY/]NAME[:TAG][@DIGEST]`, as docker and podman read it: without a registry it is Docker Hub's.

use std::fmt;

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `registry.example:5000`; Docker Hub answers on another name than it is called by.
    pub(super) host: String,
    /// `library/debian`.
    pub(super) name: String,
    tag: Option<String>,
    digest: Option<String>,
}

const HUB: &str = "docker.io";
const HUB_ANSWERS_ON: &str = "registry-1.docker.io";

impl Reference {
    /// Reads one.
    ///
    /// # Errors
    /// It is none, and why.
    pub fn parse(text: &str) -> Result<Reference, String> {
        let wrong = |why: &str| Err(format!("{text:?} is no image's reference: {why}; debian:12 is one"));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return wrong("behind @ stands sha256: and 64 hexadecimal digits"),
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag.to_owned())),
            _ => (rest, None),
        };
        if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
            return wrong("a tag is 1 to 128 letters, digits, dots, - and _");
        }
        let (host, name) = match rest.split_once('/') {
            Some((host, name)) if host.contains(['.', ':']) || host == "localhost" => (host, name.to_owned()),
            Some(_) => (HUB, rest.to_owned()),
            None => (HUB, format!("library/{rest}")),
        };
        if !is_host(host) {
            return wrong("the registry's name is a host's, with a port at most");
        }
        let parts_are_plain = name.split('/').all(is_part);
        if !parts_are_plain || name.len() > 255 {
            return wrong("a name is lower-case letters and digits, with . _ - between them");
        }
        let host = if host == HUB { HUB_ANSWERS_ON } else { host };
        Ok(Reference { host: host.to_owned(), name, tag, digest })
    }

    /// What a manifest is asked for by: a digest, else a tag.
    #[must_use]
    pub fn version(&self) -> String {
        self.digest.clone().or_else(|| self.tag.clone()).unwrap_or_else(|| "latest".into())
    }

    /// A name for the image here: `debian-12` for `debian:12`.
    #[must_use]
    pub fn short_name(&self) -> String {
        let last = self.name.rsplit('/').next().unwrap_or(&self.name);
        let tag = self.tag.as_deref().filter(|tag| *tag != "latest").map(str::to_ascii_lowercase);
        let name = tag.map_or_else(|| last.to_owned(), |tag| format!("{last}-{tag}"));
        name.chars().take(64).collect()
    }

    /// Whether the registry is this machine's own; then it may speak without TLS.
    pub(super) fn is_local(&self) -> bool {
        let host = self.host.rsplit_once(':').map_or(self.host.as_str(), |(host, _)| host);
        host == "localhost" || host == "127.0.0.1"
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host == HUB_ANSWERS_ON { HUB } else { &self.host };
        write!(f, "{host}/{}", self.name)?;
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => write!(f, "@{digest}"),
            (tag, None) => write!(f, ":{}", tag.as_deref().unwrap_or("latest")),
        }
    }
}

/// `sha256:` and 64 lower-case hexadecimal digits.
pub(super) fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_tag(tag: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(plain)
        && tag.bytes().all(|b| plain(b) || b == b'.' || b == b'-')
}

fn is_part(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    bytes.first().copied().is_some_and(plain)
        && bytes.last().copied().is_some_and(plain)
        && bytes.iter().all(|b| plain(*b) || b"._-".contains(b))
        && !part.contains("..")
}

fn is_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
    !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(plain)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}
