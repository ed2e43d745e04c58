//! `banger-qemu` with a distribution's kernel: `BANGER_TEST_KERNEL` names an ELF file or a bzImage, as the test script
//! makes it of Debian's package. Without it these tests say so and fail.

mod support;

use support::Vmm;

#[test]
fn a_debian_kernel_starts_and_its_end_is_ours() {
    let kernel = std::env::var("BANGER_TEST_KERNEL").expect("BANGER_TEST_KERNEL names a kernel for this test");
    let mut vmm = Vmm::start(&[]);
    let boot = serde_json::json!({
        "kernel_image_path": kernel,
        "boot_args": "console=ttyS0 earlyprintk=ttyS0 panic=-1 reboot=k cryptomgr.notests",
    });
    vmm.done("PUT", "/boot-source", &boot.to_string());
    vmm.done("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":256}"#);
    vmm.done("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#);
    vmm.wait_for_word("Linux version");
    // Without a root it panics, resets, and so ends.
    vmm.wait_for_word("Kernel panic");
    assert!(vmm.ended().success());
}
