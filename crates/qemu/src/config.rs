//! What a VM is made of, as it is gathered before the boot. Files, taps and the vsock's socket are opened when they are
//! named, with this process's own rights, and are descriptors from then on: QEMU never sees a path.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};

use wire::firecracker::{
    Balloon, BootSource, CpuTemplate, Drive, Entropy, HostPath, HugePages, MAX_VCPUS, MachineConfig,
    MachineConfigUpdate, NetworkInterface, RateLimiter, Serial, TokenBucket, VmConfig, Vsock,
};

use crate::args::Layer;
use crate::fault::Fault;
use crate::serial::Console;
use crate::socket::OwnSocket;

/// The most virtio devices: `microvm` has 24 places, one is the relay's port.
const MAX_DEVICES: usize = 23;
/// What a request for a balloon is that is larger than the guest.
const TOO_MANY_PAGES: &str = "Balloon config error: Amount of pages requested is too large.";

/// The gathered parts.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    pub(crate) machine: MachineConfig,
    pub(crate) boot: Option<Boot>,
    /// The root drive is the first, where there is one.
    pub(crate) disks: Vec<Disk>,
    pub(crate) nics: Vec<Nic>,
    pub(crate) vsock: Option<(Vsock, OwnSocket)>,
    pub(crate) balloon: Option<Balloon>,
    pub(crate) entropy: Option<Entropy>,
    pub(crate) console: Option<Console>,
    /// What the starter says of one of the drives.
    pub(crate) layer: Option<Layer>,
    /// Whether anything was asked for that a load would have to throw away.
    pub(crate) touched: bool,
    pub(crate) logger: Option<wire::firecracker::Logger>,
    pub(crate) metrics: Option<wire::firecracker::Metrics>,
}

#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) config: BootSource,
    pub(crate) kernel: OwnedFd,
    pub(crate) initrd: Option<OwnedFd>,
}

/// What is behind a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    File,
    BlockDevice,
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) config: Drive,
    pub(crate) backing: Backing,
    pub(crate) file: OwnedFd,
    /// The qcow2 file over it; then `file` is only read.
    pub(crate) layer: Option<OwnedFd>,
}

#[derive(Debug)]
pub(crate) struct Nic {
    pub(crate) config: NetworkInterface,
    pub(crate) tap: OwnedFd,
}

impl Resources {
    pub(crate) fn set_machine(&mut self, config: MachineConfig) -> Result<(), Fault> {
        let vcpus = config.vcpu_count;
        if vcpus == 0 || vcpus > MAX_VCPUS || (config.smt && vcpus != 1 && !vcpus.is_multiple_of(2)) {
            return Err(Fault::new(
                "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an \
                 even number if SMT is enabled.",
            ));
        }
        if config.mem_size_mib == 0 || config.mem_size_mib > u64::from(u32::MAX) {
            return Err(Fault::new("Machine config error: The memory size (MiB) is either 0, or too large."));
        }
        if !matches!(config.cpu_template, None | Some(CpuTemplate::None)) {
            return Err(Fault::not_supported("cpu_template"));
        }
        if config.huge_pages != HugePages::None {
            return Err(Fault::not_supported("huge_pages"));
        }
        if self.balloon.is_some_and(|balloon| u64::from(balloon.amount_mib) > config.mem_size_mib) {
            return Err(Fault::new(
                "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target \
                 size.",
            ));
        }
        self.machine = config;
        Ok(())
    }

    pub(crate) fn update_machine(&mut self, update: &MachineConfigUpdate) -> Result<(), Fault> {
        if *update == MachineConfigUpdate::default() {
            return Err(Fault::new("Empty PATCH request."));
        }
        let now = &self.machine;
        self.set_machine(MachineConfig {
            vcpu_count: update.vcpu_count.unwrap_or(now.vcpu_count),
            mem_size_mib: update.mem_size_mib.unwrap_or(now.mem_size_mib),
            smt: update.smt.unwrap_or(now.smt),
            cpu_template: update.cpu_template.or(now.cpu_template),
            track_dirty_pages: update.track_dirty_pages.unwrap_or(now.track_dirty_pages),
            huge_pages: update.huge_pages.unwrap_or(now.huge_pages),
        })
    }

    pub(crate) fn set_boot(&mut self, config: BootSource) -> Result<(), Fault> {
        let kernel = open_regular(config.kernel_image_path.as_str())
            .and_then(check_kernel)
            .map_err(|error| Fault::new(format!("Boot source error: The kernel file cannot be opened: {error}")))?;
        let initrd = config
            .initrd_path
            .as_ref()
            .map(|path| open_regular(path.as_str()))
            .transpose()
            .map_err(|error| Fault::new(format!("Boot source error: The initrd file cannot be opened: {error}")))?;
        self.boot = Some(Boot { config, kernel: kernel.into(), initrd: initrd.map(Into::into) });
        Ok(())
    }

    /// Adds a drive, or replaces the one of the same id in its place.
    pub(crate) fn set_drive(&mut self, config: Drive) -> Result<(), Fault> {
        let same = self.disks.iter().position(|disk| disk.config.drive_id == config.drive_id);
        let other_root =
            self.disks.iter().any(|disk| disk.config.is_root_device && disk.config.drive_id != config.drive_id);
        if config.is_root_device && other_root {
            return Err(Fault::new("Drive config error: A root block device already exists!"));
        }
        if config.socket.is_some() {
            return Err(Fault::not_supported("a drive's vhost-user socket"));
        }
        let Some(path) = &config.path_on_host else {
            return Err(Fault::new("Drive config error: path_on_host is missing."));
        };
        let read_only = config.is_read_only.unwrap_or(false);
        let layer = self.layer.as_ref().filter(|layer| layer.drive == config.drive_id).map(|layer| &layer.path);
        if read_only && layer.is_some() {
            return Err(Fault::new("Drive config error: A drive with a layer (--disk-layer) is not read-only."));
        }
        let open = |path: &HostPath, read_only| {
            open_disk(path.as_str(), read_only).map_err(|error| {
                Fault::new(format!("Drive config error: Unable to create the virtio block device: {error}: {path}"))
            })
        };
        let (file, backing) = open(path, read_only || layer.is_some())?;
        let layer = layer.map(|path| open(path, false)).transpose()?.map(|(layer, _)| layer);
        if same.is_none() {
            self.room_for_one_more()?;
        }
        let disk = Disk { config, backing, file, layer };
        if let Some(at) = same {
            self.disks.remove(at);
        }
        let place = if disk.config.is_root_device { 0 } else { same.unwrap_or(self.disks.len()) };
        self.disks.insert(place, disk);
        Ok(())
    }

    /// Adds an interface, or replaces the one of the same id in its place.
    pub(crate) fn set_nic(&mut self, config: NetworkInterface) -> Result<(), Fault> {
        let same = self.nics.iter().position(|nic| nic.config.iface_id == config.iface_id);
        if let Some(mac) = &config.guest_mac {
            let twin = |nic: &Nic| {
                let other = nic.config.guest_mac.as_ref().map(|other| other.as_str().to_ascii_lowercase());
                nic.config.iface_id != config.iface_id && other == Some(mac.as_str().to_ascii_lowercase())
            };
            if self.nics.iter().any(twin) {
                return Err(Fault::new(format!("Network config error: The MAC address is already in use: {mac}")));
            }
        }
        if config.mtu.is_some_and(|mtu| mtu < 68) {
            return Err(Fault::new("Network config error: mtu is from 68 to 65535."));
        }
        refuse_network_limits([config.rx_rate_limiter.as_ref(), config.tx_rate_limiter.as_ref()])?;
        if same.is_none() {
            self.room_for_one_more()?;
        }
        let nic = match same {
            // The tap is ours already, and can't be taken twice.
            Some(at) if self.nics[at].config.host_dev_name == config.host_dev_name => {
                self.nics[at].config = config;
                return Ok(());
            }
            _ => Nic { tap: attach(config.host_dev_name.as_str())?, config },
        };
        match same {
            Some(at) => self.nics[at] = nic,
            None => self.nics.push(nic),
        }
        Ok(())
    }

    /// Makes the vsock's socket and listens on it; the one of before goes.
    pub(crate) fn set_vsock(&mut self, config: Vsock) -> Result<(), Fault> {
        self.vsock = None;
        let socket = OwnSocket::bind(config.uds_path.as_str().as_ref()).map_err(|error| {
            Fault::new(format!("Vsock config error: Cannot create backend for vsock device: UnixBind({error})"))
        })?;
        self.vsock = Some((config, socket));
        Ok(())
    }

    pub(crate) fn set_balloon(&mut self, config: Balloon) -> Result<(), Fault> {
        if u64::from(config.amount_mib) > self.machine.mem_size_mib {
            return Err(Fault::new(TOO_MANY_PAGES));
        }
        if config.free_page_hinting {
            return Err(Fault::not_supported("free_page_hinting"));
        }
        if self.balloon.is_none() {
            self.room_for_one_more()?;
        }
        self.balloon = Some(config);
        Ok(())
    }

    pub(crate) fn set_entropy(&mut self, config: Entropy) -> Result<(), Fault> {
        let limiter = config.rate_limiter.unwrap_or_default();
        let bucket = limiter.bandwidth.filter(TokenBucket::limits);
        // A number of bytes each so many milliseconds, both of which QEMU holds in 31 bits.
        let most = u64::from(u32::MAX / 2);
        let fits = bucket.is_none_or(|bucket| {
            bucket.one_time_burst.unwrap_or(0) == 0 && bucket.size <= most && bucket.refill_time <= most
        });
        if limiter.ops.is_some_and(|ops| ops.limits()) || !fits {
            return Err(Fault::not_supported("an entropy device's limit of operations, or with a one_time_burst"));
        }
        if self.entropy.is_none() {
            self.room_for_one_more()?;
        }
        self.entropy = Some(config);
        Ok(())
    }

    /// Says where the console's output goes; nothing named means standard output.
    pub(crate) fn set_serial(&mut self, config: &Serial) -> Result<(), Fault> {
        if config.serial_out_path.is_none() && config.rate_limiter.is_some_and(|limit| limit.limits()) {
            return Err(Fault::not_supported("a serial rate_limiter without a serial_out_path"));
        }
        self.console = Console::open(config)
            .map_err(|error| Fault::new(format!("Serial config error: Cannot open the serial output: {error}")))?;
        Ok(())
    }

    /// The whole of it, as `GET /vm/config` tells it.
    pub(crate) fn describe(&self) -> VmConfig {
        VmConfig {
            boot_source: self.boot.as_ref().map(|boot| boot.config.clone()),
            drives: self.disks.iter().map(|disk| disk.config.clone()).collect(),
            machine_config: Some(self.machine.clone()),
            network_interfaces: self.nics.iter().map(|nic| nic.config.clone()).collect(),
            vsock: self.vsock.as_ref().map(|(config, _)| config.clone()),
            logger: self.logger.clone(),
            metrics: self.metrics.clone(),
            balloon: self.balloon,
            entropy: self.entropy,
            cpu_config: None,
            mmds_config: None,
            memory_hotplug: None,
            pmem: Vec::new(),
        }
    }

    fn room_for_one_more(&self) -> Result<(), Fault> {
        let single = usize::from(self.balloon.is_some()) + usize::from(self.entropy.is_some());
        if self.disks.len() + self.nics.len() + single < MAX_DEVICES {
            return Ok(());
        }
        Err(Fault::not_supported(&format!("more than {MAX_DEVICES} devices")))
    }
}

/// QEMU has none for a tap.
pub(crate) fn refuse_network_limits(limiters: [Option<&RateLimiter>; 2]) -> Result<(), Fault> {
    if limiters.into_iter().flatten().any(RateLimiter::limits) {
        return Err(Fault::not_supported("a network interface's rx_rate_limiter and tx_rate_limiter"));
    }
    Ok(())
}

fn attach(name: &str) -> Result<OwnedFd, Fault> {
    sys::tapfd::attach(name).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "there is no such interface; create it first".to_owned(),
            _ => error.to_string(),
        };
        Fault::new(format!("Network config error: Cannot open/create the tap device: {name}: {why}"))
    })
}

/// Opens without waiting: a FIFO in place of a file must not hold up the API.
fn options() -> std::fs::OpenOptions {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let mut options = File::options();
    options.read(true).custom_flags(i32::try_from(flags.bits()).unwrap_or(0));
    options
}

pub(crate) fn open_regular(path: &str) -> io::Result<File> {
    let file = options().open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// An ELF file or a bzImage, by their magic numbers.
fn check_kernel(mut file: File) -> io::Result<File> {
    let mut head = [0; 0x206];
    let got = file.read(&mut head)?;
    if head.starts_with(b"\x7fELF") || (got == head.len() && &head[0x202..] == b"HdrS") {
        Ok(file)
    } else {
        Err(io::Error::other("neither an ELF file nor a bzImage"))
    }
}

/// Opens what is to be behind a drive.
///
/// # Errors
/// What opening says, or that it is no file and no block device.
pub(crate) fn open_disk(path: &str, read_only: bool) -> io::Result<(OwnedFd, Backing)> {
    let file = options().write(!read_only).open(path)?;
    let kind = file.metadata()?.file_type();
    let backing = if kind.is_file() {
        Backing::File
    } else if kind.is_block_device() {
        Backing::BlockDevice
    } else {
        return Err(io::Error::other("neither a regular file nor a block device"));
    };
    // QEMU's reads and writes are to wait again.
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty())?;
    Ok((file.into(), backing))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
