//! Which VMM runs the guest: Firecracker where it is installed and KVM runs guests, QEMU's emulation elsewhere.

use std::path::Path;

/// The VMM's name, as the helper resolves it, and why it is this one.
pub(crate) struct Choice {
    pub(crate) name: &'static str,
    pub(crate) why: String,
}

/// The directories that the helper looks in too.
const DIRECTORIES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/usr/libexec/banger"];

/// Looks at this machine. KVM counts when it has run a guest just now: the device alone says nothing.
pub(crate) fn choose() -> Choice {
    let installed = DIRECTORIES.iter().map(|d| format!("{d}/firecracker")).find(|p| Path::new(p).exists());
    let kvm = sys::kvm::runs_guests();
    match (installed, kvm) {
        (Some(path), Ok(())) => Choice { name: "firecracker", why: format!("{path} is here and KVM ran a guest") },
        (None, Ok(())) => Choice {
            name: "banger-qemu",
            why: "KVM ran a guest, but there is no firecracker here: QEMU with KVM".into(),
        },
        (installed, Err(e)) => {
            let firecracker = if installed.is_some() { "firecracker is here" } else { "no firecracker here either" };
            let kvm = match e.kind() {
                std::io::ErrorKind::NotFound => "there is no /dev/kvm".into(),
                _ => format!("KVM runs no guests ({e})"),
            };
            Choice { name: "banger-qemu", why: format!("{kvm}, {firecracker}: QEMU's emulation") }
        }
    }
}
