//! The methods for files inside ext4 images: what their parameters say, and what they mean.

use crate::code::{Code, Refusal, shown};
use crate::name::dm::DmName;
use crate::name::guest_path::GuestPath;
use crate::params::base64::{Base64, decode_over};
use crate::params::{self, objects, zero};
use crate::path::{HostPath, Root, Roots};
use serde::{Deserialize, Serialize};
use std::ops::Range;

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
pub(crate) struct WriteSays<'a> {
    #[serde(deserialize_with = "zero")]
    pub(crate) image_path: String,
    #[serde(borrow, deserialize_with = "objects")]
    pub(crate) files: Vec<FileSays<'a>>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct FileSays<'a> {
    #[serde(deserialize_with = "zero")]
    pub(crate) guest_path: String,
    #[serde(borrow, deserialize_with = "zero")]
    pub(crate) data: Base64<'a>,
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
    let WriteSays { image_path, files } = params::read(text)?;
    let files = files.into_iter().map(decoded).collect::<Result<_, _>>()?;
    write(&image_path, files, roots)
}

/// The same with the parameters in a part of a text, which is used up: its memory becomes that of the largest file.
pub(crate) fn write_ext4_files_over(text: String, params: Range<usize>, roots: &Roots) -> Result<Write, Refusal> {
    let WriteSays { image_path, mut files } = params::read(text.get(params))?;
    let places = files.iter().enumerate().filter_map(|(nth, file)| Some((nth, file.data.place_in(&text)?)));
    let largest = places.max_by_key(|(_, place)| place.len());
    if let Some((nth, _)) = largest {
        files[nth].data = Base64::default();
    }
    let mut files = files.into_iter().map(decoded).collect::<Result<Vec<_>, _>>()?;
    if let Some((nth, place)) = largest {
        files[nth].1 = decode_over(text.into_bytes(), place).map_err(bad)?;
    }
    write(&image_path, files, roots)
}

/// A file's path, bytes and mode, which are not looked at yet.
type Decoded = (String, Vec<u8>, u32);

fn decoded(says: FileSays<'_>) -> Result<Decoded, Refusal> {
    Ok((says.guest_path, says.data.decode().map_err(bad)?, says.mode))
}

fn bad(message: String) -> Refusal {
    Refusal::new(Code::BadParams, "", message)
}

fn write(image: &str, files: Vec<Decoded>, roots: &Roots) -> Result<Write, Refusal> {
    let image = Image::new(image, roots, Code::BadParams, "image_path")?;
    let files = files.into_iter().map(|(path, data, mode)| {
        let mode = if mode == 0 { 0o644 } else { mode & 0o777 };
        Ok(NewFile { path: guest_path(&path)?, data, mode: u16::try_from(mode).unwrap_or(0o644) })
    });
    Ok(Write { image, files: files.collect::<Result<_, Refusal>>()? })
}

/// The existing helper checks no guest path itself.
fn guest_path(text: &str) -> Result<GuestPath, Refusal> {
    GuestPath::new(text).map_err(|e| e.refuse(Code::OperationFailed, "guest_path"))
}
