//! A registry, spoken to by `curl`: it has the machine's certificates and proxies, and updates of its own.
//!
//! What comes is written to a file of ours, of a size that is bounded, and is nothing until its digest is right.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::reference::is_digest;
use super::{Reference, store};
use crate::image::error::{Error, Kind};
use crate::image::program;
use crate::image::progress::Watch;
use crate::image::store::hex;

/// A manifest is at most 4 MiB: that is what registries must take.
const MAX_MANIFEST: u64 = 4 << 20;
const MAX_TOKEN: u64 = 64 << 10;

pub(super) struct Registry<'a> {
    reference: &'a Reference,
    folder: &'a Path,
    /// For the registry's host alone.
    token: Option<String>,
    count: u32,
}

/// An answer: its status, its header, and the file that holds its body.
struct Answer {
    status: u16,
    header: String,
    body: PathBuf,
}

impl<'a> Registry<'a> {
    pub(super) fn new(reference: &'a Reference, folder: &'a Path) -> Registry<'a> {
        Registry { reference, folder, token: None, count: 0 }
    }

    /// A manifest and its digest, which is that of its bytes. `version` is a tag or a digest.
    pub(super) fn manifest(
        &mut self,
        version: &str,
        accept: &[&str],
        watch: &dyn Watch,
    ) -> Result<(String, Vec<u8>), Error> {
        let answer = self.get(&format!("manifests/{version}"), &accept.join(", "), MAX_MANIFEST, watch)?;
        let text = fs::read(&answer.body).map_err(|cause| Error::file("read", &answer.body, &cause))?;
        let digest = format!("sha256:{}", hex(&Sha256::digest(&text)));
        if is_digest(version) && version != digest {
            return Err(wrong_digest("the manifest", version));
        }
        Ok((digest, text))
    }

    /// A blob of that digest and size; its file.
    pub(super) fn blob(&mut self, digest: &str, size: u64, watch: &dyn Watch) -> Result<PathBuf, Error> {
        let answer = self.get(&format!("blobs/{digest}"), "*/*", size, watch)?;
        let got = fs::metadata(&answer.body).map_err(|cause| Error::file("read", &answer.body, &cause))?.len();
        if got != size {
            return Err(Error::input(format!("a layer should have {size} bytes, and {got} came")).fix("try again"));
        }
        if format!("sha256:{}", store::digest_of(&answer.body, watch)?) != digest {
            return Err(wrong_digest("a layer", digest));
        }
        Ok(answer.body)
    }

    fn get(&mut self, what: &str, accept: &str, limit: u64, watch: &dyn Watch) -> Result<Answer, Error> {
        let scheme = if self.reference.is_local() { "http" } else { "https" };
        let url = format!("{scheme}://{}/v2/{}/{what}", self.reference.host, self.reference.name);
        let mut answer = self.fetch(&url, accept, limit, watch)?;
        if answer.status == 401 && self.token.is_none() {
            self.token = Some(self.token_for(&answer.header, watch)?);
            answer = self.fetch(&url, accept, limit, watch)?;
        }
        match answer.status {
            200 => Ok(answer),
            404 => Err(Error::new(Kind::Request, format!("there is no {} in its registry", self.reference))
                .fix("see whether name and tag are right")),
            401 | 403 => Err(Error::new(Kind::Request, format!("{} is not open to everybody", self.reference))
                .why("images that need an account can't be pulled yet")),
            429 => Err(Error::new(Kind::Mirror, "the registry has had too many requests from here").fix("try later")),
            status => Err(Error::new(Kind::Mirror, format!("the registry answers {status}")).fix("try again")),
        }
    }

    /// An anonymous token, from where the registry says that there are some.
    fn token_for(&mut self, header: &str, watch: &dyn Watch) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let closed = || Error::new(Kind::Request, format!("{} is not open to everybody", self.reference));
        let challenge = header.lines().filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
            let is_challenge = name.trim().eq_ignore_ascii_case("www-authenticate");
            value.trim().strip_prefix("Bearer ").filter(|_| is_challenge)
        });
        let challenge = challenge.ok_or_else(closed)?;
        let field = |name: &str| challenge.split(&format!("{name}=\"")).nth(1)?.split('"').next();
        let realm = field("realm").filter(|realm| realm.bytes().all(|b| b.is_ascii_graphic())).ok_or_else(closed)?;
        if !(realm.starts_with("https://") || self.reference.is_local() && realm.starts_with("http://")) {
            return Err(closed().why("it asks for a token over a connection that is not protected"));
        }
        let scope = format!("repository:{}:pull", self.reference.name);
        let service = field("service").unwrap_or_default();
        let joint = if realm.contains('?') { '&' } else { '?' };
        let url = format!("{realm}{joint}service={}&scope={}", escaped(service), escaped(&scope));
        let answer = self.fetch(&url, "application/json", MAX_TOKEN, watch)?;
        let text = fs::read(&answer.body).map_err(|cause| Error::file("read", &answer.body, &cause))?;
        let token = serde_json::from_slice::<Token>(&text).ok().and_then(|token| token.token.or(token.access_token));
        let plain = |token: &String| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
        token.filter(plain).filter(|_| answer.status == 200).ok_or_else(|| {
            Error::new(Kind::Mirror, "the registry gives no token").why(format!("status {}", answer.status))
        })
    }

    fn fetch(&mut self, url: &str, accept: &str, limit: u64, watch: &dyn Watch) -> Result<Answer, Error> {
        self.count += 1;
        let file = |kind: &str| self.folder.join(format!("answer-{}.{kind}", self.count));
        let (body, header, headers) = (file("body"), file("header"), file("headers"));
        let mut lines = format!("Accept: {accept}\n");
        if let Some(token) = &self.token {
            lines += &format!("Authorization: Bearer {token}\n");
        }
        // By a file: arguments are everybody's to read.
        fs::write(&headers, lines).map_err(|cause| Error::file("write", &headers, &cause))?;
        fs::write(&body, []).map_err(|cause| Error::file("write", &body, &cause))?;
        let protocols = if self.reference.is_local() { "=http,https" } else { "=https" };
        let mut curl = program::bound("prlimit");
        // What is longer than it may be ends there, whatever the header said.
        curl.arg(format!("--fsize={}", limit.max(MAX_TOKEN))).args(["--", "curl", "--disable", "--silent"]);
        curl.args([
            "--show-error",
            "--location",
            "--max-redirs",
            "5",
            "--proto",
            protocols,
            "--proto-redir",
            protocols,
        ]);
        curl.args(["--connect-timeout", "20", "--speed-limit", "1000", "--speed-time", "30", "--globoff"]);
        curl.arg("--header").arg(format!("@{}", headers.display()));
        curl.arg("--output").arg(&body).arg("--dump-header").arg(&header);
        curl.args(["--url", url]);
        program::watched(&mut curl, watch, |_| {}).map_err(|error| match error.kind {
            Kind::Program => {
                Error { what: format!("{} can't be fetched", self.reference), kind: Kind::Mirror, ..error }
            }
            _ => error,
        })?;
        let header = fs::read(&header).map_err(|cause| Error::file("read", &header, &cause))?;
        let header = String::from_utf8_lossy(&header);
        // Of the last answer: proxies and redirects have headers of their own.
        let start = header.rfind("\nHTTP/").map_or(0, |at| at + 1);
        let header = header[start..].to_owned();
        let status = header.split(' ').nth(1).and_then(|code| code.split_whitespace().next()?.parse().ok());
        Ok(Answer { status: status.unwrap_or(0), header, body })
    }
}

fn wrong_digest(what: &str, digest: &str) -> Error {
    Error::input(format!("{what} is not what its digest says, {digest}"))
        .fix("try again; if it stays so, don't trust it")
}

/// A query's value, everything but letters and digits escaped.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}
