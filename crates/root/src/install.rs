//! The install metadata: whose helper this is. Written by root, checked field by field.

use crate::trusted;
use serde::Deserialize;
use sys::creds::Identity;
use toml::{Spanned, Value};

/// What the file says. Other keys are ignored.
#[derive(Deserialize)]
struct Says {
    owner_user: Spanned<String>,
    owner_uid: Spanned<i64>,
    owner_gid: Spanned<i64>,
    owner_home: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    commit: String,
    built_at: Option<Spanned<Value>>,
    installed_at: Option<Spanned<Value>>,
}

/// The installation.
#[derive(Debug)]
pub(crate) struct Install {
    /// The owner, with all his groups.
    pub(crate) owner: Identity,
    /// The version that was installed.
    pub(crate) version: String,
    /// The commit that it was made from.
    pub(crate) commit: String,
}

/// Reads the metadata and looks the owner up.
pub(crate) fn read(path: &str) -> Result<Install, String> {
    let text = trusted::read(path)?
        .ok_or_else(|| format!("{path}: there is no such file; `banger helper init --owner NAME` writes it"))?;
    check(path, &text, |name| Identity::by_name(name).map_err(|error| error.to_string()))
}

fn check(
    path: &str,
    text: &str,
    look_up: impl Fn(&str) -> Result<Option<Identity>, String>,
) -> Result<Install, String> {
    let says: Says = toml::from_str(text).map_err(|error| trusted::in_line(path, text, &error))?;
    let at = |start: usize, what: String| {
        let line = 1 + text.as_bytes()[..start.min(text.len())].iter().filter(|&&byte| byte == b'\n').count();
        format!("{path}, line {line}: {what}")
    };
    for (key, time) in [("built_at", &says.built_at), ("installed_at", &says.installed_at)] {
        if let Some(time) = time
            && !matches!(time.get_ref(), Value::String(_) | Value::Datetime(_))
        {
            return Err(at(time.span().start, format!("{key} must be a string or a date")));
        }
    }
    let (user, uid, gid) = (says.owner_user.get_ref(), *says.owner_uid.get_ref(), *says.owner_gid.get_ref());
    let id = |number: i64, span: std::ops::Range<usize>, key: &str| match u32::try_from(number) {
        Ok(0) => Err(at(span.start, format!("{key} is 0; the owner must not be root"))),
        Ok(u32::MAX) | Err(_) => Err(at(span.start, format!("{key} {number} is no id"))),
        Ok(id) => Ok(id),
    };
    let uid = id(uid, says.owner_uid.span(), "owner_uid")?;
    let gid = id(gid, says.owner_gid.span(), "owner_gid")?;
    let line_of_user = says.owner_user.span().start;
    let found = look_up(user)?
        .ok_or_else(|| at(line_of_user, format!("owner_user {user:?} does not exist: it is not in /etc/passwd")))?;
    if found.uid != uid {
        let what = format!("owner_uid is {uid}, but {user:?} has the uid {}", found.uid);
        return Err(at(says.owner_uid.span().start, what));
    }
    if !found.groups.contains(&gid) {
        return Err(at(says.owner_gid.span().start, format!("owner_gid is {gid}, a group that {user:?} is not in")));
    }
    // What is root's by its group is not to be had through the owner.
    let groups = found.groups.into_iter().filter(|&group| group != 0).collect();
    let owner = Identity { uid, gid, groups, name: found.name, home: says.owner_home };
    Ok(Install { owner, version: says.version, commit: says.commit })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "owner_user = \"ann\"\nowner_uid = 1000\nowner_gid = 1000\nowner_home = \"/home/ann\"\n\
        version = \"1\"\ncommit = \"c\"\nbuilt_at = \"2026-01-01T00:00:00Z\"\ninstalled_at = 2026-01-01T00:00:00Z\nmore = [1]\n";

    fn ann(name: &str) -> Result<Option<Identity>, String> {
        let ann = Identity { uid: 1000, gid: 1000, groups: vec![0, 104, 1000], name: "ann".into(), home: "/x".into() };
        Ok((name == "ann").then_some(ann))
    }

    #[test]
    fn the_owner() {
        let install = check("f", GOOD, ann).unwrap();
        assert_eq!((install.owner.uid, install.owner.home.as_str()), (1000, "/home/ann"));
        assert_eq!(install.owner.groups, [104, 1000]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (good, bad, told) in [
            ("\"ann\"", "\"ben\"", "f, line 1: owner_user \"ben\" does not exist"),
            ("\"ann\"", "7", "f, line 1: invalid type"),
            ("owner_uid = 1000", "owner_uid = 0", "f, line 2: owner_uid is 0"),
            ("owner_uid = 1000", "owner_uid = 1001", "f, line 2: owner_uid is 1001, but"),
            ("owner_uid = 1000", "owner_uid = -1", "f, line 2: owner_uid -1 is no id"),
            ("owner_uid = 1000", "owner_uid = \"1000\"", "f, line 2: invalid type"),
            ("owner_uid = 1000", "", "f, line 1: missing field `owner_uid`"),
            ("owner_gid = 1000", "owner_gid = 4294967295", "f, line 3: owner_gid 4294967295 is no id"),
            ("owner_gid = 1000", "owner_gid = 4", "f, line 3: owner_gid is 4, a group that"),
            ("version = \"1\"", "version = 1", "f, line 5: invalid type"),
            ("2026-01-01T00:00:00Z\n", "1\n", "f, line 8: "),
            ("built_at = \"2026-01-01T00:00:00Z\"", "built_at = 1", "f, line 7: built_at must be"),
            ("more = [1]", "more = [1", "f, line 9: "),
            ("more = [1]", "owner_uid = 1000", "f, line 9: "),
        ] {
            let error = check("f", &GOOD.replace(good, bad), ann).unwrap_err();
            assert!(error.starts_with(told) && !error.contains('\n'), "{error}");
        }
    }
}
