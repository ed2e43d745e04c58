//! Which VMM runs guests: Firecracker where it is installed and KVM runs guests, QEMU elsewhere, with KVM or without.

use std::io::ErrorKind;

/// How a guest's instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By QEMU's emulation: a start takes seconds.
    Emulation,
}

/// What a VM that goes on from a template has for a disk: this is where the VMMs differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// An empty layer over the template's: the VMM finds in it what it wrote, and below it what it didn't.
    Layer,
    /// One of its own, made of the template's as a new VM's is made of its image. The VMM opens it by the name that was
    /// saved, which is the jail's.
    Own,
}

impl Accel {
    /// As it is shown and stored.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Emulation => "emulation",
        }
    }
}

/// What was chosen, and why.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The program's path.
    pub program: String,
    /// The program's name.
    pub name: &'static str,
    /// How it runs guests.
    pub accel: Accel,
    /// Why it is this one, for a person.
    pub why: String,
}

/// The name of QEMU behind Firecracker's API.
pub const QEMU: &str = "banger-qemu";

impl Choice {
    /// What its VMs that go on from a template have for a disk.
    pub fn over(&self) -> Over {
        if self.is_qemu() { Over::Layer } else { Over::Own }
    }

    /// Whether QEMU runs its VMs.
    pub fn is_qemu(&self) -> bool {
        self.name == QEMU
    }
}

/// Looks at this machine. `resolve` gives the path of a VMM's program that is installed. KVM counts when it has run a
/// guest just now: the device alone says nothing.
///
/// # Errors
/// What `resolve` said of `banger-qemu`, where that is needed and not there.
pub fn choose<E>(resolve: impl Fn(&str) -> Result<String, E>) -> Result<Choice, E> {
    let kvm = sys::kvm::runs_guests();
    let firecracker = resolve("firecracker");
    let (why, accel) = match (firecracker, kvm) {
        (Ok(program), Ok(())) => {
            let why = format!("{program} is here and KVM ran a guest");
            return Ok(Choice { program, name: "firecracker", accel: Accel::Kvm, why });
        }
        (Err(_), Ok(())) => ("KVM ran a guest, but there is no firecracker here: QEMU with KVM".into(), Accel::Kvm),
        (firecracker, Err(error)) => {
            let firecracker = if firecracker.is_ok() { "firecracker is here" } else { "no firecracker here either" };
            let kvm = match error.kind() {
                ErrorKind::NotFound => "there is no /dev/kvm".into(),
                _ => format!("KVM runs no guests ({error})"),
            };
            (format!("{kvm}, {firecracker}: QEMU's emulation"), Accel::Emulation)
        }
    };
    Ok(Choice { program: resolve(QEMU)?, name: QEMU, accel, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_firecracker_it_is_qemu_and_without_both_an_error() {
        let qemu = |name: &str| if name == "banger-qemu" { Ok("/usr/bin/banger-qemu".to_owned()) } else { Err(()) };
        let choice = choose(qemu).unwrap();
        assert_eq!((choice.name, choice.program.as_str()), ("banger-qemu", "/usr/bin/banger-qemu"));
        if sys::kvm::runs_guests().is_err() {
            assert_eq!(choice.accel, Accel::Emulation);
            assert!(choose(|_| Err(())).is_err());
        }
    }
}
