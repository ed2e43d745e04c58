//! What the CPU is and can do, by its own word: a jail has no `/proc/cpuinfo`.

/// Its vendor, family, model, stepping and features, as the instruction `CPUID` gives them: the same on each of its cores, and
/// however fast it runs. Empty where the CPU has no such instruction.
///
/// Source: AMD64 Architecture Programmer's Manual 3, appendix E; Intel 64 and IA-32 Software Developer's Manual 2A, `CPUID`.
pub fn identity() -> Vec<u32> {
    words()
}

#[cfg(target_arch = "x86_64")]
fn words() -> Vec<u32> {
    use core::arch::x86_64::__cpuid_count;
    const EXTENDED: u32 = 0x8000_0000;
    let (basic, extended) = (__cpuid_count(0, 0), __cpuid_count(EXTENDED, 0).eax);
    let ask = |leaf: u32, part: u32| {
        let most = if leaf < EXTENDED { basic.eax } else { extended };
        // Beyond the last one some answer with another's words.
        (leaf <= most).then(|| __cpuid_count(leaf, part))
    };
    let mut words = vec![basic.ebx, basic.edx, basic.ecx];
    // EBX of leaf 1 tells the core's number, that of leaf 13 what the kernel has turned on.
    words.extend(ask(1, 0).into_iter().flat_map(|said| [said.eax, said.ecx, said.edx]));
    words.extend(ask(7, 0).into_iter().flat_map(|said| [said.ebx, said.ecx, said.edx]));
    words.extend(ask(7, 1).map(|said| said.eax));
    words.extend(ask(13, 1).map(|said| said.eax));
    words.extend(ask(EXTENDED + 1, 0).into_iter().flat_map(|said| [said.ecx, said.edx]));
    words.extend(ask(EXTENDED + 7, 0).map(|said| said.edx));
    words.extend(ask(EXTENDED + 8, 0).map(|said| said.ebx));
    words
}

#[cfg(not(target_arch = "x86_64"))]
fn words() -> Vec<u32> {
    Vec::new()
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    /// Against what the kernel says of it.
    #[test]
    fn it_is_the_cpu_that_the_kernel_knows_on_each_core() {
        let here = super::identity();
        let vendor: Vec<u8> = here[..3].iter().flat_map(|word| word.to_le_bytes()).collect();
        let info = std::fs::read_to_string("/proc/cpuinfo").expect("the kernel's word");
        let said = |key: &str| info.lines().filter_map(|line| line.split_once(':')).find(|(k, _)| k.trim() == key);
        assert_eq!(String::from_utf8_lossy(&vendor), said("vendor_id").expect("a vendor").1.trim());
        assert_eq!((here[3] & 0xF).to_string(), said("stepping").expect("a stepping").1.trim());
        let others: Vec<_> = (0..16).map(|_| std::thread::spawn(super::identity)).collect();
        assert!(others.into_iter().all(|other| other.join().expect("joined") == here));
    }
}
