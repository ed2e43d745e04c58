//! References and platforms; pulls are in tests/oci.rs.

use super::*;

#[test]
fn references_are_read_as_others_read_them() {
    let hub = "registry-1.docker.io";
    let digest = format!("sha256:{}", "0a".repeat(32));
    for (text, host, name, version, short) in [
        ("debian", hub, "library/debian", "latest", "debian"),
        ("debian:12", hub, "library/debian", "12", "debian-12"),
        ("docker.io/a/b:V1", hub, "a/b", "V1", "b-v1"),
        ("quay.io/a/b/c", "quay.io", "a/b/c", "latest", "c"),
        ("localhost/x", "localhost", "x", "latest", "x"),
        ("h:5000/x:t", "h:5000", "x", "t", "x-t"),
        (&format!("debian:12@{digest}"), hub, "library/debian", &digest, "debian-12"),
    ] {
        let read = Reference::parse(text).unwrap();
        let found = (read.host.as_str(), read.name.as_str(), read.version(), read.short_name());
        assert_eq!(found, (host, name, version.to_owned(), short.to_owned()), "{text}");
    }
    for bad in [
        "",
        "/",
        ":",
        "A",
        "a//b",
        "a/../b",
        "a:",
        "a:-x",
        "a@sha256:1",
        "a@md5:x",
        "-h.x/a",
        "h.x:99999/a",
        "h.x/a?b",
        "a b",
        "u@h.x/a",
        "a/b:c/d",
        "..",
        "a:x y",
        "h .x/a",
    ] {
        assert!(Reference::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_manifest_of_the_platform_is_taken() {
    let text = r#"{"manifests":[
        {"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"a","size":1,"platform":{"os":"linux","architecture":"arm64"}},
        {"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"b","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}"#;
    let manifests = || Manifest::parse(text.as_bytes()).unwrap().manifests.unwrap();
    assert_eq!(choose(manifests(), &Platform::parse("linux/amd64").unwrap()).unwrap().digest, "b");
    let error = choose(manifests(), &Platform::parse("linux/riscv64").unwrap()).unwrap_err();
    assert!(error.why.unwrap().contains("linux/arm64, linux/amd64"));
    assert!(choose(manifests(), &Platform::parse("linux/arm64").unwrap()).unwrap().checked_digest().is_err());
    assert!(Platform::parse("linux").is_err() && Platform::parse("linux/../x").is_err());
}
