//! The snapshot methods: what their parameters say, and what they mean.

use crate::code::{Code, Refusal};
use crate::name::dm::{DmName, LoopNumber};
use crate::params::{self, zero};
use crate::path::{HostPath, Root, Roots};
use serde::{Deserialize, Serialize};

/// A snapshot to be made.
///
/// `{"rootfs_path":"/var/lib/banger/images/a.ext4","cow_path":"/var/lib/banger/vms/a/rootfs.cow","dm_name":"fc-rootfs-a"}`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSnapshot {
    /// The origin; it is never written.
    pub rootfs: HostPath,
    /// The CoW store.
    pub cow: HostPath,
    /// The device's name.
    pub name: DmName,
}

/// What a snapshot is made of. On the wire:
/// `{"BaseLoop":"/dev/loop4","COWLoop":"/dev/loop5","DMName":"fc-rootfs-a","DMDev":"/dev/mapper/fc-rootfs-a"}`,
/// an empty string for what is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handles {
    /// The loop device of the origin.
    pub base_loop: Option<LoopNumber>,
    /// The loop device of the CoW store.
    pub cow_loop: Option<LoopNumber>,
    /// The dm device, by name.
    pub dm_name: Option<DmName>,
    /// The dm device, by node.
    pub dm_dev: Option<DmName>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct NewSnapshotSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) rootfs_path: String,
    #[serde(deserialize_with = "zero")]
    pub(crate) cow_path: String,
    #[serde(deserialize_with = "zero")]
    pub(crate) dm_name: String,
}

/// Travels without JSON names, so it may carry fields that we don't know.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct HandlesSays {
    #[serde(rename = "BaseLoop", alias = "base_loop", deserialize_with = "zero")]
    base_loop: String,
    #[serde(rename = "COWLoop", alias = "cow_loop", deserialize_with = "zero")]
    cow_loop: String,
    #[serde(rename = "DMName", alias = "dm_name", deserialize_with = "zero")]
    dm_name: String,
    #[serde(rename = "DMDev", alias = "dm_dev", deserialize_with = "zero")]
    dm_dev: String,
}

impl HandlesSays {
    pub(crate) fn check(&self) -> Result<Handles, Refusal> {
        let bad = Code::BadParams;
        Ok(Handles {
            dm_name: given(&self.dm_name, DmName::new).map_err(|e| e.refuse(bad, "DMName"))?,
            dm_dev: given(&self.dm_dev, DmName::from_device).map_err(|e| e.refuse(bad, "DMDev"))?,
            base_loop: given(&self.base_loop, LoopNumber::from_device).map_err(|e| e.refuse(bad, "BaseLoop"))?,
            cow_loop: given(&self.cow_loop, LoopNumber::from_device).map_err(|e| e.refuse(bad, "COWLoop"))?,
        })
    }
}

impl From<&Handles> for HandlesSays {
    fn from(handles: &Handles) -> HandlesSays {
        let loop_path = |number: Option<LoopNumber>| number.map_or(String::new(), LoopNumber::device);
        HandlesSays {
            base_loop: loop_path(handles.base_loop),
            cow_loop: loop_path(handles.cow_loop),
            dm_name: handles.dm_name.as_ref().map_or(String::new(), DmName::to_string),
            dm_dev: handles.dm_dev.as_ref().map_or(String::new(), DmName::device),
        }
    }
}

fn given<T, E>(text: &str, check: impl FnOnce(&str) -> Result<T, E>) -> Result<Option<T>, E> {
    if text.is_empty() { Ok(None) } else { check(text).map(Some) }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct TargetSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) target: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct FsckSays {
    #[serde(deserialize_with = "zero")]
    pub(crate) dm_dev: String,
}

pub(crate) fn create_dm_snapshot(text: Option<&str>, roots: &Roots) -> Result<NewSnapshot, Refusal> {
    let says = params::read::<NewSnapshotSays>(text)?;
    let bad = Code::BadParams;
    Ok(NewSnapshot {
        rootfs: HostPath::new(&says.rootfs_path, &[Root::State], roots, bad, "rootfs_path")?,
        cow: HostPath::new(&says.cow_path, &[Root::State], roots, bad, "cow_path")?,
        name: DmName::new(&says.dm_name).map_err(|e| e.refuse(bad, "dm_name"))?,
    })
}

pub(crate) fn cleanup_dm_snapshot(text: Option<&str>) -> Result<Handles, Refusal> {
    params::read::<HandlesSays>(text)?.check()
}

pub(crate) fn remove_dm_snapshot(text: Option<&str>) -> Result<DmName, Refusal> {
    let says = params::read::<TargetSays>(text)?;
    DmName::from_target(&says.target).map_err(|e| e.refuse(Code::BadParams, "target"))
}

/// The existing helper checks the device inside the operation.
pub(crate) fn fsck_snapshot(text: Option<&str>) -> Result<DmName, Refusal> {
    let says = params::read::<FsckSays>(text)?;
    DmName::from_device(&says.dm_dev).map_err(|e| e.refuse(Code::OperationFailed, "dm_dev"))
}
