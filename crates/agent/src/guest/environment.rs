//! The variables that a program begins with.
//!
//! | from | what | over what stands above |
//! | --- | --- | --- |
//! | built in, else the guest's /etc/login.defs | `PATH`: `ENV_SUPATH` for root, `ENV_PATH` for others | |
//! | the guest's /etc/environment | what is there | yes |
//! | the user's line in /etc/passwd | `HOME`, `USER`, `SHELL` | yes |
//! | the caller | what he says | yes |

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use super::accounts::{self, User};

/// Where programs are looked for unless somebody says otherwise.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Gives the program its variables, and no others.
pub(super) fn set(command: &mut Command, user: &User, callers: &[&[u8]]) {
    command.env_clear();
    let defined = path_of(&accounts::read("/etc/login.defs"), user.uid);
    command.env("PATH", defined.as_deref().unwrap_or(DEFAULT_PATH));
    command.envs(accounts::read("/etc/environment").lines().filter_map(variable));
    command.envs([("HOME", &user.home), ("USER", &user.name), ("SHELL", &user.shell)]);
    for variable in callers {
        let cut = variable.iter().position(|byte| *byte == b'=').unwrap_or(variable.len());
        let (key, value) = (&variable[..cut], variable.get(cut + 1..).unwrap_or_default());
        if !key.is_empty() {
            command.env(OsStr::from_bytes(key), OsStr::from_bytes(value));
        }
    }
}

/// The `PATH` of login.defs(5), with or without `PATH=` before it.
fn path_of(defs: &str, uid: u32) -> Option<String> {
    let wanted = if uid == 0 { "ENV_SUPATH" } else { "ENV_PATH" };
    let mut lines = defs.lines().filter_map(|line| line.trim_ascii().split_once(|c: char| c.is_ascii_whitespace()));
    let (_, value) = lines.find(|(key, _)| *key == wanted)?;
    let value = value.trim_ascii().trim_matches('"');
    let path = value.strip_prefix("PATH=").unwrap_or(value);
    (!path.is_empty() && !path.contains('\0')).then(|| path.into())
}

/// A line of /etc/environment, as pam_env(8) takes it: perhaps `export` before it, one pair of quotes, `#` begins a comment.
/// Nothing is replaced in a value.
fn variable(line: &str) -> Option<(&str, &str)> {
    let line = line.split('#').next()?.trim_ascii();
    let (key, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if key.is_empty() || !key.bytes().all(plain) || value.contains('\0') {
        return None;
    }
    let Some(quoted) = value.strip_prefix(['"', '\'']) else { return Some((key, value)) };
    Some((key, quoted.strip_suffix(['"', '\'']).unwrap_or(quoted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_login_defs() {
        let defs = "# ENV_PATH /no\n#ENV_SUPATH\tPATH=/no\nENV_SUPATH\tPATH=/sbin:/bin\nENV_PATH  /bin:/games \n";
        assert_eq!(path_of(defs, 0).as_deref(), Some("/sbin:/bin"));
        assert_eq!(path_of(defs, 7).as_deref(), Some("/bin:/games"));
        for none in ["", "ENV_PATH", "ENV_PATH \n", "ENV_PATH PATH=", "ENV_PATHS /a", "ENV_PATH /a\0b"] {
            assert_eq!(path_of(none, 7), None, "{none:?}");
        }
    }

    #[test]
    fn a_line_of_the_environment_file() {
        assert_eq!(variable("LANG=C.UTF-8"), Some(("LANG", "C.UTF-8")));
        assert_eq!(variable(" export A=\"b c\" # d"), Some(("A", "b c")));
        assert_eq!(variable("A='b"), Some(("A", "b")));
        assert_eq!(variable("A=b=\"c\""), Some(("A", "b=\"c\"")));
        assert_eq!(variable("A="), Some(("A", "")));
        for none in ["", "# A=b", "A", "=b", "A-B=c", "A B=c", "A=\0"] {
            assert_eq!(variable(none), None, "{none:?}");
        }
    }
}
