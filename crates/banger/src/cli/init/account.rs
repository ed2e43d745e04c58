//! A user of this machine, by name.

use crate::cli::problem::Problem;
use std::path::PathBuf;
use std::process::Command;

/// A user.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) user: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

impl Account {
    /// Looks the user up as the system does, in whatever directory knows accounts. Root can't own VMs.
    pub(crate) fn of(user: &str) -> Result<Account, Problem> {
        let unknown = || {
            Problem::new("no_such_user", format!("there is no user {} on this machine", wire::code::shown(user)))
                .fix("--owner \"$USER\" from your own account")
        };
        let plain = !user.is_empty() && !user.starts_with('-') && !user.contains(|c: char| c == ':' || c.is_control());
        if !plain {
            return Err(unknown());
        }
        // By its path: this runs as root, with whatever PATH the caller has.
        let out = Command::new("/usr/bin/getent").args(["passwd", user]).output().map_err(|error| {
            Problem::new("no_getent", "accounts can't be looked up").why(error).fix("sudo apt-get install libc-bin")
        })?;
        let text = String::from_utf8(out.stdout).map_err(|_| unknown())?;
        let account = Account::parse(text.trim_end_matches('\n')).filter(|account| account.user == user);
        let account = account.ok_or_else(unknown)?;
        if account.uid == 0 {
            return Err(Problem::new("owner_is_root", format!("{user} is root, and root can't own VMs"))
                .why("a VMM runs as the owner, and must never be root")
                .fix("sudo banger helper init --owner \"$USER\", typed in the owner's own shell"));
        }
        Ok(account)
    }

    /// The home directory of this process's user, as ssh has it: whatever HOME says.
    pub(crate) fn own_home() -> Option<PathBuf> {
        let uid = rustix::process::getuid().to_string();
        let out = Command::new("getent").args(["passwd", &uid]).output().ok()?;
        let account = Account::parse(String::from_utf8(out.stdout).ok()?.trim_end_matches('\n'))?;
        Some(PathBuf::from(account.home)).filter(|home| home.is_absolute())
    }

    /// A line of the password file.
    fn parse(line: &str) -> Option<Account> {
        if line.contains(char::is_control) {
            return None;
        }
        match line.split(':').collect::<Vec<_>>()[..] {
            [user, _, uid, gid, _, home, _] => {
                Some(Account { user: user.into(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.into() })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_of_this_machine() {
        let nobody = Account::of("nobody").unwrap();
        assert_eq!((nobody.user.as_str(), nobody.uid), ("nobody", 65534));
        for (bad, code) in [("root", "owner_is_root"), ("0", "no_such_user"), ("no-such-user-here", "no_such_user")] {
            let text = Account::of(bad).unwrap_err().to_string();
            assert!(text.starts_with(&format!("error[{code}]: ")), "{text}");
        }
        for bad in ["", "-h", "65534", "a:b", "a\nb"] {
            assert!(Account::of(bad).is_err(), "{bad}");
        }
    }
}
