//! Users and groups, by the guest's own files.

use std::fs::File;
use std::io::Read;

/// More of /etc/passwd and the like is not read.
const LIMIT: u64 = 1 << 20;
/// The most groups that are looked for.
const MAX_GROUPS: usize = 1024;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: String,
    pub(super) shell: String,
}

impl User {
    /// The home directory, where there is one.
    pub(super) fn home(&self) -> String {
        if std::fs::metadata(&self.home).is_ok_and(|home| home.is_dir()) { self.home.clone() } else { "/".into() }
    }

    /// The primary group, and those of /etc/group that name the user.
    pub(super) fn groups(&self) -> Vec<u32> {
        let mut out = vec![self.gid];
        for line in read("/etc/group").lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let &[_, _, gid, members] = fields.as_slice()
                && members.split(',').any(|member| member == self.name)
                && let Ok(gid) = gid.parse()
            {
                out.push(gid);
            }
        }
        out.truncate(MAX_GROUPS);
        out
    }
}

/// A user by name or number. A number needs no line, and an image without accounts has a root all the same.
pub(super) fn user(name: &str) -> Option<User> {
    let wanted = name.parse::<u32>().ok();
    let passwd = read("/etc/passwd");
    let mut users = passwd.lines().filter_map(parse);
    let found = users.find(|user| user.name == name || Some(user.uid) == wanted);
    let bare = |uid, home: &str| User { name: name.into(), uid, gid: uid, home: home.into(), shell: "/bin/sh".into() };
    found.or_else(|| match wanted {
        None if name == "root" => Some(bare(0, "/root")),
        Some(uid) if uid != u32::MAX => Some(bare(uid, "/")),
        _ => None,
    })
}

/// `user`, `user:group` or numbers; a user alone has his own group.
pub(super) fn owner(text: &str) -> Option<(u32, u32)> {
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let user = user(name)?;
    let gid = match group {
        None | Some("") => user.gid,
        Some(group) => group.parse().ok().or_else(|| gid(group)).filter(|gid| *gid != u32::MAX)?,
    };
    Some((user.uid, gid))
}

fn gid(name: &str) -> Option<u32> {
    read("/etc/group").lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// A line of /etc/passwd.
fn parse(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let &[name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
    let shell = if shell.is_empty() { "/bin/sh" } else { shell };
    let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
    Some(User { name: name.into(), uid, gid, home: home.into(), shell: shell.into() })
}

/// A file of the guest's; what isn't there is empty.
pub(super) fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What could be read counts; an account that isn't found says so itself.
        let _ = file.take(LIMIT).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_as_the_guest_writes_them() {
        let user = parse("www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin").unwrap();
        assert_eq!((user.uid, user.gid, &*user.home), (33, 33, "/var/www"));
        assert_eq!(parse("a:x:1:1::/:").unwrap().shell, "/bin/sh");
        assert_eq!(parse("a:x:-1:1::/:/bin/sh"), None);
        assert_eq!(parse("+::::::x:y"), None);
    }

    #[test]
    fn owners() {
        assert_eq!(owner("root"), Some((0, 0)));
        assert_eq!(owner("0:7"), Some((0, 7)));
        assert_eq!(owner("12345:root"), Some((12345, 0)));
        for wrong in ["no-such-user", "root:no-such-group", "", ":0", "0:4294967295", "0:-1"] {
            assert_eq!(owner(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn numbers_need_no_line() {
        let user = user("4000000123").unwrap();
        assert_eq!((user.uid, user.gid, user.groups()), (4_000_000_123, 4_000_000_123, vec![4_000_000_123]));
        assert_eq!(super::user("no-such-user-here"), None);
        assert_eq!(super::user("4294967295"), None, "it means nobody at all to the kernel");
    }
}
