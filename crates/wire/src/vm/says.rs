//! The parameters of the two methods that start a VM. They differ in how its guest begins, and have all else in common.

use super::{Boot, Drive, FAILED, Jailer, Launch, Start};
use crate::code::Refusal;
use crate::name::link::TapName;
use crate::name::vm_id::VmId;
use crate::params::{object, objects, optional, zero};
use crate::path::{HostPath, ProgramPath, Root, Roots};
use serde::{Deserialize, Serialize};

/// Declares the parameters of one of them by those that only it has. Not by serde's `flatten`: what is flattened takes
/// any field, and is read twice.
macro_rules! start_says {
    ($name:ident { $($(#[$serde:meta])* $own:ident: $type:ty,)+ }) => {
        #[derive(Clone, Default, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub(crate) struct $name {
            #[serde(deserialize_with = "zero")]
            binary_path: String,
            #[serde(deserialize_with = "zero")]
            vm_id: String,
            #[serde(deserialize_with = "zero")]
            socket_path: String,
            #[serde(deserialize_with = "zero")]
            log_path: String,
            #[serde(deserialize_with = "zero")]
            metrics_path: String,
            $($(#[$serde])* pub(super) $own: $type,)+
            #[serde(deserialize_with = "objects")]
            drives: Vec<DriveSays>,
            #[serde(deserialize_with = "zero")]
            tap_device: String,
            #[serde(deserialize_with = "zero")]
            vsock_path: String,
            #[serde(deserialize_with = "zero")]
            vsock_cid: u32,
            #[serde(deserialize_with = "zero")]
            vcpu_count: i64,
            #[serde(deserialize_with = "zero")]
            memory_mib: i64,
            #[serde(deserialize_with = "object")]
            network: NetworkSays,
            #[serde(deserialize_with = "optional", skip_serializing_if = "Option::is_none")]
            jailer: Option<JailerSays>,
        }

        impl $name {
            fn of(launch: &Launch, $($own: $type),+) -> $name {
                $name {
                    binary_path: launch.program.as_str().to_owned(),
                    vm_id: launch.vm_id.to_string(),
                    socket_path: launch.socket.as_str().to_owned(),
                    log_path: launch.log.as_str().to_owned(),
                    metrics_path: launch.metrics.as_str().to_owned(),
                    $($own,)+
                    drives: launch.drives.iter().map(DriveSays::from).collect(),
                    tap_device: launch.tap.to_string(),
                    vsock_path: launch.vsock.as_str().to_owned(),
                    vsock_cid: launch.cid,
                    vcpu_count: i64::from(launch.vcpus),
                    memory_mib: i64::try_from(launch.memory.0).unwrap_or(i64::MAX),
                    network: NetworkSays::default(),
                    jailer: launch.jailer.as_ref().map(JailerSays::from),
                }
            }

            /// Checks what both have; `start` stands where the existing helper looks at the kernel.
            pub(super) fn check(
                &self,
                roots: &Roots,
                start: impl FnOnce() -> Result<Start, Refusal>,
            ) -> Result<Launch, Refusal> {
                let below = |text: &str, root: Root, field| HostPath::new(text, &[root], roots, FAILED, field);
                let socket = below(&self.socket_path, Root::Runtime, "socket_path")?;
                let vsock = below(&self.vsock_path, Root::Runtime, "vsock_path")?;
                let log = below(&self.log_path, Root::State, "log_path")?;
                let metrics = below(&self.metrics_path, Root::State, "metrics_path")?;
                let start = start()?;
                let tap = TapName::new(&self.tap_device).map_err(|e| e.refuse(FAILED, "tap_device"))?;
                let program = ProgramPath::new(&self.binary_path).map_err(|e| e.refuse(FAILED, "binary_path"))?;
                let drives = super::drives(&self.drives, roots)?;
                let jailer = self.jailer.as_ref().map(|jailer| super::jailer(jailer, roots)).transpose()?;
                let vm_id = VmId::new(&self.vm_id).map_err(|e| e.refuse(FAILED, "vm_id"))?;
                if socket == vsock || socket.as_str() == vsock.as_str() {
                    return Err(Refusal::new(FAILED, "vsock_path", "socket_path and vsock_path are the same"));
                }
                if log.as_str() == metrics.as_str() {
                    return Err(Refusal::new(FAILED, "metrics_path", "log_path and metrics_path are the same"));
                }
                if let Start::Boot(boot) = &start {
                    super::kernel_args(&boot.kernel_args)?;
                }
                Ok(Launch {
                    program,
                    vm_id,
                    socket,
                    log,
                    metrics,
                    start,
                    drives,
                    tap,
                    vsock,
                    cid: super::cid(self.vsock_cid)?,
                    vcpus: super::vcpus(self.vcpu_count)?,
                    memory: super::memory(self.memory_mib)?,
                    jailer,
                })
            }
        }
    };
}

start_says!(LaunchSays {
    #[serde(deserialize_with = "zero")]
    kernel_image_path: String,
    #[serde(deserialize_with = "zero", skip_serializing_if = "String::is_empty")]
    initrd_path: String,
    #[serde(deserialize_with = "zero")]
    kernel_args: String,
});

start_says!(RestoreSays {
    #[serde(deserialize_with = "object")]
    snapshot: SavedSays,
});

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(super) struct SavedSays {
    #[serde(deserialize_with = "zero")]
    pub(super) state_path: String,
    #[serde(deserialize_with = "zero")]
    pub(super) mem_path: String,
    #[serde(deserialize_with = "zero", skip_serializing_if = "String::is_empty")]
    pub(super) layer_path: String,
}

/// Not looked at by a launch, but its types and names are.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(super) struct NetworkSays {
    #[serde(deserialize_with = "zero")]
    bridge_name: String,
    #[serde(deserialize_with = "zero")]
    bridge_ip: String,
    #[serde(deserialize_with = "zero")]
    cidr: String,
}

/// Travels without JSON names, so it may carry fields that we don't know.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(super) struct DriveSays {
    #[serde(rename = "ID", alias = "id", deserialize_with = "zero")]
    pub(super) id: String,
    #[serde(rename = "Path", alias = "path", deserialize_with = "zero")]
    pub(super) path: String,
    #[serde(rename = "ReadOnly", alias = "read_only", deserialize_with = "zero")]
    pub(super) read_only: bool,
    #[serde(rename = "IsRoot", alias = "is_root", deserialize_with = "zero")]
    pub(super) is_root: bool,
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(super) struct JailerSays {
    #[serde(deserialize_with = "zero")]
    pub(super) binary: String,
    #[serde(deserialize_with = "zero")]
    pub(super) chroot_base_dir: String,
    #[serde(deserialize_with = "zero")]
    pub(super) uid: i64,
    #[serde(deserialize_with = "zero")]
    pub(super) gid: i64,
}

impl From<&Launch> for LaunchSays {
    fn from(launch: &Launch) -> LaunchSays {
        let (kernel, initrd, arguments) = match &launch.start {
            Start::Boot(Boot { kernel, initrd, kernel_args }) => {
                (kernel.as_str(), initrd.as_ref().map_or("", HostPath::as_str), kernel_args.as_str())
            }
            Start::Restore(_) => ("", "", ""),
        };
        LaunchSays::of(launch, kernel.to_owned(), initrd.to_owned(), arguments.to_owned())
    }
}

impl From<&Launch> for RestoreSays {
    fn from(launch: &Launch) -> RestoreSays {
        let text = |path: &HostPath| path.as_str().to_owned();
        let snapshot = match &launch.start {
            Start::Boot(_) => SavedSays::default(),
            Start::Restore(saved) => SavedSays {
                state_path: text(&saved.state),
                mem_path: text(&saved.memory),
                layer_path: saved.layer.as_ref().map(text).unwrap_or_default(),
            },
        };
        RestoreSays::of(launch, snapshot)
    }
}

impl From<&Drive> for DriveSays {
    fn from(drive: &Drive) -> DriveSays {
        DriveSays {
            id: drive.id.to_string(),
            path: drive.image.path(),
            read_only: drive.read_only,
            is_root: drive.is_root,
        }
    }
}

impl From<&Jailer> for JailerSays {
    fn from(jailer: &Jailer) -> JailerSays {
        JailerSays {
            binary: jailer.program.as_str().to_owned(),
            chroot_base_dir: jailer.chroot_base.as_str().to_owned(),
            uid: jailer.uid,
            gid: jailer.gid,
        }
    }
}
