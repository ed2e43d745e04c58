//! Fresh randomness for a kernel that was restored from a saved state: it would otherwise give the same random numbers
//! as every other that was restored from it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOW('R', 3, int[2])` of `linux/random.h`: adds bytes to the pool and believes them to be random.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `_IO('R', 7)`: makes the next random numbers from the pool as it is now.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// The kernel's `struct rand_pool_info` with its bytes behind it.
#[repr(C)]
struct PoolInfo {
    bits: libc::c_int,
    length: libc::c_int,
    bytes: [u8; 64],
}

/// Gives the kernel 64 random bytes and lets all random numbers from now on depend on them.
///
/// # Errors
/// EPERM without `CAP_SYS_ADMIN`.
pub fn reseed(bytes: [u8; 64]) -> io::Result<()> {
    let device = File::options().write(true).open("/dev/urandom")?;
    let info = PoolInfo { bits: 512, length: 64, bytes };
    // SAFETY: the kernel reads the head and as many bytes behind it as `length` says, which is what the struct has.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: this request has no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) })
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_takes_them() {
        super::reseed([7; 64]).expect("as root");
    }
}
