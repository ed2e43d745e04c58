//! What a saved state is bound to: it is right only for the same QEMU, for a CPU that can do and counts the same, and with KVM for
//! the same kernel.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::machine::Accelerator;

/// How much of QEMU's program is looked at: its head, in which the identity of its build stands.
const HEAD: u64 = 64 * 1024;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Host {
    /// QEMU's version and package, as it tells them.
    version: String,
    /// The SHA-256 of the head of its program.
    program: String,
    /// `kvm` or `tcg`.
    accelerator: String,
    /// The SHA-256 of what the CPU is and can do; under emulation it doesn't matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
    /// The kernel whose KVM it is: what a guest is shown of the CPU, and which registers are saved, is its doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel: Option<String>,
    /// The rate of the time stamp counter in kHz, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tsc_khz: Option<u64>,
}

impl Host {
    /// This host, with the QEMU that says it is `version`.
    ///
    /// # Errors
    /// The program can't be read.
    pub(crate) fn here(version: &str, program: &Path, accelerator: Accelerator) -> std::io::Result<Self> {
        let mut head = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::open(program)?, HEAD), &mut head)?;
        let (accelerator, cpu, kernel, tsc_khz) = match accelerator {
            Accelerator::Kvm { tsc_khz } => {
                ("kvm", Some(hex(&Sha256::digest(sys::cpu::identity()))), Some(sys::kernel::identity()), tsc_khz)
            }
            Accelerator::Tcg { tsc_khz } => ("tcg", None, None, tsc_khz),
        };
        let program = hex(&Sha256::digest(&head));
        Ok(Self { version: version.to_owned(), program, accelerator: accelerator.to_owned(), cpu, kernel, tsc_khz })
    }

    /// Whether the CPU of the guest was emulated.
    pub(crate) fn is_emulated(&self) -> bool {
        self.accelerator == "tcg"
    }

    /// Whether a state of `saved`'s can go on here.
    ///
    /// # Errors
    /// Says what differs.
    pub(crate) fn takes(&self, saved: &Self) -> Result<(), String> {
        if self.version != saved.version || self.program != saved.program {
            return Err(format!("it was saved by another QEMU ({}), this one is {}", saved.version, self.version));
        }
        if self.accelerator != saved.accelerator {
            return Err(format!("it was saved on {}, and this host has {}", saved.accelerator, self.accelerator));
        }
        if self.cpu != saved.cpu {
            return Err("it was saved on a CPU of another kind or with other flags".to_owned());
        }
        if self.kernel != saved.kernel {
            let [here, there] = [self, saved].map(|one| one.kernel.as_deref().unwrap_or("one that is not known"));
            return Err(format!("it was saved under another kernel ({there}), this one is {here}"));
        }
        // An emulated guest has no other clock: two measurements agree within a tenth of this. With KVM it has, and what is looked
        // for is another base clock; on a machine whose cores' counters are apart a short look is that far off.
        let part = if self.is_emulated() { 1000 } else { 100 };
        match (self.tsc_khz, saved.tsc_khz) {
            (Some(here), Some(there)) if here.abs_diff(there) > there / part => Err(format!(
                "its time stamp counter ran at {there} kHz and this host's runs at {here} kHz: its clock would be wrong"
            )),
            _ => Ok(()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told() {
        let tcg = |khz| Accelerator::Tcg { tsc_khz: Some(khz) };
        let program = Path::new("/proc/self/exe");
        let here = Host::here("7.2.22", program, tcg(2_600_000)).expect("readable");
        here.takes(&here).expect("itself");
        here.takes(&Host { tsc_khz: Some(2_600_100), ..here.clone() }).expect("the same counter");
        for (other, said) in [
            (Host { version: "10.0.2".into(), ..here.clone() }, "10.0.2"),
            (Host { program: "0".into(), ..here.clone() }, "another QEMU"),
            (Host { accelerator: "kvm".into(), ..here.clone() }, "kvm"),
            (Host { tsc_khz: Some(2_860_000), ..here.clone() }, "2860000 kHz"),
        ] {
            let error = here.takes(&other).expect_err(said);
            assert!(error.contains(said), "{error}");
        }
        let here = Host::here("7.2.22", program, Accelerator::Kvm { tsc_khz: Some(2_600_000) }).expect("readable");
        here.takes(&here).expect("itself");
        here.takes(&Host { tsc_khz: Some(2_605_200), ..here.clone() }).expect("the same counter");
        let mut cpu = sys::cpu::identity();
        assert_eq!(here.cpu, Some(hex(&Sha256::digest(&cpu))));
        *cpu.last_mut().expect("a CPU") ^= 1;
        for (other, said) in [
            (Host { cpu: Some(hex(&Sha256::digest(&cpu))), ..here.clone() }, "CPU"),
            (Host { kernel: Some("6.1.0".into()), ..here.clone() }, "kernel (6.1.0)"),
            (Host { kernel: None, ..here.clone() }, "not known"),
            (Host { tsc_khz: Some(2_860_000), ..here.clone() }, "2860000 kHz"),
        ] {
            let error = here.takes(&other).expect_err(said);
            assert!(error.contains(said), "{error}");
        }
    }
}
