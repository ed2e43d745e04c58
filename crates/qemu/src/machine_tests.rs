//! Tests of QEMU's arguments: what a client says stays where it belongs.

use super::*;

const KVM: Accelerator = Accelerator::Kvm { tsc_khz: None };

fn machine<'a>(command_line: &'a str, mac: &'a MacAddr) -> Machine<'a> {
    Machine {
        accelerator: Accelerator::Tcg { tsc_khz: Some(2_600_000) },
        vcpus: 2,
        smt: false,
        memory_mib: 256,
        memory: "/proc/self/fd/9".to_owned(),
        template: false,
        begin: Begin::Boot { kernel: "/proc/self/fd/10".to_owned(), initrd: None, command_line },
        disks: vec![
            DiskArgs { fd: 12, layer: None, backing: Backing::File, read_only: true, cache: CacheType::Writeback },
            DiskArgs { fd: 13, layer: None, backing: Backing::BlockDevice, read_only: false, cache: CacheType::Unsafe },
        ],
        nics: vec![NicArgs { fd: 14, mac, mtu: Some(1400) }],
        balloon: None,
        entropy: None,
        console: None,
        qmp: 15,
        relay: Some(16),
    }
}

/// The values of an option, in order.
fn values<'a>(args: &'a [String], option: &str) -> Vec<&'a str> {
    args.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

#[test]
fn the_machine_is_the_one_that_was_measured() {
    let mac = MacAddr::new("02:fc:00:00:00:01").expect("a MAC");
    let args = arguments(&machine("console=ttyS0", &mac));
    assert_eq!(values(&args, "-M"), ["microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,memory-backend=ram"]);
    assert_eq!(values(&args, "-accel"), ["tcg,thread=multi"]);
    assert_eq!(values(&args, "-cpu"), ["max"]);
    assert_eq!(values(&args, "-smp"), ["2,sockets=1,cores=2,threads=1"]);
    assert!(values(&args, "-sandbox")[0].starts_with("on,"));
    assert_eq!(values(&args, "-kernel"), ["/proc/self/fd/10"]);
    assert_eq!(values(&args, "-netdev"), ["tap,id=net0,fd=14,vhost=off"]);
    assert!(values(&args, "-device").contains(&"virtio-net-device,netdev=net0,mac=02:fc:00:00:00:01,host_mtu=1400"));
    for option in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        assert!(args.iter().any(|arg| arg == option), "{option}");
    }
    let kvm = Machine { accelerator: KVM, smt: true, ..machine("x", &mac) };
    let args = arguments(&kvm);
    assert_eq!((values(&args, "-accel"), values(&args, "-cpu")), (vec!["kvm"], vec!["host"]));
    assert_eq!(values(&args, "-smp"), ["2,sockets=1,cores=1,threads=2"]);
}

#[test]
fn a_drive_is_raw_and_its_rights_are_what_was_asked() {
    let mac = MacAddr::new("02:fc:00:00:00:01").expect("a MAC");
    let args = arguments(&machine("x", &mac));
    assert_eq!(values(&args, "-add-fd"), ["fd=12,set=0", "fd=13,set=1"]);
    let drives: Vec<serde_json::Value> =
        values(&args, "-blockdev").iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
    for (drive, (driver, read_only, no_flush)) in
        drives.iter().zip([("file", true, false), ("host_device", false, true)])
    {
        assert_eq!(drive["driver"], "raw");
        assert_eq!(drive["file"]["driver"], driver);
        assert_eq!((&drive["read-only"], &drive["file"]["read-only"]), (&read_only.into(), &read_only.into()));
        assert_eq!(drive["cache"]["no-flush"], no_flush);
    }
}

/// Kernel arguments that look like options stay one argument, the only place that holds anything of the client's.
#[test]
fn kernel_arguments_make_no_options() {
    let mac = MacAddr::new("02:fc:00:00:00:01").expect("a MAC");
    let plain = arguments(&machine("quiet", &mac));
    for hostile in ["-drive file=/etc/shadow", "x,readonly=off -monitor stdio", "\" -qmp tcp::1 \"", "${HOME} `id`"] {
        let args = arguments(&machine(hostile, &mac));
        assert_eq!(args.len(), plain.len());
        let differ: Vec<_> = args.iter().zip(&plain).filter(|(a, b)| a != b).collect();
        assert_eq!(differ, [(&hostile.to_owned(), &"quiet".to_owned())]);
        assert_eq!(values(&args, "-append"), [hostile]);
    }
}

#[test]
fn the_command_line_gets_what_the_machine_needs() {
    let tcg = Accelerator::Tcg { tsc_khz: Some(2_596_146) };
    let args = |text: &str| BootArgs::new(text).expect("good arguments");
    let line = |text: &str, root, accelerator| command_line(Some(&args(text)), root, accelerator).expect("a line");
    assert_eq!(line(" quiet ", None, tcg), "quiet tsc_early_khz=2596146 tsc=reliable");
    assert_eq!(line("quiet", None, KVM), "quiet");
    assert_eq!(line("", Some((None, true)), KVM), "root=/dev/vda ro");
    assert_eq!(line("a", Some((Some("6ea1-02"), false)), KVM), "a root=PARTUUID=6ea1-02 rw");
    assert_eq!(line("tsc_early_khz=5", None, tcg), "tsc_early_khz=5 tsc=reliable");
    assert_eq!(line("tsc=unstable", None, tcg), "tsc=unstable tsc_early_khz=2596146");
    assert_eq!(
        line("a -- b c", Some((None, false)), tcg),
        "a root=/dev/vda rw tsc_early_khz=2596146 tsc=reliable -- b c"
    );
    let quoted = r#"run="x -- y" -- b"#;
    assert_eq!(line(quoted, Some((None, false)), KVM), r#"run="x -- y" root=/dev/vda rw -- b"#);
    assert!(command_line(None, None, tcg).expect("a line").starts_with("reboot=k panic=1 nomodule"));
    assert!(command_line(Some(&args(&"x".repeat(2047))), None, KVM).is_ok());
    assert!(command_line(Some(&args(&"x".repeat(2040))), None, tcg).is_err());
}

#[test]
fn a_load_has_the_same_machine_and_no_kernel() {
    let mac = MacAddr::new("02:fc:00:00:00:01").expect("a MAC");
    let boot = arguments(&machine("quiet", &mac));
    let load = arguments(&Machine { begin: Begin::Load, template: true, ..machine("quiet", &mac) });
    assert_eq!(
        values(&boot, "-object"),
        ["memory-backend-file,id=ram,size=256M,mem-path=/proc/self/fd/9,share=on,align=2M"]
    );
    assert_eq!(
        values(&load, "-object"),
        ["memory-backend-file,id=ram,size=256M,mem-path=/proc/self/fd/9,share=off,align=2M"]
    );
    assert_eq!(values(&load, "-incoming"), ["defer"]);
    assert_eq!(values(&load, "-global"), ["migration.announce-rounds=0"]);
    for option in ["-M", "-cpu", "-smp", "-device", "-blockdev", "-netdev", "-chardev"] {
        assert_eq!(values(&boot, option), values(&load, option));
    }
    assert!(!load.iter().any(|word| word == "-kernel" || word == "-initrd" || word == "-append"));
}

#[test]
fn devices_are_made_as_they_were_asked_for() {
    let mac = MacAddr::new("02:fc:00:00:00:01").expect("a MAC");
    let read = |text| serde_json::from_str(text).expect("a body");
    let balloon = serde_json::from_str(r#"{"amount_mib":1,"deflate_on_oom":true}"#).expect("a balloon");
    let entropy: Entropy = read(r#"{"rate_limiter":{"bandwidth":{"size":64,"refill_time":500}}}"#);
    let args =
        arguments(&Machine { balloon: Some(balloon), entropy: Some(entropy), console: Some(20), ..machine("x", &mac) });
    let devices = values(&args, "-device");
    assert!(devices.contains(&"virtio-balloon-device,id=balloon,deflate-on-oom=on,free-page-reporting=off"));
    assert!(devices.contains(&"virtio-rng-device,rng=rng,max-bytes=64,period=500"), "{devices:?}");
    assert!(values(&args, "-chardev").contains(&"socket,id=console,fd=20"));
}

#[test]
fn a_layer_is_told_what_lies_below_it() {
    let mac = MacAddr::new("02:fc:00:00:00:01").expect("a MAC");
    let layered = DiskArgs {
        fd: 12,
        layer: Some(17),
        backing: Backing::BlockDevice,
        read_only: false,
        cache: CacheType::Writeback,
    };
    let args = arguments(&Machine { disks: vec![layered], ..machine("x", &mac) });
    assert_eq!(values(&args, "-add-fd"), ["fd=17,set=0", "fd=12,set=100"]);
    let drive: serde_json::Value = serde_json::from_str(values(&args, "-blockdev")[0]).expect("JSON");
    assert_eq!((&drive["driver"], &drive["node-name"]), (&"qcow2".into(), &"disk0".into()));
    assert_eq!((&drive["file"]["driver"], &drive["file"]["filename"]), (&"file".into(), &"/dev/fdset/0".into()));
    let base = &drive["backing"];
    assert_eq!((&base["driver"], &base["read-only"]), (&"raw".into(), &true.into()));
    assert_eq!(base["file"]["driver"], "host_device");
    assert_eq!((&base["file"]["filename"], &base["file"]["read-only"]), (&"/dev/fdset/100".into(), &true.into()));
}

#[test]
fn emulation_can_be_asked_for() {
    let asked = |text: &str| is_to_be_emulated(Some(&BootArgs::new(text).expect("arguments")));
    assert!(asked("console=ttyS0 banger.accel=emulation") && asked("banger.accel=emulation -- x"));
    for other in ["quiet", "banger.accel=kvm", "xbanger.accel=emulation", "a -- banger.accel=emulation"] {
        assert!(!asked(other), "{other}");
    }
    assert!(!is_to_be_emulated(None));
}
