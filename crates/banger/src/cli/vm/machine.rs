//! What a new VM is to be, as a command line says it.

use super::forward;
use crate::api::vm::{Machine, Port};
use crate::cli::image::need_default;
use crate::cli::problem::Problem;
use crate::cli::reach::Reach;
use crate::cli::{config, size};
use clap::Args;

/// What a new VM is to be.
#[derive(Args)]
pub(crate) struct MachineArgs {
    /// The image that its disk is made from.
    #[arg(long, value_name = "IMAGE", env = "BANGER_IMAGE")]
    image: Option<String>,
    /// Its kernel.
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// vCPUs, 1 to 32 [default: a quarter of the machine's, at most 4; 1 under emulation].
    #[arg(long, alias = "vcpu", value_name = "N")]
    cpus: Option<u8>,
    /// Memory: 512M, 1.5G; a bare number is MiB [default: an eighth of the machine's, 512M to 8G].
    #[arg(long, short, value_name = "SIZE", value_parser = size::mebibytes)]
    memory: Option<u64>,
    /// How long its disk is, at least as long as its image [default: as the image]; it takes what is written.
    #[arg(long, alias = "disk-size", value_name = "SIZE", value_parser = size::mebibytes)]
    disk: Option<u64>,
    /// [ADDRESS:]HOST:GUEST: listen here, on 127.0.0.1 or ADDRESS, for a TCP port of the VM's as long as it runs. HOST 0: a
    /// free one, which `vm show` names.
    #[arg(short, long, value_name = "PORTS", value_parser = forward::published)]
    publish: Vec<Port>,
    /// Give it no way out to the network.
    #[arg(long)]
    no_nat: bool,
    #[arg(long, hide = true)]
    nat: bool,
    /// Boot the image's own init, systemd say, as the guest's first process.
    #[arg(long)]
    init: bool,
}

impl MachineArgs {
    /// Sees to it that there is something to make a VM of.
    pub(super) fn need_base(&self, reach: &Reach) -> Result<(), Problem> {
        let (image, kernel) = (self.image.is_none(), self.kernel.is_none());
        if image || kernel { need_default(reach, image, kernel) } else { Ok(()) }
    }

    pub(super) fn machine(&self, name: Option<String>) -> Machine {
        Machine {
            name,
            image: self.image.clone(),
            kernel: self.kernel.clone(),
            cpus: self.cpus.or(config().vcpu),
            memory_mib: self.memory.or(config().memory_mib),
            disk_mib: self.disk.or(config().disk_mib),
            no_nat: self.no_nat || (!self.nat && config().nat == Some(false)),
            ports: self.publish.clone(),
            init: self.init,
            boot_timeout_ms: None,
            stages: false,
            cold: false,
        }
    }
}
