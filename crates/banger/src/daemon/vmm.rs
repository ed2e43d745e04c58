//! Which VMM runs guests: Firecracker where it is installed and KVM runs guests, QEMU elsewhere, with KVM or without.

use std::io::{self, ErrorKind};

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

/// What is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// How guests are run; `None`: by KVM where it runs them.
    pub accel: Option<Accel>,
    /// Firecracker's program; `None`: the one that is installed, where one is.
    pub firecracker: Option<String>,
}

/// Why there is none.
#[derive(Debug)]
pub enum Missing<E> {
    /// KVM is wanted, and runs no guests.
    Kvm(io::Error),
    /// What was said of a program that is wanted.
    Program(E),
}

/// Looks at this machine. `resolve` gives the path of a VMM's program that is installed. KVM counts when it has run a
/// guest just now: the device alone says nothing.
///
/// # Errors
/// KVM is wanted and runs nothing; what `resolve` said of `banger-qemu` where that is needed, or of the Firecracker that is
/// wanted.
pub fn choose<E>(resolve: impl Fn(&str) -> Result<String, E>, wanted: &Wanted) -> Result<Choice, Missing<E>> {
    let qemu = |accel, why| Ok(Choice { program: resolve(QEMU).map_err(Missing::Program)?, name: QEMU, accel, why });
    if wanted.accel == Some(Accel::Emulation) {
        return qemu(Accel::Emulation, "accel = \"emulation\" is configured".into());
    }
    let kvm = sys::kvm::runs_guests();
    let firecracker = resolve(wanted.firecracker.as_deref().unwrap_or("firecracker"));
    match (firecracker, kvm) {
        (_, Err(error)) if wanted.accel == Some(Accel::Kvm) => Err(Missing::Kvm(error)),
        (Ok(program), Ok(())) => {
            let why = format!("{program} is here and KVM ran a guest");
            Ok(Choice { program, name: "firecracker", accel: Accel::Kvm, why })
        }
        (Err(error), Ok(())) if wanted.firecracker.is_some() => Err(Missing::Program(error)),
        (Err(_), Ok(())) => qemu(Accel::Kvm, "KVM ran a guest, but there is no firecracker here: QEMU with KVM".into()),
        (firecracker, Err(error)) => {
            let firecracker = if firecracker.is_ok() { "firecracker is here" } else { "no firecracker here either" };
            qemu(Accel::Emulation, format!("{}, {firecracker}: QEMU's emulation", no_kvm(&error)))
        }
    }
}

/// Why KVM runs no guests, for a person.
pub fn no_kvm(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no /dev/kvm".into(),
        _ => format!("KVM runs no guests ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_firecracker_it_is_qemu_and_without_both_an_error() {
        let qemu = |name: &str| if name == "banger-qemu" { Ok("/usr/bin/banger-qemu".to_owned()) } else { Err(()) };
        let choice = choose(qemu, &Wanted::default()).unwrap();
        assert_eq!((choice.name, choice.program.as_str()), ("banger-qemu", "/usr/bin/banger-qemu"));
        if sys::kvm::runs_guests().is_err() {
            assert_eq!(choice.accel, Accel::Emulation);
            assert!(choose(|_| Err(()), &Wanted::default()).is_err());
        }
    }

    #[test]
    fn what_is_configured_is_taken_or_refused() {
        let all = |name: &str| if name.starts_with("/mine/") { Err("no such") } else { Ok(format!("/usr/bin/{name}")) };
        let emulated = Wanted { accel: Some(Accel::Emulation), ..Wanted::default() };
        let choice = choose(all, &emulated).unwrap();
        assert_eq!((choice.name, choice.accel), (QEMU, Accel::Emulation), "firecracker or not, KVM or not");
        let kvm = Wanted { accel: Some(Accel::Kvm), firecracker: Some("/mine/firecracker".into()) };
        match (choose(all, &kvm), sys::kvm::runs_guests()) {
            (Err(Missing::Kvm(_)), Err(_)) | (Err(Missing::Program("no such")), Ok(())) => {}
            (other, kvm) => panic!("{other:?}, {kvm:?}"),
        }
    }
}
