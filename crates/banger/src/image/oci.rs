//! Images of OCI registries: what is meant by a reference, which manifest fits this machine, and the layers, each checked
//! against its digest before anything reads it.
//!
//! The formats are the OCI image and distribution specifications 1.1, and Docker's image manifest version 2, schema 2.

mod reference;
mod registry;

pub use reference::Reference;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::{Error, Kind};
use super::program;
use super::progress::{Stage, Watch};
use super::store::{self, Store, Work};
use registry::Registry;

/// The most layers: more no image builder makes.
const MAX_LAYERS: usize = 127;
/// The most bytes of one layer, packed.
const MAX_LAYER: u64 = 64 << 30;

const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const LAYERS: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// What came of a pull.
#[derive(Debug)]
pub struct Pulled {
    /// The layers, open for reading, the lowest first.
    pub layers: Vec<File>,
    /// The manifest's digest: `sha256:…`.
    pub digest: String,
    /// How many of the layers were here from before.
    pub kept: usize,
    /// Where they lie; they are of no use once the image is made.
    pub paths: Vec<PathBuf>,
}

/// Whose programs the image is to hold: `linux/amd64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// This machine's.
    #[must_use]
    pub fn here() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Reads `OS/ARCHITECTURE[/VARIANT]`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Platform, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        match parts[..] {
            [os, architecture] if parts.iter().all(plain) => {
                Ok(Platform { os: os.into(), architecture: architecture.into(), variant: None })
            }
            [os, architecture, variant] if parts.iter().all(plain) => {
                Ok(Platform { os: os.into(), architecture: architecture.into(), variant: Some(variant.into()) })
            }
            _ => Err(format!("{text:?} is no platform: linux/amd64")),
        }
    }
}

/// Fetches the layers of an image. What was fetched whole stays for the next try where this one is cut off.
///
/// # Errors
/// The registry doesn't answer or hasn't the image, nothing in it fits the platform, a digest or a size is wrong.
pub fn pull(
    reference: &Reference,
    platform: &Platform,
    store: &Store,
    work: &Work,
    watch: &dyn Watch,
) -> Result<Pulled, Error> {
    if !program::is_here("curl") {
        return Err(program::missing("curl"));
    }
    watch.begin(Stage::Fetch, &reference.to_string());
    let mut registry = Registry::new(reference, work.path());
    let accept: Vec<&str> = MANIFESTS.into_iter().chain(INDEXES).collect();
    let (digest, text) = registry.manifest(&reference.version(), &accept, watch)?;
    let found = Manifest::parse(&text)?;
    let (digest, manifest) = match found.manifests {
        Some(manifests) => {
            let fitting = choose(manifests, platform)?;
            let (digest, text) = registry.manifest(&fitting.checked_digest()?, &MANIFESTS, watch)?;
            (digest, Manifest::parse(&text)?)
        }
        None => (digest, found),
    };
    let layers = manifest.layers.filter(|_| manifest.manifests.is_none());
    let layers = layers.ok_or_else(|| Error::input("the registry's manifest names no layers"))?;
    if layers.is_empty() || layers.len() > MAX_LAYERS {
        return Err(Error::input(format!("an image of {} layers; 1 to {MAX_LAYERS} are possible", layers.len())));
    }
    let mut pulled = Pulled { layers: Vec::new(), digest, kept: 0, paths: Vec::new() };
    for (number, layer) in (1..).zip(&layers) {
        layer.check()?;
        let digest = layer.checked_digest()?;
        let path = store.layer(&digest)?;
        let is_here = path.exists() && store::digest_of(&path, watch)? == digest["sha256:".len()..];
        if is_here {
            pulled.kept += 1;
        } else {
            watch
                .begin(Stage::Fetch, &format!("layer {number} of {}, {}M", layers.len(), layer.size.div_ceil(1 << 20)));
            store::need_room(work.path(), layer.size)?;
            let draft = registry.blob(&digest, layer.size, watch)?;
            fs::rename(&draft, &path).map_err(|cause| Error::file("keep", &path, &cause))?;
        }
        pulled.layers.push(File::open(&path).map_err(|cause| Error::file("read", &path, &cause))?);
        pulled.paths.push(path);
    }
    Ok(pulled)
}

/// An image's manifest, or the list of those for several platforms.
#[derive(Debug, Deserialize)]
struct Manifest {
    manifests: Option<Vec<Descriptor>>,
    layers: Option<Vec<Descriptor>>,
}

impl Manifest {
    fn parse(text: &[u8]) -> Result<Manifest, Error> {
        let wrong = |cause| Error::input("the registry's manifest makes no sense").why(cause);
        serde_json::from_slice(text).map_err(wrong)
    }
}

/// What a manifest points to.
#[derive(Debug, Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Fits>,
}

#[derive(Debug, Deserialize)]
struct Fits {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Descriptor {
    fn check(&self) -> Result<(), Error> {
        if !LAYERS.contains(&self.media_type.as_str()) {
            return Err(Error::input(format!("a layer of the type {:?}, which is not known here", self.media_type)));
        }
        if self.size > MAX_LAYER {
            return Err(Error::new(Kind::Room, format!("a layer of {}M", self.size >> 20)));
        }
        Ok(())
    }

    /// `sha256:` and 64 digits; it becomes a part of paths and addresses.
    fn checked_digest(&self) -> Result<String, Error> {
        if reference::is_digest(&self.digest) {
            return Ok(self.digest.clone());
        }
        Err(Error::input(format!("the registry's manifest has the digest {:?}; SHA-256 is read here", self.digest)))
    }
}

fn choose(manifests: Vec<Descriptor>, platform: &Platform) -> Result<Descriptor, Error> {
    let shown = |fits: &Fits| format!("{}/{}", fits.os, fits.architecture);
    let there: Vec<String> = manifests.iter().filter_map(|manifest| manifest.platform.as_ref().map(shown)).collect();
    let fits = |manifest: &Descriptor| {
        manifest.platform.as_ref().is_some_and(|fits| {
            (&fits.os, &fits.architecture) == (&platform.os, &platform.architecture)
                && (platform.variant.is_none() || fits.variant == platform.variant)
        })
    };
    let is_manifest = |manifest: &Descriptor| MANIFESTS.contains(&manifest.media_type.as_str());
    manifests.into_iter().find(|manifest| fits(manifest) && is_manifest(manifest)).ok_or_else(|| {
        Error::input(format!("the image is not there for {}/{}", platform.os, platform.architecture))
            .why(format!("it is there for {}", there.join(", ")))
            .fix("--platform takes another, if a guest here can run it")
    })
}

/// Removes layers that are of no use any more.
pub fn forget(paths: &[PathBuf]) {
    for path in paths {
        // The next pull removes what is old in any case.
        let _ = fs::remove_file(path);
    }
}

pub(crate) fn remove_older_than_a_week(folder: &Path) {
    let week = std::time::Duration::from_secs(7 * 86_400);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|facts| facts.modified());
        if modified.is_ok_and(|then| then.elapsed().is_ok_and(|age| age > week)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests;
