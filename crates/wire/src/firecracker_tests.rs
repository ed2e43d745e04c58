//! Tests of Firecracker's bodies: what is accepted, what is refused, and what is written.

use super::*;

fn read<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn a_configuration_file_is_read_and_written_alike() {
    let json = concat!(
        r#"{"boot-source":{"kernel_image_path":"/k","initrd_path":"/i","boot_args":"console=ttyS0"},"#,
        r#""drives":[{"drive_id":"rootfs","is_root_device":true,"cache_type":"Writeback","is_read_only":false,"#,
        r#""path_on_host":"/r,readonly=on"}],"#,
        r#""machine-config":{"vcpu_count":2,"mem_size_mib":256,"smt":false,"track_dirty_pages":false,"huge_pages":"None"},"#,
        r#""network-interfaces":[{"iface_id":"eth0","host_dev_name":"tap-fc-1","guest_mac":"02:fc:00:00:00:01"}],"#,
        r#""vsock":{"guest_cid":3,"uds_path":"/v"},"logger":{"log_path":"/l","level":"Debug"},"#,
        r#""metrics":{"metrics_path":"/m"}}"#
    );
    let config: VmConfig = read(json).expect("a good file");
    assert_eq!(serde_json::to_string(&config).expect("written"), json);
}

#[test]
fn nulls_of_firecrackers_own_answers_are_accepted() {
    let config: VmConfig = read(concat!(
        r#"{"balloon":null,"drives":[],"boot-source":{"kernel_image_path":"/k","initrd_path":null,"boot_args":null},"#,
        r#""cpu-config":null,"logger":null,"machine-config":null,"metrics":null,"mmds-config":null,"#,
        r#""network-interfaces":[],"vsock":null,"entropy":null,"pmem":[],"memory-hotplug":null}"#
    ))
    .expect("nulls");
    assert_eq!(config.drives, []);
    let refused = read::<VmConfig>(r#"{"boot-source":{"kernel_image_path":"/k"},"cpu-config":{}}"#);
    assert!(refused.expect_err("a CPU's configuration").contains("not supported"));
}

#[test]
fn unknown_and_repeated_fields_are_refused() {
    assert!(read::<BootSource>(r#"{"kernel_image_path":"/k","append":"x"}"#).is_err());
    assert!(read::<BootSource>(r#"{"kernel_image_path":"/k","kernel_image_path":"/j"}"#).is_err());
    assert!(read::<InstanceAction>(r#"{"action_type":"InstanceStart","x":1}"#).is_err());
    assert!(read::<InstanceAction>(r#"{"action_type":"InstanceHalt"}"#).is_err());
    assert!(read::<Vm>(r#"{"state":"Running"}"#).is_err());
}

#[test]
fn texts_are_checked_whole() {
    for good in ["a", "rootfs_2", &"x".repeat(64)] {
        assert!(ResourceId::new(good).is_ok(), "{good}");
    }
    for bad in ["", "a,b", "a-b", "a b", "é", "a\n", "../x", &"x".repeat(65)] {
        assert!(ResourceId::new(bad).is_err(), "{bad:?}");
    }
    for bad in ["", "a_b", "a/b", "vm\n"] {
        assert!(InstanceId::new(bad).is_err(), "{bad:?}");
    }
    for bad in ["", "tap%d", "a/b", "a b", "..", "tap0,script=/x\n", "sixteen-letters-"] {
        assert!(HostDevName::new(bad).is_err(), "{bad:?}");
    }
    for bad in
        ["", "02:fc:00:00:00", "02:fc:00:00:00:0g", "01:00:5e:00:00:01", "02-fc-00-00-00-01", "+2:fc:00:00:00:01"]
    {
        assert!(MacAddr::new(bad).is_err(), "{bad:?}");
    }
    for bad in ["a\nb", "a\0", "é", &"x".repeat(2048)] {
        assert!(BootArgs::new(bad).is_err(), "{bad:?}");
    }
    for bad in ["", "a\0b", &"x".repeat(4096)] {
        assert!(HostPath::new(bad).is_err(), "{bad:?}");
    }
    for bad in ["", "x", "6ea 1", "a rw init=/x"] {
        assert!(PartUuid::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn numbers_have_bounds() {
    for bad in ["2", "-3", "4294967295", "4294967296", "3.5", "\"3\""] {
        assert!(read::<Vsock>(&format!(r#"{{"guest_cid":{bad},"uds_path":"/v"}}"#)).is_err(), "{bad}");
    }
    assert!(read::<MachineConfig>(r#"{"vcpu_count":256,"mem_size_mib":1}"#).is_err());
    assert!(read::<MachineConfig>(r#"{"vcpu_count":1,"mem_size_mib":-1}"#).is_err());
}

#[test]
fn levels_are_read_without_regard_to_case() {
    for (text, level) in [("WARNING", LogLevel::Warn), ("warn", LogLevel::Warn), ("Trace", LogLevel::Trace)] {
        assert_eq!(read::<Logger>(&format!(r#"{{"level":"{text}"}}"#)).expect(text).level, Some(level));
    }
    assert!(read::<Logger>(r#"{"level":"loud"}"#).is_err());
}

#[test]
fn states_have_firecrackers_names() {
    assert_eq!(serde_json::to_string(&VmState::NotStarted).expect("written"), r#""Not started""#);
}

#[test]
fn a_limiter_of_nothing_limits_nothing() {
    let limiter: RateLimiter = read(r#"{"bandwidth":{"size":0,"refill_time":0}}"#).expect("empty bucket");
    assert!(!limiter.limits());
    let limiter: RateLimiter = read(r#"{"ops":{"size":10,"refill_time":100}}"#).expect("a bucket");
    assert!(limiter.limits());
}

#[test]
fn a_limit_is_changed_by_what_is_told() {
    let limiter: RateLimiter =
        read(r#"{"bandwidth":{"size":5,"refill_time":1},"ops":{"size":7,"refill_time":1}}"#).expect("a limit");
    let update: RateLimiter = read(r#"{"ops":{"size":0,"refill_time":0}}"#).expect("an update");
    let now = limiter.updated(update);
    assert_eq!((now.bandwidth, now.ops.map(|ops| ops.limits())), (limiter.bandwidth, Some(false)));
}

#[test]
fn the_memory_of_a_load_is_told_in_one_way() {
    let told =
        |more: &str| read::<SnapshotLoad>(&format!(r#"{{"snapshot_path":"/s"{more}}}"#)).expect("a load").memory();
    let old = told(r#","mem_file_path":"/m""#).expect("the old way");
    let new = told(r#","mem_backend":{"backend_type":"File","backend_path":"/m"}"#).expect("the new way");
    assert_eq!(old, new);
    assert!(told("").expect_err("neither").starts_with("missing field"));
    let both = r#","mem_file_path":"/m","mem_backend":{"backend_type":"File","backend_path":"/m"}"#;
    assert!(told(both).expect_err("both").starts_with("too many fields"));
}
