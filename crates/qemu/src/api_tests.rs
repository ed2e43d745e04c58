//! Tests of the API's requests: which are there, and what is said about the rest.

use super::*;

fn refused(method: Method, path: &str, body: &str) -> String {
    parse(method, path, body.as_bytes()).expect_err(&format!("{method:?} {path} {body}")).to_string()
}

#[test]
fn every_request_of_firecrackers_api_is_known() {
    for (method, path, body) in [
        (Method::Get, "/", ""),
        (Method::Get, "/version", ""),
        (Method::Get, "/machine-config", ""),
        (Method::Get, "/vm/config", ""),
        (Method::Put, "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#),
        (Method::Patch, "/machine-config", r#"{"vcpu_count":1}"#),
        (Method::Put, "/boot-source", r#"{"kernel_image_path":"/k"}"#),
        (Method::Put, "/drives/a", r#"{"drive_id":"a","is_root_device":true,"path_on_host":"/d"}"#),
        (Method::Put, "/network-interfaces/eth0", r#"{"iface_id":"eth0","host_dev_name":"tap0"}"#),
        (Method::Put, "/vsock", r#"{"guest_cid":3,"uds_path":"/v"}"#),
        (Method::Put, "/logger", r#"{"log_path":"/l"}"#),
        (Method::Put, "/metrics", r#"{"metrics_path":"/m"}"#),
        (Method::Put, "/actions", r#"{"action_type":"InstanceStart"}"#),
        (Method::Put, "/actions", r#"{"action_type":"FlushMetrics"}"#),
        (Method::Put, "/actions", r#"{"action_type":"SendCtrlAltDel"}"#),
        (Method::Patch, "/vm", r#"{"state":"Paused"}"#),
        (Method::Patch, "/vm", r#"{"state":"Resumed"}"#),
        (Method::Get, "/balloon", ""),
        (Method::Get, "/balloon/statistics", ""),
        (Method::Put, "/balloon", r#"{"amount_mib":1,"deflate_on_oom":true}"#),
        (Method::Patch, "/balloon", r#"{"amount_mib":1}"#),
        (Method::Patch, "/balloon/statistics", r#"{"stats_polling_interval_s":1}"#),
        (Method::Put, "/entropy", "{}"),
        (Method::Put, "/serial", r#"{"serial_out_path":"/s"}"#),
        (Method::Patch, "/drives/a", r#"{"drive_id":"a"}"#),
        (Method::Patch, "/network-interfaces/a", r#"{"iface_id":"a"}"#),
        (Method::Delete, "/drives/a", ""),
        (Method::Put, "/snapshot/create", r#"{"snapshot_path":"/s","mem_file_path":"/m"}"#),
        (Method::Put, "/snapshot/load", r#"{"snapshot_path":"/s","mem_file_path":"/m"}"#),
    ] {
        let action = parse(method, path, body.as_bytes());
        assert!(!matches!(action, Err(_) | Ok(Action::Foreign(_))), "{method:?} {path}: {action:?}");
    }
    for (method, path, body) in [
        (Method::Get, "/balloon/hinting/status", ""),
        (Method::Patch, "/balloon/hinting/start", ""),
        (Method::Patch, "/balloon/hinting/stop", ""),
        (Method::Get, "/mmds", ""),
        (Method::Put, "/mmds", "{}"),
        (Method::Patch, "/mmds", "{}"),
        (Method::Put, "/mmds/config", "{}"),
        (Method::Put, "/cpu-config", "{}"),
        (Method::Put, "/pmem/a", "{}"),
        (Method::Patch, "/pmem/a", "{}"),
        (Method::Get, "/hotplug/memory", ""),
        (Method::Put, "/hotplug/memory", "{}"),
        (Method::Patch, "/hotplug/memory", "{}"),
    ] {
        let action = parse(method, path, body.as_bytes());
        assert!(matches!(action, Ok(Action::Foreign(_))), "{method:?} {path}: {action:?}");
    }
}

#[test]
fn the_words_are_firecrackers() {
    assert_eq!(refused(Method::Get, "/nothing", ""), "Invalid request method and/or path: GET nothing.");
    assert_eq!(refused(Method::Delete, "/vm", ""), "Invalid request method and/or path: DELETE vm.");
    assert_eq!(refused(Method::Get, "/", "x"), "GET request cannot have a body.");
    assert_eq!(refused(Method::Put, "/vsock", ""), "Empty PUT request.");
    for path in ["/vm", "/balloon", "/balloon/statistics"] {
        assert_eq!(refused(Method::Patch, path, ""), "Empty PATCH request.");
    }
    assert_eq!(refused(Method::Put, "/drives", "{}"), "The ID cannot be empty.");
    let id = "API Resource IDs can only contain alphanumeric characters and underscores.";
    for path in ["/drives/a-b", "/drives/a,b", "/drives/%2e%2e", "/network-interfaces/é"] {
        assert_eq!(refused(Method::Put, path, "{}"), id);
    }
    let other = r#"{"drive_id":"b","is_root_device":true,"path_on_host":"/d"}"#;
    assert_eq!(refused(Method::Put, "/drives/a", other), "The id from the path does not match the id from the body!");
    let unknown = refused(Method::Put, "/boot-source", r#"{"kernel_image_path":"/k","append":"x"}"#);
    assert!(unknown.starts_with("An error occurred when deserializing the json body of a request: unknown field"));
}

#[test]
fn the_memory_of_a_load_is_told_once() {
    let said = refused(Method::Put, "/snapshot/load", r#"{"snapshot_path":"/s"}"#);
    assert!(said.contains("missing field: either `mem_backend` or `mem_file_path` is required"), "{said}");
}

#[test]
fn only_one_object_is_a_body() {
    for body in [r#"["/k",null,null]"#, "{", r#"{"kernel_image_path":"/k"} x"#, "null", "\u{0}", "[[[["] {
        let said = refused(Method::Put, "/boot-source", body);
        assert!(said.starts_with("An error occurred when deserializing"), "{body}: {said}");
    }
    let deep = "[".repeat(50_000);
    assert!(parse(Method::Put, "/boot-source", format!(r#"{{"a":{deep}"#).as_bytes()).is_err());
}

#[test]
fn paths_with_more_parts_are_none() {
    for path in ["/drives/a/b", "/vm/config/x", "/version/x", "/machine-config/x", "//version/x/y"] {
        assert!(parse(Method::Get, path, b"").is_err(), "{path}");
    }
}
