//! The methods for files inside ext4 images: what their parameters say, and what they mean.

use crate::code::{Code, Refusal, shown};
use crate::name::dm::DmName;
use crate::name::guest_path::GuestPath;
use crate::params::{self, Base64, objects, zero};
use crate::path::{HostPath, Root, Roots};
use serde::{Deserialize, Serialize};

/// An ext4 image: a file below the state directory, or a snapshot of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// A file.
    File(HostPath),
    /// `/dev/mapper/<name>`.
    Snapshot(DmName),
}

impl Image {
    /// Checks an image's path.
    pub fn new(text: &str, roots: &Roots, code: Code, field: &'static str) -> Result<Image, Refusal> {
        if let Ok(path) = HostPath::new(text, &[Root::State], roots, code, field) {
            return Ok(Image::File(path));
        }
        DmName::from_device(text)
            .map(Image::Snapshot)
            .map_err(|_| Refusal::new(code, field, format!("path {} is not a banger-managed ext4 image", shown(text))))
    }

    /// The path, as the wire says it.
    pub fn path(&self) -> String {
        match self {
            Image::File(path) => path.as_str().to_owned(),
            Image::Snapshot(name) => name.device(),
        }
    }
}

/// A file to be read: `{"image_path":"/dev/mapper/fc-rootfs-a","guest_path":"/etc/hostname"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The image.
    pub image: Image,
    /// The file in it.
    pub path: GuestPath,
}

/// Files to be written:
/// `{"image_path":"…","files":[{"guest_path":"/etc/hostname","data":"d2ViCg==","mode":420}]}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The image.
    pub image: Image,
    /// The files, in order.
    pub files: Vec<NewFile>,
}

/// A file as it is to be inside an image; it belongs to 0:0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Where.
    pub path: GuestPath,
    /// Its whole content.
    pub data: Vec<u8>,
    /// The nine permission bits, none other set.
    pub mode: u16,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct ReadSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) image_path: String,
    #[serde(deserialize_with = "zero")]
    pub(crate) guest_path: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct WriteSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) image_path: String,
    #[serde(deserialize_with = "objects")]
    pub(crate) files: Vec<FileSays>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct FileSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) guest_path: String,
    #[serde(deserialize_with = "zero")]
    pub(crate) data: Base64,
    #[serde(deserialize_with = "zero")]
    pub(crate) mode: u32,
}

pub(crate) fn read_ext4_file(text: Option<&str>, roots: &Roots) -> Result<Read, Refusal> {
    let says = params::read::<ReadSays>(text)?;
    Ok(Read {
        image: Image::new(&says.image_path, roots, Code::BadParams, "image_path")?,
        path: guest_path(&says.guest_path)?,
    })
}

pub(crate) fn write_ext4_files(text: Option<&str>, roots: &Roots) -> Result<Write, Refusal> {
    let says = params::read::<WriteSays>(text)?;
    let image = Image::new(&says.image_path, roots, Code::BadParams, "image_path")?;
    let files = says.files.into_iter().map(|file| {
        let mode = if file.mode == 0 { 0o644 } else { file.mode & 0o777 };
        Ok(NewFile {
            path: guest_path(&file.guest_path)?,
            data: file.data.0,
            mode: u16::try_from(mode).unwrap_or(0o644),
        })
    });
    Ok(Write { image, files: files.collect::<Result<_, Refusal>>()? })
}

/// The existing helper checks no guest path itself.
fn guest_path(text: &str) -> Result<GuestPath, Refusal> {
    GuestPath::new(text).map_err(|e| e.refuse(Code::OperationFailed, "guest_path"))
}
