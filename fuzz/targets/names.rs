//! Every checked name: what is taken is the text that was given, in the kernel's alphabet and length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::code::Code;
use wire::name::addr::{BridgeAddr, GuestAddr, ServerAddr};
use wire::name::dm::DmName;
use wire::name::guest_path::GuestPath;
use wire::name::link::{BridgeName, TapName};
use wire::name::signal::Signal;
use wire::name::vm_id::{DriveId, VmId};
use wire::path::{ChrootPath, HostPath, ProgramPath, Root, Roots};
use wire::units::PrefixLen;

fuzz_target!(|text: &str| {
    let plain = |t: &str| t.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if let Ok(name) = BridgeName::new(text) {
        assert!(name.to_string() == text && plain(text) && text.len() <= 15);
        assert!(text == "br-fc" || text.len() > 6 && text.starts_with("br-fc-"));
    }
    if let Ok(name) = TapName::new(text) {
        assert!(name.to_string() == text && plain(text) && text.len() <= 15);
        assert!(text.len() > 7 && text.starts_with("tap-fc-") || text.len() > 9 && text.starts_with("tap-pool-"));
    }
    if let Ok(name) = DmName::new(text) {
        assert!(name.to_string() == text && plain(text) && text.len() <= 127 && text.starts_with("fc-rootfs-"));
    }
    if let Ok(id) = VmId::new(text) {
        assert!(id.to_string() == text && plain(text) && (1..=64).contains(&text.len()));
    }
    if let Ok(id) = DriveId::new(text) {
        assert!(id.to_string() == text && plain(text) && (1..=64).contains(&text.len()));
    }
    if let Ok(address) = GuestAddr::new(text) {
        assert_eq!(address.to_string(), text);
    }
    if let Some((ip, cidr)) = text.split_once(' ') {
        let _ = BridgeAddr::new(ip, cidr);
    }
    let _ = (ServerAddr::new(text), GuestPath::new(text), Signal::new(text), PrefixLen::new(text));
    let _ = (ProgramPath::new(text), DriveId::from_path(text), DmName::from_device(text), DmName::from_target(text));
    paths(text);
});

fn paths(text: &str) {
    let roots = Roots { state: "/var/lib/banger".into(), runtime: "/run/banger".into() };
    if let Ok(path) = HostPath::new(text, &[Root::State, Root::Runtime], &roots, Code::InvalidPath, "path") {
        assert_eq!(path.as_str(), text);
        let parts: Vec<&str> = path.below().split('/').collect();
        assert!(parts.iter().all(|p| !p.trim().is_empty() && !matches!(*p, "." | "..") && !p.contains('\0')));
    }
    if let Ok(chroot) = ChrootPath::new(text, &roots) {
        assert!(text.starts_with(chroot.vm_dir.as_str()));
    }
}
