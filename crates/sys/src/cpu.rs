//! What the CPU is and can do, by its own word: a jail has no `/proc/cpuinfo`.

/// Its vendor, family, model, stepping and features, as the instruction `CPUID` gives them: the same on each of its cores, and
/// however fast it runs. What it has not is 0. Empty where the CPU has no such instruction.
///
/// Source: AMD64 Architecture Programmer's Manual 3, appendix E; Intel 64 and IA-32 Software Developer's Manual 2A, `CPUID`.
pub fn identity() -> Vec<u8> {
    words().iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(target_arch = "x86_64")]
fn words() -> Vec<u32> {
    use core::arch::x86_64::{__cpuid_count, CpuidResult};
    const EXTENDED: u32 = 0x8000_0000;
    let (basic, extended) = (__cpuid_count(0, 0), __cpuid_count(EXTENDED, 0).eax);
    let ask = |leaf: u32, part: u32| {
        let most = if leaf < EXTENDED { basic.eax } else { extended };
        // Beyond the last one some answer with another's words.
        if leaf <= most { __cpuid_count(leaf, part) } else { CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 } }
    };
    // EBX of leaf 1 tells the core's number, that of leaf 13 what the kernel has turned on.
    let (names, features, more, most) = (ask(1, 0), ask(7, 0), ask(7, 1), ask(7, 2));
    let (states, saves) = (ask(13, 0), ask(13, 1));
    let (extended, power) = (ask(EXTENDED + 1, 0), ask(EXTENDED + 7, 0));
    let (widths, nested, newer) = (ask(EXTENDED + 8, 0), ask(EXTENDED + 10, 0), ask(EXTENDED + 0x21, 0));
    vec![
        basic.ebx,
        basic.edx,
        basic.ecx,
        names.eax,
        names.ecx,
        names.edx,
        features.ebx,
        features.ecx,
        features.edx,
        more.eax,
        more.edx,
        most.edx,
        states.eax,
        states.edx,
        saves.eax,
        saves.ecx,
        extended.ecx,
        extended.edx,
        power.edx,
        widths.eax,
        widths.ebx,
        nested.edx,
        newer.eax,
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn words() -> Vec<u32> {
    Vec::new()
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// A flag of the kernel's for each word that has some, and its bit in it.
    const FLAGS: [(&str, usize, u32); 15] = [
        ("sse4_2", 4, 20),
        ("sse2", 5, 26),
        ("fsgsbase", 6, 0),
        ("rdpid", 7, 22),
        ("arch_capabilities", 8, 29),
        ("avx512_bf16", 9, 5),
        ("avx_vnni_int8", 10, 4),
        ("xsaveopt", 14, 0),
        ("lahf_lm", 16, 0),
        ("lm", 17, 29),
        ("nonstop_tsc", 18, 8),
        ("clzero", 20, 0),
        ("npt", 21, 0),
        ("autoibrs", 22, 8),
        ("fpu", 5, 0),
    ];

    /// Against what the kernel says of it.
    #[test]
    fn it_is_the_cpu_that_the_kernel_knows_on_each_core() {
        let here = super::words();
        let vendor: Vec<u8> = here[..3].iter().flat_map(|word| word.to_le_bytes()).collect();
        let info = std::fs::read_to_string("/proc/cpuinfo").expect("the kernel's word");
        let said = |key: &str| info.lines().filter_map(|line| line.split_once(':')).find(|(k, _)| k.trim() == key);
        assert_eq!(String::from_utf8_lossy(&vendor), said("vendor_id").expect("a vendor").1.trim());
        assert_eq!((here[3] & 0xF).to_string(), said("stepping").expect("a stepping").1.trim());
        let flags: Vec<&str> = said("flags").expect("flags").1.split_whitespace().collect();
        for (name, word, bit) in FLAGS.into_iter().filter(|(name, ..)| flags.contains(name)) {
            assert_ne!(here[word] & 1 << bit, 0, "{name}: {here:x?}");
        }
        // Three that every such CPU has: the table is looked at.
        assert!(["fpu", "sse2", "lm"].iter().all(|name| flags.contains(name)), "{flags:?}");
        // Of the physical ones the kernel leaves out those that encrypted memory takes.
        let widths = format!(", {} bits virtual", here[19] >> 8 & 0xFF);
        assert!(said("address sizes").expect("widths").1.ends_with(&widths), "{widths}");
        let allowed = sched_getaffinity(None).expect("known");
        for core in (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)) {
            let there = std::thread::spawn(move || {
                let mut one = CpuSet::new();
                one.set(core);
                sched_setaffinity(None, &one).expect("allowed");
                super::words()
            });
            assert_eq!(there.join().expect("joined"), here, "{core}");
        }
    }
}
