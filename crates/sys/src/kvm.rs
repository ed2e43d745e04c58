//! Whether `/dev/kvm` runs guests: it may be there and run none, so one is run, of four instructions.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

// From linux/kvm.h: `_IO(0xAE, n)`, `_IOW(0xAE, n, size)`, `_IOR(0xAE, n, size)`.
const KVM_GET_API_VERSION: libc::c_ulong = 0xAE00;
const KVM_CREATE_VM: libc::c_ulong = 0xAE01;
const KVM_GET_VCPU_MMAP_SIZE: libc::c_ulong = 0xAE04;
const KVM_CREATE_VCPU: libc::c_ulong = 0xAE41;
const KVM_SET_TSS_ADDR: libc::c_ulong = 0xAE47;
const KVM_SET_USER_MEMORY_REGION: libc::c_ulong = 0x4020_AE46;
const KVM_RUN: libc::c_ulong = 0xAE80;
const KVM_SET_REGS: libc::c_ulong = 0x4090_AE82;
const KVM_GET_SREGS: libc::c_ulong = 0x8138_AE83;
const KVM_SET_SREGS: libc::c_ulong = 0x4138_AE84;
const API_VERSION: libc::c_int = 12;
const EXIT_HLT: u32 = 5;
/// `exit_reason` in `struct kvm_run`.
const EXIT_REASON_AT: usize = 8;
const SREGS_LEN: usize = 312;
const REGS_LEN: usize = 144;
// Words in `struct kvm_sregs` and in `struct kvm_regs`.
const CS_AT: usize = 0;
const DATA_SEGMENTS_AT: [usize; 5] = [3, 6, 9, 12, 15];
const CR0_AT: usize = 28;
const CR3_AT: usize = 30;
const CR4_AT: usize = 31;
const EFER_AT: usize = 33;
const RIP_AT: usize = 16;
const RFLAGS_AT: usize = 17;
/// Type 11, and s, l, g set: 64-bit code. Type 3, and db, s, g set: data.
const CODE_SEGMENT: (u64, u64) = (0xB, 1 << 16 | 1 << 24 | 1 << 32);
const DATA_SEGMENT: (u64, u64) = (0x3, 1 << 8 | 1 << 16 | 1 << 32);

/// Where kernels are linked to run; what only seems to be a CPU's virtualisation can't give a guest this address.
const KERNEL_ADDRESS: u64 = 0xFFFF_FFFF_8000_0000;
/// The guest's memory: three tables that map 2 MiB of it at the kernel's address, a word, the code.
const MEMORY: usize = 0x20_0000;
/// Each table's place, its one entry's number, and that entry: present, writable, and for the last a large page.
const TABLES: [(usize, usize, u64); 3] = [(0x1000, 511, 0x2003), (0x2000, 510, 0x3003), (0x3000, 0, 0x83)];
const WORD_AT: usize = 0x4000;
const WORD: u32 = 0x1234_5678;
const CODE_AT: usize = 0x5000;
/// `fld1; fstp st0; mov dword [0xffffffff80004000], 0x12345678; hlt`. The first two are in no CPU's way, and unknown to
/// KVM's instruction emulator: without a CPU that executes guests, all else may still be played to them.
const CODE: [u8; 16] = [0xD9, 0xE8, 0xDD, 0xD8, 0xC7, 0x04, 0x25, 0x00, 0x40, 0x00, 0x80, 0x78, 0x56, 0x34, 0x12, 0xF4];

/// A guest that runs at all stops within milliseconds. On a machine that has much else to do, and below another hypervisor's
/// nested virtualisation, that took more than a second: who then has its VMs emulated makes all of them ten times slower.
const LONGEST: Duration = Duration::from_secs(10);

/// `struct kvm_userspace_memory_region`.
#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
}

const _: () = assert!(size_of::<MemoryRegion>() == 32);

/// Runs a guest of four instructions in long mode, where a kernel begins, and says why that did not work where it
/// didn't.
///
/// # Errors
/// The call that failed; a guest that left with another reason than its `hlt`; one that did not leave in 10 seconds.
pub fn runs_guests() -> io::Result<()> {
    let (sender, receiver) = std::sync::mpsc::channel();
    // On a thread of its own: a broken KVM must not hold up its caller. One that hangs is left behind.
    std::thread::Builder::new().name("kvm-trial".into()).spawn(move || sender.send(trial()))?;
    receiver.recv_timeout(LONGEST).unwrap_or_else(|_| {
        let why = format!("the guest did not stop within {} s", LONGEST.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    })
}

fn trial() -> io::Result<()> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    let version = ioctl_number("KVM_GET_API_VERSION", &kvm, KVM_GET_API_VERSION, 0)?;
    if version != API_VERSION {
        return Err(io::Error::other(format!("KVM_GET_API_VERSION: {version}, not {API_VERSION}")));
    }
    let vm = ioctl_fd("KVM_CREATE_VM", &kvm, KVM_CREATE_VM)?;
    // Intel CPUs without "unrestricted guest" need it for real mode; others have no use for it, so its failure is none.
    let _ = ioctl_number("KVM_SET_TSS_ADDR", &vm, KVM_SET_TSS_ADDR, 0xFFFB_D000);
    let memory = Mapping::anonymous(MEMORY)?;
    for (table, entry, value) in TABLES {
        memory.write(table + entry * 8, &value.to_le_bytes());
    }
    memory.write(CODE_AT, &CODE);
    let region = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory.address as u64,
    };
    ioctl_ref("KVM_SET_USER_MEMORY_REGION", &vm, KVM_SET_USER_MEMORY_REGION, ptr::from_ref(&region).cast())?;
    let vcpu = ioctl_fd("KVM_CREATE_VCPU", &vm, KVM_CREATE_VCPU)?;
    let run_len = ioctl_number("KVM_GET_VCPU_MMAP_SIZE", &kvm, KVM_GET_VCPU_MMAP_SIZE, 0)?;
    let run_len = usize::try_from(run_len).unwrap_or(0);
    if run_len < EXIT_REASON_AT + 4 {
        return Err(io::Error::other("KVM_GET_VCPU_MMAP_SIZE: too small"));
    }
    let run = Mapping::of(&vcpu, run_len)?;
    start_in_long_mode(&vcpu)?;
    ioctl_number("KVM_RUN", &vcpu, KVM_RUN, 0)?;
    match run.read_u32(EXIT_REASON_AT) {
        EXIT_HLT if memory.read_u32(WORD_AT) == WORD => Ok(()),
        other => Err(io::Error::other(format!("KVM_RUN: the guest left with reason {other}, not {EXIT_HLT} (hlt)"))),
    }
}

/// Puts the CPU where a kernel's first 64-bit instruction finds it: long mode, paging, a kernel's address.
fn start_in_long_mode(vcpu: &OwnedFd) -> io::Result<()> {
    let mut sregs = [0u64; SREGS_LEN / 8];
    ioctl_ref("KVM_GET_SREGS", vcpu, KVM_GET_SREGS, sregs.as_mut_ptr().cast())?;
    segment(&mut sregs[CS_AT..], 0x08, CODE_SEGMENT);
    for at in DATA_SEGMENTS_AT {
        segment(&mut sregs[at..], 0x10, DATA_SEGMENT);
    }
    sregs[CR0_AT] = 0x8000_0011; // PG, ET, PE
    sregs[CR3_AT] = TABLES[0].0 as u64;
    sregs[CR4_AT] = 0x20; // PAE
    sregs[EFER_AT] = 0x500; // LMA, LME
    ioctl_ref("KVM_SET_SREGS", vcpu, KVM_SET_SREGS, sregs.as_ptr().cast())?;
    let mut regs = [0u64; REGS_LEN / 8];
    regs[RIP_AT] = KERNEL_ADDRESS + CODE_AT as u64;
    regs[RFLAGS_AT] = 2; // the bit that is always set
    ioctl_ref("KVM_SET_REGS", vcpu, KVM_SET_REGS, regs.as_ptr().cast())
}

/// `struct kvm_segment`: base u64; limit u32, selector u16, type u8, present u8; dpl, db, s, l, g, avl, unusable, pad.
fn segment(words: &mut [u64], selector: u64, (kind, flags): (u64, u64)) {
    words[0] = 0;
    words[1] = 0xFFFF_FFFF | selector << 32 | kind << 48 | 1 << 56;
    words[2] = flags;
}

fn named(call: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call}: {error}"))
}

/// An ioctl that takes a number and answers with one.
fn ioctl_number(
    call: &str,
    file: &impl AsRawFd,
    request: libc::c_ulong,
    arg: libc::c_ulong,
) -> io::Result<libc::c_int> {
    // SAFETY: only requests whose argument is a number, no address, are given to this function.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request, arg) };
    if answer < 0 { Err(named(call, &io::Error::last_os_error())) } else { Ok(answer) }
}

/// An ioctl that answers with a new descriptor.
fn ioctl_fd(call: &str, file: &impl AsRawFd, request: libc::c_ulong) -> io::Result<OwnedFd> {
    let fd = ioctl_number(call, file, request, 0)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An ioctl whose argument is the address of what it reads or writes; `arg` has to be as long as `request` says.
fn ioctl_ref(call: &str, file: &impl AsRawFd, request: libc::c_ulong, arg: *const libc::c_void) -> io::Result<()> {
    // SAFETY: the three callers pass live memory of the size that is encoded in the request, mutable for KVM_GET_SREGS.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request, arg) };
    if answer < 0 { Err(named(call, &io::Error::last_os_error())) } else { Ok(()) }
}

/// A piece of mapped memory, unmapped at the end.
struct Mapping {
    address: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    fn anonymous(len: usize) -> io::Result<Self> {
        Self::new(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    fn of(fd: &OwnedFd, len: usize) -> io::Result<Self> {
        Self::new(len, libc::MAP_SHARED, fd.as_raw_fd())
    }

    fn new(len: usize, flags: libc::c_int, fd: libc::c_int) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice changes no memory that exists.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(named("mmap", &io::Error::last_os_error()));
        }
        Ok(Self { address, len })
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        let target = self.address.cast::<u8>().wrapping_add(at);
        // SAFETY: the target is inside the mapping, which is writable and lives as long as `self`, and no slice is.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    fn read_u32(&self, at: usize) -> u32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len);
        let source = self.address.cast::<u32>().wrapping_add(at / 4);
        // SAFETY: aligned and inside the mapping, which is readable and lives as long as `self`.
        unsafe { source.read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value is the mapping's only owner, and hands out no reference into it.
        unsafe { libc::munmap(self.address, self.len) };
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn answers_within_its_time_whatever_this_machine_has() {
        let start = std::time::Instant::now();
        if let Err(error) = super::runs_guests() {
            assert!(!error.to_string().is_empty());
        }
        assert!(start.elapsed() < super::LONGEST + std::time::Duration::from_secs(5));
    }
}
