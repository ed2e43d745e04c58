//! One write, of which an image shows nothing or all.

use super::*;

pub(crate) const METHOD: &str = "priv.write_ext4_files";

/// What a write puts into the image: more than one block, in more than one directory.
pub(crate) fn files() -> Vec<(&'static str, Vec<u8>, u32)> {
    vec![
        ("/etc/motd", b"as it is now\n".repeat(3000), 0),
        ("/srv/new/file", vec![b'n'; 70_000], 0o600),
        // So much that what goes to free blocks passes by the log.
        ("/srv/new/large", vec![b'l'; 700_000], 0o644),
        ("/etc/hostname", b"after\n".to_vec(), 0),
    ]
}

pub(crate) fn params() -> serde_json::Value {
    let files = files();
    let files: Vec<(&str, &[u8], u32)> = files.iter().map(|(path, data, mode)| (*path, &data[..], *mode)).collect();
    write_params(IMAGE, &files)
}

pub(crate) fn request() -> String {
    serde_json::json!({"method": METHOD, "params": params()}).to_string()
}

/// The state of the image: clean, and all of it old (`false`) or all new (`true`).
pub(crate) fn is_new() -> bool {
    assert_clean(IMAGE);
    let there: Vec<bool> = files().iter().map(|(path, data, _)| inside(IMAGE, path).as_ref() == Some(data)).collect();
    let old = inside(IMAGE, "/etc/hostname").as_deref() == Some(b"guest\n")
        && inside(IMAGE, "/srv/new/file").is_none()
        && inside(IMAGE, "/etc/motd") == Some(b"as it was\n".repeat(1000));
    let new = there.iter().all(|&there| there);
    assert!(old != new, "half of it: {there:?}");
    new
}
