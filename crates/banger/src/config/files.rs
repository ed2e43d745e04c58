//! Paths in the configuration, and `file_sync`: files of this machine's that every VM gets.

use super::variable;
use serde_json::{Map, Value};
use std::path::{Component, Path, PathBuf};
use toml::de::DeValue;

/// Root's home in a guest.
const GUEST: &str = "/root";

/// A file or directory that every VM gets when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncedFile {
    /// The home directory here.
    pub home: PathBuf,
    /// Where it is below that.
    pub host: PathBuf,
    /// Where it becomes one below `/root` of the guest.
    pub guest: PathBuf,
    /// The files' permissions; `None`: as they are here.
    pub mode: Option<u16>,
}

/// An entry of `[[file_sync]]`, where it has texts alone.
pub(super) fn object(entry: &DeValue<'_>) -> Option<Value> {
    let DeValue::Table(table) = entry else { return None };
    let text = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(Value::from(text.as_ref())),
        _ => None,
    };
    let fields = table.iter().map(|(key, value)| Some((key.get_ref().to_string(), text(value.get_ref())?)));
    Some(Value::Object(fields.collect::<Option<Map<_, _>>>()?))
}

/// Its entries; `None` where one is not as it has to be.
pub(super) fn list(value: &Value) -> Option<Vec<SyncedFile>> {
    value.as_array()?.iter().map(|entry| of(entry, &home()?)).collect()
}

fn of(entry: &Value, home: &Path) -> Option<SyncedFile> {
    let fields = entry.as_object()?;
    if fields.keys().any(|key| !["host", "guest", "mode"].contains(&key.as_str())) {
        return None;
    }
    let text = |key| fields.get(key).and_then(Value::as_str);
    let host = below(text("host")?, home)?;
    let guest = below(text("guest")?, Path::new(GUEST))?;
    let mode = match text("mode") {
        None | Some("") => None,
        Some(digits) => Some(u16::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777)?),
    };
    Some(SyncedFile { home: home.to_owned(), host, guest, mode })
}

/// What of a path is below `home`: `~/x`, or an absolute one. The home itself is nothing to be copied.
fn below(text: &str, home: &Path) -> Option<PathBuf> {
    let rest = match text.strip_prefix("~/") {
        Some(rest) => Path::new(rest),
        None => Path::new(text).strip_prefix(home).ok()?,
    };
    let is_one = is_plain(rest) && rest.is_relative() && !rest.as_os_str().is_empty();
    is_one.then(|| rest.to_owned())
}

/// A path that names what it says: no `..`, and nothing that a terminal would act upon.
fn is_plain(path: &Path) -> bool {
    let plain = path.to_str().is_some_and(|text| text.len() <= 1024 && !text.contains(char::is_control));
    plain && path.components().all(|part| matches!(part, Component::Normal(_) | Component::RootDir))
}

/// An absolute path, or one below the home directory, `~/x`.
pub(super) fn path(text: &str) -> Option<PathBuf> {
    match text.strip_prefix("~/") {
        Some(rest) if is_plain(Path::new(rest)) && !rest.starts_with('/') => Some(home()?.join(rest)),
        Some(_) => None,
        None => absolute(text),
    }
}

/// An absolute path.
pub(super) fn absolute(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text)).filter(|path| path.is_absolute() && is_plain(path))
}

fn home() -> Option<PathBuf> {
    variable("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_synced_is_below_both_homes() {
        let entry = |entry: Value| of(&entry, Path::new("/home/o"));
        let synced = entry(json!({"host": "~/.config/x", "guest": "/root/.x", "mode": "0600"})).unwrap();
        assert_eq!((synced.host, synced.guest, synced.mode), (".config/x".into(), ".x".into(), Some(0o600)));
        let synced = entry(json!({"host": "/home/o/a", "guest": "~/a"})).unwrap();
        assert_eq!((synced.home, synced.host, synced.mode), ("/home/o".into(), "a".into(), None));
        for (host, guest, mode) in [
            ("/etc/passwd", "~/a", "0600"),
            ("/home/other/a", "~/a", "0600"),
            ("~/../other/a", "~/a", "0600"),
            ("~/a/../../../etc/passwd", "~/a", "0600"),
            ("~/", "~/a", "0600"),
            ("~", "~/a", "0600"),
            ("~//etc/passwd", "~/a", "0600"),
            ("~/a", "/etc/a", "0600"),
            ("~/a", "~/../etc/a", "0600"),
            ("~/a", "~/b\u{1b}", "0600"),
            ("~/a", "~/a", "4755"),
            ("~/a", "~/a", "rw"),
        ] {
            assert_eq!(entry(json!({"host": host, "guest": guest, "mode": mode})), None, "{host} {guest} {mode}");
        }
        assert_eq!(entry(json!({"host": "~/a"})), None);
        assert_eq!(entry(json!({"host": "~/a", "guest": "~/a", "owner": "x"})), None);
    }

    #[test]
    fn a_path_means_what_it_says() {
        assert_eq!([path("/a/b"), absolute("/a")], [Some("/a/b".into()), Some("/a".into())]);
        assert_eq!(path("~/k"), Some(home().unwrap().join("k")));
        for bad in ["a", "", "~", "~x/a", "/a/../b", "~/../a", "~//a", "/a\n"] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }
}
