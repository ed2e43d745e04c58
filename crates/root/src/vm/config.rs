//! What a VMM is told: one configuration file in Firecracker's form, that nobody can change once it is checked.

use crate::fail::Fail;
use rustix::fs::{MemfdFlags, SealFlags};
use serde_json::json;
use std::io::Write;
use std::os::fd::OwnedFd;
use wire::firecracker::{
    BootArgs, BootSource, Drive, HostDevName, HostPath, Invalid, LogLevel, Logger, MacAddr, MachineConfig, Metrics,
    NetworkInterface, ResourceId, VmConfig, Vsock,
};
use wire::vm::{Boot, Launch};

/// The one network interface's id, which the contract gives.
const INTERFACE: &str = "1";

/// The configuration of a VM that runs outside a jail: the paths in it are the host's. The VMM opens them itself, with
/// the owner's rights; a path that the owner exchanges in between leads to nothing that he could not open.
pub(crate) fn of(asked: &Launch, boot: &Boot) -> Result<VmConfig, Fail> {
    describe(asked, boot).map_err(|invalid| Fail::new(format!("the VM can't be described to a VMM: {invalid}")))
}

/// The same for a VM in a jail: the paths in it are the jail's, and its output is its log.
pub(crate) fn jailed(asked: &Launch, boot: &Boot) -> Result<VmConfig, Fail> {
    let mut config = of(asked, boot)?;
    let inside = move || {
        config.logger = None;
        config.metrics = None;
        if let Some(source) = &mut config.boot_source {
            source.kernel_image_path = HostPath::new("/vmlinux")?;
            source.initrd_path = boot.initrd.as_ref().map(|_| HostPath::new("/initrd")).transpose()?;
        }
        for (drive, asked) in config.drives.iter_mut().zip(&asked.drives) {
            drive.path_on_host = Some(HostPath::new(format!("/{}", asked.id))?);
        }
        if let Some(vsock) = &mut config.vsock {
            vsock.uds_path = HostPath::new(format!("/{}", super::jail::VSOCK))?;
        }
        Ok::<_, Invalid>(config)
    };
    inside().map_err(|invalid| Fail::new(format!("the VM can't be described to a VMM: {invalid}")))
}

fn describe(asked: &Launch, boot: &Boot) -> Result<VmConfig, Invalid> {
    let drives = asked.drives.iter().map(|drive| {
        Ok(Drive {
            drive_id: ResourceId::new(drive.id.for_firecracker())?,
            partuuid: None,
            is_root_device: drive.is_root,
            cache_type: Default::default(),
            is_read_only: Some(drive.read_only),
            path_on_host: Some(HostPath::new(drive.image.path())?),
            rate_limiter: None,
            io_engine: None,
            socket: None,
        })
    });
    let boot_source = BootSource {
        kernel_image_path: HostPath::new(boot.kernel.as_str())?,
        initrd_path: boot.initrd.as_ref().map(|path| HostPath::new(path.as_str())).transpose()?,
        boot_args: Some(BootArgs::new(boot.kernel_args.as_str())?),
    };
    let interface = NetworkInterface {
        iface_id: ResourceId::new(INTERFACE)?,
        host_dev_name: HostDevName::new(asked.tap.as_str())?,
        guest_mac: Some(MacAddr::new(asked.vm_id.mac())?),
        mtu: None,
        rx_rate_limiter: None,
        tx_rate_limiter: None,
    };
    let machine = MachineConfig { vcpu_count: asked.vcpus, mem_size_mib: asked.memory.0, ..MachineConfig::default() };
    let logger = Logger {
        log_path: Some(HostPath::new(asked.log.as_str())?),
        level: Some(LogLevel::Info),
        show_level: Some(true),
        show_log_origin: Some(false),
        module: None,
    };
    Ok(VmConfig {
        boot_source: Some(boot_source),
        drives: drives.collect::<Result<_, Invalid>>()?,
        machine_config: Some(machine),
        network_interfaces: vec![interface],
        vsock: Some(Vsock { vsock_id: None, guest_cid: asked.cid, uds_path: HostPath::new(asked.vsock.as_str())? }),
        logger: Some(logger),
        metrics: Some(Metrics {
            metrics_path: HostPath::new(asked.metrics.as_str())?,
            emit_id: false,
            properties: None,
        }),
        balloon: None,
        cpu_config: None,
        mmds_config: None,
        entropy: None,
        memory_hotplug: None,
        pmem: Vec::new(),
    })
}

/// The body of `PUT /snapshot/load` for a VM in a jail: only the tap is another than the saved one's, and what lies in the
/// jail has the names that it had there.
pub(super) fn load(asked: &Launch, state: &str, memory: &str) -> String {
    let tap = json!({"iface_id": INTERFACE, "host_dev_name": asked.tap.as_str()});
    json!({
        "snapshot_path": state,
        "mem_backend": {"backend_type": "File", "backend_path": memory},
        "network_overrides": [tap],
        "resume_vm": true,
    })
    .to_string()
}

/// The configuration in memory, sealed: whoever holds it or opens it again can only read it.
pub(crate) fn sealed(config: &VmConfig) -> Result<OwnedFd, Fail> {
    let failed = |error: &dyn std::fmt::Display| Fail::new("the VM's configuration can't be written").because(error);
    let text = serde_json::to_vec(config).map_err(|error| failed(&error))?;
    let memory = rustix::fs::memfd_create("vm-config", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|errno| failed(&errno))?;
    let mut file = std::fs::File::from(memory);
    file.write_all(&text).map_err(|error| failed(&error))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|errno| failed(&errno))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_can_only_be_read() {
        use std::os::fd::AsRawFd;
        let config = VmConfig {
            boot_source: None,
            drives: Vec::new(),
            machine_config: Some(MachineConfig::default()),
            network_interfaces: Vec::new(),
            vsock: None,
            logger: None,
            metrics: None,
            balloon: None,
            cpu_config: None,
            mmds_config: None,
            entropy: None,
            memory_hotplug: None,
            pmem: Vec::new(),
        };
        let sealed = sealed(&config).unwrap();
        let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
        let read: VmConfig = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, config);
        let mut writable = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        assert!(writable.write_all(b"x").is_err());
    }
}
