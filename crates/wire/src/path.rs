//! Host paths: text that was checked and has not been opened.
//!
//! A path lies below one of two places, the state or the runtime directory, by whole parts. Whether there is a link in
//! it is asked when it is opened, from the place's own descriptor.

use crate::code::{Code, Refusal, shown};
use crate::name::Invalid;
use crate::name::vm_id::VmId;

/// The longest path that is taken.
const MAX_PATH: usize = 4095;
const MAX_PART: usize = 255;

/// The two directories that the owner writes and that paths may lie in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// The state directory, `/var/lib/banger`, without a slash at its end.
    pub state: String,
    /// The runtime directory, `/run/banger`.
    pub runtime: String,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Root {
    /// The state directory.
    State,
    /// The runtime directory.
    Runtime,
}

impl Roots {
    fn of(&self, root: Root) -> &str {
        match root {
            Root::State => &self.state,
            Root::Runtime => &self.runtime,
        }
    }
}

/// A path below a place. How it is refused when it is opened travels with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPath {
    root: Root,
    full: String,
    below: usize,
    code: Code,
    field: &'static str,
}

impl HostPath {
    /// Checks that `text` lies below one of `roots`. `code` and `field` are what a refusal says, now and later.
    pub fn new(
        text: &str,
        allowed: &[Root],
        roots: &Roots,
        code: Code,
        field: &'static str,
    ) -> Result<HostPath, Refusal> {
        check_parts(text).map_err(|invalid| invalid.refuse(code, field))?;
        for &root in allowed {
            let dir = roots.of(root);
            if let Some(rest) = text.strip_prefix(dir)
                && rest.len() > 1
                && rest.starts_with('/')
            {
                return Ok(HostPath { root, full: text.to_owned(), below: dir.len() + 1, code, field });
            }
        }
        Err(Refusal::new(code, field, format!("path {} is outside banger-managed directories", shown(text))))
    }

    /// The place it lies in.
    pub fn root(&self) -> Root {
        self.root
    }

    /// The whole path, as it was sent.
    pub fn as_str(&self) -> &str {
        &self.full
    }

    /// The path from its place on: never empty, never absolute.
    pub fn below(&self) -> &str {
        &self.full[self.below..]
    }

    /// Its last part.
    pub fn file_name(&self) -> &str {
        self.full.rsplit('/').next().unwrap_or("")
    }

    /// A refusal of this path, found out when it was opened.
    pub fn refuse(&self, message: impl Into<String>) -> Refusal {
        Refusal::new(self.code, self.field, message)
    }
}

/// The path of a program of root's; whose it is is asked when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramPath(String);

impl ProgramPath {
    /// Checks that the path is absolute and means what it says.
    pub fn new(text: &str) -> Result<ProgramPath, Invalid> {
        check_parts(text)?;
        Ok(ProgramPath(text.to_owned()))
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A whole chroot of banger's: `<base>/firecracker/<vm_id>/root`, or the `<vm_id>` above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChrootPath {
    /// `<base>/firecracker/<vm_id>`.
    pub vm_dir: HostPath,
    /// The VM.
    pub vm_id: VmId,
    /// Whether `root` alone was asked for.
    pub root_only: bool,
}

impl ChrootPath {
    /// Checks a chroot's path; whatever is wrong with it is `invalid_path`.
    pub fn new(text: &str, roots: &Roots) -> Result<ChrootPath, Refusal> {
        const FIELD: &str = "chroot_root";
        let path = HostPath::new(text, &[Root::State, Root::Runtime], roots, Code::InvalidPath, FIELD)?;
        let parts: Vec<&str> = path.below().split('/').collect();
        let (id, root_only) = match parts[..] {
            [_, .., "firecracker", id, "root"] => (id, true),
            [_, .., "firecracker", id] => (id, false),
            _ => {
                let message = format!("{} is not <base>/firecracker/<vm_id>, with or without /root", shown(text));
                return Err(path.refuse(message));
            }
        };
        let vm_id = VmId::new(id).map_err(|invalid| invalid.refuse(Code::InvalidPath, FIELD))?;
        let mut vm_dir = path;
        if root_only {
            vm_dir.full.truncate(vm_dir.full.len() - "/root".len());
        }
        Ok(ChrootPath { vm_dir, vm_id, root_only })
    }
}

/// Absolute, no empty, blank, `.` or `..` part, no control character, no blank at either end, within the bounds.
fn check_parts(text: &str) -> Result<(), Invalid> {
    let invalid = |why: &str| Err(Invalid::new(format!("path {} {why}", shown(text))));
    if text.is_empty() {
        return Err(Invalid::new("path is required"));
    }
    let Some(rest) = text.strip_prefix('/') else {
        return invalid("must be absolute");
    };
    if text.len() > MAX_PATH {
        return invalid("is longer than 4095 bytes");
    }
    if text.chars().any(char::is_control) {
        return invalid("holds a control character");
    }
    if text.ends_with(char::is_whitespace) {
        return invalid("ends in a blank");
    }
    for part in rest.split('/') {
        match part {
            _ if part.trim().is_empty() => return invalid("has an empty part"),
            _ if matches!(part.trim(), "." | "..") => return invalid("has . or .. in it"),
            _ if part.len() > MAX_PART => return invalid("has a part of more than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn roots() -> Roots {
        Roots { state: "/var/lib/banger".into(), runtime: "/run/banger".into() }
    }

    fn state(text: &str) -> Result<HostPath, Refusal> {
        HostPath::new(text, &[Root::State], &roots(), Code::BadParams, "image_path")
    }

    #[test]
    fn paths_below_their_place() {
        let path = state("/var/lib/banger/images/a b.ext4").unwrap();
        assert_eq!((path.below(), path.file_name(), path.root()), ("images/a b.ext4", "a b.ext4", Root::State));
        for bad in [
            "",
            "/",
            "/var/lib/banger",
            "/var/lib/banger/",
            "/var/lib/bangerx/a",
            "/var/lib/banger/../x",
            "/run/banger/a",
            "var/lib/banger/a",
            "/var/lib/banger//a",
            "/var/lib/banger/./a",
            "/var/lib/banger/ /a",
            "/var/lib/banger/a ",
            " /var/lib/banger/a",
            "/var/lib/banger/a\0",
            "/var/lib/banger/a\n",
        ] {
            assert_eq!(state(bad).unwrap_err().code, Code::BadParams, "{bad}");
        }
    }

    #[test]
    fn chroots() {
        let chroot = ChrootPath::new("/var/lib/banger/jail/firecracker/vm-1/root", &roots()).unwrap();
        assert_eq!(
            (chroot.vm_dir.below(), chroot.vm_id.as_str(), chroot.root_only),
            ("jail/firecracker/vm-1", "vm-1", true)
        );
        let above = ChrootPath::new("/run/banger/a/b/firecracker/vm-1", &roots()).unwrap();
        assert_eq!((above.vm_dir.below(), above.root_only), ("a/b/firecracker/vm-1", false));
        for bad in [
            "/var/lib/banger/images",
            "/var/lib/banger/jail/firecracker",
            "/var/lib/banger/firecracker/vm-1/root",
            "/var/lib/banger/jail/firecracker/vm_1/root",
            "/var/lib/banger/jail/firecracker/vm-1/root/x",
            "/etc/firecracker/x/root",
        ] {
            assert_eq!(ChrootPath::new(bad, &roots()).unwrap_err().code, Code::InvalidPath, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_stays_below(text in "/(var|run)/(lib|banger)(/[a-c. ]{0,3}){0,5}") {
            let path = HostPath::new(&text, &[Root::State, Root::Runtime], &roots(), Code::InvalidPath, "x");
            if let Ok(path) = path {
                prop_assert!(!path.below().is_empty() && !path.below().starts_with('/'));
                prop_assert!(path.below().split('/').all(|part| !matches!(part.trim(), "" | "." | "..")));
                prop_assert!(text.ends_with(path.below()));
            }
        }
    }
}
