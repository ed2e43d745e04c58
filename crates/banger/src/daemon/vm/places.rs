//! Where a VM's files, sockets and kernel objects are: all of it follows from its id, but for a tap that was made ahead.

use crate::api::Fault;
use crate::daemon::settings::Settings;
use crate::daemon::store::vms::Vm;
use std::path::{Path, PathBuf};
use wire::Code;
use wire::image::Image;
use wire::name::dm::DmName;
use wire::name::link::TapName;
use wire::name::vm_id::VmId;
use wire::path::{ChrootPath, HostPath, Root};

/// A VM's places.
pub(crate) struct Places<'a> {
    settings: &'a Settings,
    id: &'a str,
    tap: Option<&'a str>,
}

impl<'a> Places<'a> {
    pub(crate) fn of(settings: &'a Settings, vm: &'a Vm) -> Places<'a> {
        Places { settings, id: &vm.id, tap: vm.tap.as_deref() }
    }

    /// The directory of its disk and its console.
    pub(crate) fn dir(&self) -> PathBuf {
        self.settings.state.join("vms").join(self.id)
    }

    /// What its guest wrote to its console, and its VMM to its output.
    pub(crate) fn console(&self) -> PathBuf {
        self.dir().join("console.log")
    }

    /// Its disk, where that is a file of its own.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir().join("root.ext4")
    }

    /// What it changed, where its disk is a snapshot.
    pub(crate) fn cow(&self) -> PathBuf {
        self.dir().join("root.cow")
    }

    /// What it changed, where its disk is a layer over a template's.
    pub(crate) fn layer(&self) -> PathBuf {
        self.dir().join("root.qcow2")
    }

    /// Its machine-id, where its disk does not have it yet.
    pub(crate) fn machine_id(&self) -> PathBuf {
        self.dir().join("machine-id")
    }

    /// The public half of its ssh key.
    pub(crate) fn host_key(&self) -> PathBuf {
        self.dir().join("ssh_host_ed25519_key.pub")
    }

    /// The directory of its sockets.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.settings.runtime.join("vms").join(self.id)
    }

    /// Its VMM's API.
    pub(crate) fn api(&self) -> PathBuf {
        self.sockets().join("api.sock")
    }

    /// Its vsock.
    pub(crate) fn vsock(&self) -> PathBuf {
        self.sockets().join("vsock.sock")
    }

    /// The directory of all jails.
    pub(crate) fn jails(&self) -> PathBuf {
        self.settings.jails.clone()
    }

    /// Where the guest's dials to the host's port arrive: beside the real socket, which is in the jail.
    pub(crate) fn doorbell(&self) -> PathBuf {
        self.root().join(format!("vsock.sock_{}", agent::protocol::PORT))
    }

    /// What is `/` for its VMM.
    pub(crate) fn root(&self) -> PathBuf {
        self.jails().join("firecracker").join(self.id).join("root")
    }

    pub(crate) fn jail(&self) -> Result<ChrootPath, Fault> {
        let path = self.jails().join("firecracker").join(self.id);
        ChrootPath::new(&path.to_string_lossy(), &self.settings.roots()).map_err(Fault::bug)
    }

    pub(crate) fn vm_id(&self) -> Result<VmId, Fault> {
        VmId::new(self.id).map_err(Fault::bug)
    }

    /// Interfaces' names hold 15 bytes, so 8 digits of the id.
    pub(crate) fn tap(&self) -> Result<TapName, Fault> {
        let short = self.id.get(..8).unwrap_or(self.id);
        let own = || format!("tap-fc-{short}");
        TapName::new(&self.tap.map_or_else(own, str::to_owned)).map_err(Fault::bug)
    }

    pub(crate) fn snapshot(&self) -> Result<DmName, Fault> {
        DmName::new(&format!("fc-rootfs-{}", self.id)).map_err(Fault::bug)
    }

    /// The disk as the helper is asked for it.
    pub(crate) fn image(&self, method: &str) -> Result<Image, Fault> {
        match method {
            super::disk::SNAPSHOT => Ok(Image::Snapshot(self.snapshot()?)),
            _ => Ok(Image::File(self.host(&self.disk(), Root::State)?)),
        }
    }

    /// A path as the helper is told it.
    pub(crate) fn host(&self, path: &Path, root: Root) -> Result<HostPath, Fault> {
        let text = path.to_str().ok_or_else(|| Fault::bug(format!("{} is not UTF-8", path.display())))?;
        HostPath::new(text, &[root], &self.settings.roots(), Code::OperationFailed, "path").map_err(|refusal| {
            Fault::new("bad_path", 1, format!("{text} is no path that the root helper takes")).why(refusal)
        })
    }
}
