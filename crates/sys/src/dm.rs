//! Device-mapper devices, by the ioctls of `/dev/mapper/control`.
//!
//! The numbers and structures are those of `include/uapi/linux/dm-ioctl.h`. A device is named by its name or by its
//! UUID, never by both; by UUID the kernel itself compares the mark in the moment in which it acts.

use crate::dir::CallError;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// The longest name, and the longest UUID: the kernel's `DM_NAME_LEN` and `DM_UUID_LEN` less their NUL.
pub const LONGEST: (usize, usize) = (127, 128);

const REMOVE: u8 = 4;
const LIST: u8 = 2;
const CREATE: u8 = 3;
const SUSPEND: u8 = 6;
const STATUS: u8 = 7;
const TABLE_LOAD: u8 = 9;
const TABLE_STATUS: u8 = 12;
const LIST_VERSIONS: u8 = 13;

const STATUS_TABLE: u32 = 1 << 4;
const ACTIVE: u32 = 1 << 5;
const BUFFER_FULL: u32 = 1 << 8;
const SUSPENDED: u32 = 1 << 1;
/// The state of a file system on it is not made consistent first: nothing is to be kept.
const SKIP_LOCKFS: u32 = 1 << 10;

/// `struct dm_ioctl`
#[repr(C)]
#[derive(Clone, Copy)]
struct Head {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

const HEAD: usize = size_of::<Head>();
const _: () = assert!(HEAD == 312);
/// `struct dm_target_spec`: sector_start, length, status, next, target_type[16].
const SPEC: usize = 40;
/// Enough for some thousand names; more is asked for where the kernel says that it was too little.
const ROOM: usize = 16 << 10;
const MOST_ROOM: usize = 16 << 20;

/// Which device is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By<'a> {
    /// By its name.
    Name(&'a str),
    /// By its UUID.
    Uuid(&'a str),
}

/// A device, as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its UUID; empty for none.
    pub uuid: String,
    /// Which device it is, as `fstat` says it of its node.
    pub dev: u64,
    /// How many have it open: mounts, processes, other devices.
    pub open_count: u32,
    /// It has a table and can be used.
    pub is_active: bool,
    /// It does nothing until it is resumed.
    pub is_suspended: bool,
}

/// A line of a table, or of a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The first sector, of 512 bytes.
    pub start: u64,
    /// How many sectors.
    pub length: u64,
    /// The target: `snapshot`, `linear`, …
    pub kind: String,
    /// Its parameters, or its status.
    pub text: String,
}

/// What is asked of a device's targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// What they are.
    Table,
    /// How they do.
    Status,
}

/// The way to device-mapper.
#[derive(Debug)]
pub struct Control(OwnedFd);

impl Control {
    /// Opens it; the kernel loads `dm-mod` by that where it may.
    ///
    /// # Errors
    /// The call as it was made: `ENOENT`, `ENODEV` or `ENXIO` where the kernel has no device-mapper.
    pub fn open() -> Result<Control, CallError> {
        const PATH: &str = "/dev/mapper/control";
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = rustix::io::retry_on_intr(|| rustix::fs::open(PATH, flags, Mode::empty()));
        opened.map(Control).map_err(|errno| CallError::new(format!("open({PATH:?})"), errno))
    }

    /// Makes a device without a table. It is no block device yet.
    ///
    /// # Errors
    /// The call as it was made: `EBUSY` where the name or the UUID is taken.
    pub fn create(&self, name: &str, uuid: &str) -> Result<Device, CallError> {
        let mut call = Call::new("DM_DEV_CREATE", CREATE, By::Name(name))?;
        call.set_uuid(uuid)?;
        self.run(call).map(|answer| answer.device())
    }

    /// Loads a table of one target, from the first sector on. It is used from the next [`Control::resume`] on.
    ///
    /// # Errors
    /// The call as it was made: `EINVAL` without such a target in the kernel, which says more in its log; else what
    /// the target says of its parameters.
    pub fn load(&self, which: By<'_>, target: &Target) -> Result<(), CallError> {
        let mut call = Call::new("DM_TABLE_LOAD", TABLE_LOAD, which)?;
        call.add_target(target)?;
        self.run(call).map(|_| ())
    }

    /// Begins to use the table that was loaded last.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn resume(&self, which: By<'_>) -> Result<Device, CallError> {
        self.run(Call::new("DM_DEV_SUSPEND, resume", SUSPEND, which)?).map(|answer| answer.device())
    }

    /// Removes a device. False where there is none.
    ///
    /// # Errors
    /// The call as it was made: `EBUSY` where somebody has it open.
    pub fn remove(&self, which: By<'_>) -> Result<bool, CallError> {
        let mut call = Call::new("DM_DEV_REMOVE", REMOVE, which)?;
        call.add_flags(SKIP_LOCKFS);
        absent_is_none(self.run(call)).map(|answer| answer.is_some())
    }

    /// What a device is. `None` where there is none.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn find(&self, which: By<'_>) -> Result<Option<Device>, CallError> {
        let answer = absent_is_none(self.run(Call::new("DM_DEV_STATUS", STATUS, which)?))?;
        Ok(answer.map(|answer| answer.device()))
    }

    /// The targets of a device's table. `None` where there is no such device, empty where it has no table.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn targets(&self, which: By<'_>, ask: Ask) -> Result<Option<Vec<Target>>, CallError> {
        let mut call = Call::new("DM_TABLE_STATUS", TABLE_STATUS, which)?;
        if ask == Ask::Table {
            call.add_flags(STATUS_TABLE);
        }
        absent_is_none(self.run(call)).map(|answer| answer.map(|answer| answer.targets()))
    }

    /// The names of all devices.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn names(&self) -> Result<Vec<String>, CallError> {
        let answer = self.run(Call::empty("DM_LIST_DEVICES", LIST))?;
        // struct dm_name_list: dev, next, then the name. `next` counts from its own record; 0 is the last.
        const NAME: usize = 12;
        let mut names = Vec::new();
        let mut rest = answer.data();
        while let (Some(name), Some(next)) = (rest.get(NAME..), u32_at(rest, 8)) {
            let name = text(name);
            if !name.is_empty() {
                names.push(name);
            }
            match rest.get(next as usize..) {
                Some(more) if next > 0 => rest = more,
                _ => break,
            }
        }
        Ok(names)
    }

    /// The kinds of targets that the kernel has now; more may come as modules.
    ///
    /// # Errors
    /// The call as it was made.
    pub fn kinds(&self) -> Result<Vec<String>, CallError> {
        let answer = self.run(Call::empty("DM_LIST_VERSIONS", LIST_VERSIONS))?;
        // struct dm_target_versions: next, version[3], then the name.
        const NAME: usize = 16;
        let mut kinds = Vec::new();
        let mut rest = answer.data();
        while let (Some(name), Some(next)) = (rest.get(NAME..), u32_at(rest, 0)) {
            kinds.push(text(name));
            match rest.get(next as usize..) {
                Some(more) if next > 0 => rest = more,
                _ => break,
            }
        }
        Ok(kinds)
    }

    fn run(&self, call: Call) -> Result<Call, CallError> {
        let mut room = ROOM;
        loop {
            let mut asked = call.clone();
            asked.make_room(room);
            let request = libc::_IOWR::<Head>(0xfd, u32::from(asked.command));
            // SAFETY: each of these calls reads and writes a `dm_ioctl` and what follows it within its `data_size`
            // bytes; the buffer has that many, its pointer is the pointer of all of them.
            let answer = unsafe { libc::ioctl(self.0.as_raw_fd(), request, asked.bytes.as_mut_ptr()) };
            if answer < 0 {
                let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
                return Err(CallError::new(format!("ioctl(</dev/mapper/control>, {})", call.what), errno));
            }
            if asked.head_u32(FLAGS) & BUFFER_FULL == 0 || room >= MOST_ROOM {
                return Ok(asked);
            }
            room *= 8;
        }
    }
}

/// A device that is not there is no error.
fn absent_is_none(answer: Result<Call, CallError>) -> Result<Option<Call>, CallError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.errno() == Errno::NXIO => Ok(None),
        Err(error) => Err(error),
    }
}

const DATA_SIZE: usize = std::mem::offset_of!(Head, data_size);
const DATA_START: usize = std::mem::offset_of!(Head, data_start);
const TARGETS: usize = std::mem::offset_of!(Head, target_count);
const OPENED: usize = std::mem::offset_of!(Head, open_count);
const FLAGS: usize = std::mem::offset_of!(Head, flags);
const DEV: usize = std::mem::offset_of!(Head, dev);
const NAME: usize = std::mem::offset_of!(Head, name);
const UUID: usize = std::mem::offset_of!(Head, uuid);

/// A call's bytes: a `dm_ioctl`, and what belongs to it behind.
#[derive(Clone)]
struct Call {
    what: String,
    command: u8,
    bytes: Vec<u8>,
}

impl Call {
    fn empty(what: &str, command: u8) -> Call {
        let mut call = Call { what: what.to_owned(), command, bytes: vec![0; HEAD] };
        // The interface's version that is asked for: the oldest that has all of this.
        call.put(0, &4u32.to_ne_bytes());
        call.put(DATA_START, &(HEAD as u32).to_ne_bytes());
        call
    }

    fn new(what: &str, command: u8, which: By<'_>) -> Result<Call, CallError> {
        let (By::Name(text) | By::Uuid(text)) = which;
        let mut call = Call::empty(&format!("{what} {text:?}"), command);
        match which {
            By::Name(name) => call.put_text(NAME, name, LONGEST.0)?,
            By::Uuid(uuid) => call.put_text(UUID, uuid, LONGEST.1)?,
        }
        Ok(call)
    }

    fn set_uuid(&mut self, uuid: &str) -> Result<(), CallError> {
        self.put_text(UUID, uuid, LONGEST.1)
    }

    fn put_text(&mut self, at: usize, text: &str, longest: usize) -> Result<(), CallError> {
        if text.is_empty() || text.len() > longest || text.bytes().any(|byte| byte == 0) {
            return Err(CallError::new(self.what.clone(), Errno::INVAL));
        }
        self.put(at, text.as_bytes());
        Ok(())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn add_flags(&mut self, flags: u32) {
        let flags = self.head_u32(FLAGS) | flags;
        self.put(FLAGS, &flags.to_ne_bytes());
    }

    fn add_target(&mut self, target: &Target) -> Result<(), CallError> {
        const KIND: usize = 16;
        let is_text = |text: &str| !text.bytes().any(|byte| byte == 0);
        if target.kind.len() >= KIND || !is_text(&target.kind) || !is_text(&target.text) {
            return Err(CallError::new(self.what.clone(), Errno::INVAL));
        }
        let mut spec = Vec::with_capacity(SPEC + target.text.len() + 8);
        spec.extend(target.start.to_ne_bytes());
        spec.extend(target.length.to_ne_bytes());
        spec.extend([0; 8]);
        spec.extend(target.kind.as_bytes());
        spec.resize(SPEC, 0);
        spec.extend(target.text.as_bytes());
        spec.push(0);
        spec.resize(spec.len().next_multiple_of(8), 0);
        let length = spec.len() as u32;
        spec[20..24].copy_from_slice(&length.to_ne_bytes());
        self.bytes.extend(spec);
        let count = self.head_u32(TARGETS) + 1;
        self.put(TARGETS, &count.to_ne_bytes());
        Ok(())
    }

    fn make_room(&mut self, room: usize) {
        let size = self.bytes.len() + room;
        self.bytes.resize(size, 0);
        self.put(DATA_SIZE, &(size as u32).to_ne_bytes());
    }

    fn head_u32(&self, at: usize) -> u32 {
        u32_at(&self.bytes, at).unwrap_or(0)
    }

    fn data(&self) -> &[u8] {
        let end = (self.head_u32(DATA_SIZE) as usize).min(self.bytes.len());
        self.bytes.get(self.head_u32(DATA_START) as usize..end).unwrap_or_default()
    }

    fn device(&self) -> Device {
        let flags = self.head_u32(FLAGS);
        Device {
            name: text(&self.bytes[NAME..UUID]),
            uuid: text(&self.bytes[UUID..HEAD]),
            dev: u64_at(&self.bytes, DEV).unwrap_or(0),
            open_count: self.head_u32(OPENED),
            is_active: flags & ACTIVE != 0,
            is_suspended: flags & SUSPENDED != 0,
        }
    }

    fn targets(&self) -> Vec<Target> {
        let data = self.data();
        let mut at = 0;
        let mut found = Vec::new();
        for _ in 0..self.head_u32(TARGETS) {
            let Some(spec) = data.get(at..).filter(|spec| spec.len() > SPEC) else { break };
            found.push(Target {
                start: u64_at(spec, 0).unwrap_or(0),
                length: u64_at(spec, 8).unwrap_or(0),
                kind: text(&spec[24..SPEC]),
                text: text(&spec[SPEC..]),
            });
            // In an answer, `next` counts from the first.
            at = u32_at(spec, 20).unwrap_or(0) as usize;
        }
        found
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_laid_out_as_the_kernel_reads_it() {
        let mut call = Call::new("load", TABLE_LOAD, By::Name("fc-rootfs-a")).unwrap();
        let target = Target { start: 0, length: 2048, kind: "snapshot".into(), text: "7:0 7:1 P 8".into() };
        call.add_target(&target).unwrap();
        assert_eq!((call.bytes.len() % 8, call.head_u32(TARGETS)), (0, 1));
        // The spec's `next` is its length: what follows it is another's.
        assert_eq!(u32_at(&call.bytes, HEAD + 20), Some((call.bytes.len() - HEAD) as u32));
        call.make_room(64);
        assert_eq!(call.targets(), [target]);
        assert_eq!(call.device().name, "fc-rootfs-a");
    }

    #[test]
    fn texts_have_bounds_and_no_nul() {
        let named = |name: &str| Call::new("x", STATUS, By::Name(name)).is_ok();
        assert!(named(&"x".repeat(127)) && !named(&"x".repeat(128)) && !named("") && !named("a\0b"));
        assert!(Call::new("x", STATUS, By::Uuid(&"x".repeat(128))).is_ok());
        let mut call = Call::empty("x", TABLE_LOAD);
        let kind = "sixteen-letters-".to_owned();
        assert!(call.add_target(&Target { start: 0, length: 1, kind, text: String::new() }).is_err());
    }

    #[test]
    fn answers_that_are_cut_give_what_is_whole() {
        let mut call = Call::empty("x", TABLE_STATUS);
        call.put(TARGETS, &9u32.to_ne_bytes());
        call.make_room(16);
        assert!(call.targets().is_empty());
    }
}

/// Against the kernel: where there is device-mapper.
#[cfg(test)]
mod lab {
    use super::*;
    use std::process::Command;

    fn dmsetup(arguments: &[&str]) -> String {
        let output = Command::new("dmsetup").args(arguments).output().unwrap();
        assert!(output.status.success(), "dmsetup {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn made_read_and_removed_as_dmsetup_sees_it() {
        let control = Control::open().unwrap();
        let (name, uuid) = ("fc-rootfs-sys-test", "BANGER-SYS-TEST");
        let target = Target { start: 0, length: 2048, kind: "zero".into(), text: String::new() };
        let made = control.create(name, uuid).unwrap();
        assert!(!made.is_active);
        assert_eq!(control.create(name, "BANGER-OTHER").unwrap_err().errno(), Errno::BUSY);
        assert_eq!(control.create("fc-rootfs-other", uuid).unwrap_err().errno(), Errno::BUSY);
        control.load(By::Uuid(uuid), &target).unwrap();
        let live = control.resume(By::Uuid(uuid)).unwrap();
        assert!(live.is_active && !live.is_suspended && live.dev != 0);
        assert_eq!(dmsetup(&["table", name]).trim(), "0 2048 zero");
        assert_eq!(dmsetup(&["info", "-c", "--noheadings", "-o", "uuid", name]).trim(), uuid);
        assert_eq!(control.targets(By::Name(name), Ask::Table).unwrap().unwrap(), [target]);
        assert!(control.names().unwrap().contains(&name.to_owned()));
        assert!(control.kinds().unwrap().contains(&"zero".to_owned()));
        assert_eq!(control.find(By::Uuid(uuid)).unwrap().unwrap().name, name);
        assert!(control.remove(By::Uuid(uuid)).unwrap());
        assert!(!control.remove(By::Uuid(uuid)).unwrap());
        assert_eq!(control.find(By::Name(name)).unwrap(), None);
        assert_eq!(control.targets(By::Name(name), Ask::Status).unwrap(), None);
    }

    #[test]
    fn many_names_are_all_listed() {
        let control = Control::open().unwrap();
        let names: Vec<String> = (0..120).map(|n| format!("fc-rootfs-sys-{n}-{}", "x".repeat(100))).collect();
        for name in &names {
            control.create(name, &format!("BANGER-SYS-{name}")[..128.min(11 + name.len())]).unwrap();
        }
        let listed = control.names();
        for name in &names {
            control.remove(By::Name(name)).unwrap();
        }
        let listed = listed.unwrap();
        assert!(names.iter().all(|name| listed.contains(name)));
    }
}
