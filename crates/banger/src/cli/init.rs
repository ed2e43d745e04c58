//! `banger helper init`: the install metadata and the owner's directories.
//!
//! Everything is looked at first; then the directories are made, and the metadata last, in one step. What is right
//! already is left as it is.

pub(crate) mod account;
mod place;

use super::problem::Problem;
use super::{Init, output, text};
use crate::time::rfc3339;
use account::Account;
use place::Found;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where the helper's program looks when it is given no flags.
const DEFAULTS: [&str; 3] = ["/var/lib/banger", "/run/banger", "/etc/banger/install.toml"];

/// What was installed before, as far as it counts here.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Installed {
    owner_user: String,
    owner_uid: u32,
    owner_gid: u32,
    owner_home: String,
    version: String,
    commit: String,
}

pub(crate) fn run(init: &Init) -> Result<(), Problem> {
    let owner = Account::of(&init.owner)?;
    for path in [&init.state_dir, &init.runtime_dir, &init.install_meta] {
        place::check(path)?;
    }
    if init.state_dir.starts_with(&init.runtime_dir) || init.runtime_dir.starts_with(&init.state_dir) {
        return Err(Problem::usage(
            "the state and the runtime directory must lie beside each other, not one in the other",
        ));
    }
    let before = installed(&init.install_meta, init.force)?;
    let previous = same_owner(&before, &owner, init)?;
    let directories = [&init.state_dir, &init.runtime_dir];
    let found = directories.map(|path| plan(path, &owner, previous).map(|todo| (path, todo)));
    let [state, runtime] = found;
    let todo = [state?, runtime?];
    let right = before.is_some_and(|before| before.describes(&owner));
    let metadata = metadata(&owner);
    if init.dry_run {
        return output::data(&dry(&todo, &owner, init, (!right).then_some(metadata.as_str())));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Problem::new("needs_root", "only root can write the install metadata")
            .fix(format!("sudo banger helper init --owner {}", owner.user)));
    }
    for (path, todo) in &todo {
        act(path, *todo, &owner)?;
    }
    if right {
        output::ours(&format!("kept     {}\n", show(&init.install_meta)));
    } else {
        place::write(&init.install_meta, metadata.as_bytes())?;
        output::ours(&format!("wrote    {}\n", show(&init.install_meta)));
    }
    output::ours(&format!("next     sudo bangerd-root{} &\n", flags(init)));
    Ok(())
}

/// What is to be done about a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Todo {
    Make,
    /// It is there, and another's; it becomes the owner's.
    Give,
    /// It is the owner's, but others may write it.
    Close,
    Keep,
}

fn plan(path: &Path, owner: &Account, previous: Option<u32>) -> Result<Todo, Problem> {
    match place::look(path)? {
        Found::Missing => Ok(Todo::Make),
        Found::Directory { uid, mode, .. } if uid == owner.uid && mode & 0o022 == 0 => Ok(Todo::Keep),
        Found::Directory { uid, .. } if uid == owner.uid => Ok(Todo::Close),
        // An empty directory of root's holds nothing that the owner could get by it.
        Found::Directory { uid: 0, empty: true, .. } => Ok(Todo::Give),
        Found::Directory { uid, .. } if Some(uid) == previous => Ok(Todo::Give),
        Found::Directory { uid, .. } => Err(Problem::new(
            "not_the_owners",
            format!("{} is there already and belongs to uid {uid}, not to {}", show(path), owner.user),
        )
        .fix("name another directory, or look what it holds and move it away")),
        Found::Else => Err(Problem::new("not_a_directory", format!("{} is there and is no directory", show(path)))
            .fix("name another directory, or move it away")),
    }
}

fn act(path: &Path, todo: Todo, owner: &Account) -> Result<(), Problem> {
    match todo {
        Todo::Make => place::make(path, owner)?,
        Todo::Give => place::give(path, owner)?,
        Todo::Close => place::close(path)?,
        Todo::Keep => {}
    }
    let done = match todo {
        Todo::Make => "made     ",
        Todo::Give => "gave     ",
        Todo::Close => "closed   ",
        Todo::Keep => "kept     ",
    };
    output::ours(&format!("{done}{}\n", show(path)));
    Ok(())
}

/// What a run without `--dry-run` would do, line by line; without `metadata` those that are there stay.
fn dry(todo: &[(&PathBuf, Todo)], owner: &Account, init: &Init, metadata: Option<&str>) -> String {
    let mut out = String::new();
    for (path, todo) in todo {
        let what = match todo {
            Todo::Make => format!("made, {}:{} 0700", owner.uid, owner.gid),
            Todo::Give => format!("given to {}:{}", owner.uid, owner.gid),
            Todo::Close => "closed to the writes of others".into(),
            Todo::Keep => "kept as it is".into(),
        };
        out.push_str(&format!("directory {}: {what}\n", show(path)));
    }
    let file = show(&init.install_meta);
    out.push_str(&match metadata {
        Some(text) => format!("file {file}: 0:0 0644\n{text}"),
        None => format!("file {file}: kept as it is\n"),
    });
    out
}

/// The metadata that is there. One that can't be read stops us, unless it is to be replaced anyhow.
fn installed(path: &Path, force: bool) -> Result<Option<Installed>, Problem> {
    let Some(text) = place::read(path)? else { return Ok(None) };
    match toml::from_str(&text) {
        Ok(found) => Ok(Some(found)),
        Err(_) if force => Ok(None),
        Err(error) => Err(Problem::new("bad_metadata", format!("{} is there and can't be read", show(path)))
            .why(error.message())
            .fix("mend it, or write it anew with --force")),
    }
}

/// The uid of another owner from whom this one takes over, which only `--force` allows.
fn same_owner(before: &Option<Installed>, owner: &Account, init: &Init) -> Result<Option<u32>, Problem> {
    match before {
        Some(before) if before.owner_uid != owner.uid || before.owner_user != owner.user => {
            if init.force {
                return Ok(Some(before.owner_uid).filter(|&uid| uid != 0));
            }
            let message = format!(
                "{} names {} (uid {}) as the owner, not {}",
                show(&init.install_meta),
                before.owner_user,
                before.owner_uid,
                owner.user
            );
            Err(Problem::new("other_owner", message)
                .why("images and disks in the state directory are that owner's")
                .fix("stop the helper, then give --force: the directories are handed over, the files in them are not"))
        }
        _ => Ok(None),
    }
}

impl Installed {
    fn describes(&self, owner: &Account) -> bool {
        (self.owner_user.as_str(), self.owner_uid, self.owner_gid, self.owner_home.as_str())
            == (owner.user.as_str(), owner.uid, owner.gid, owner.home.as_str())
            && (self.version.as_str(), self.commit.as_str()) == (VERSION, COMMIT)
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Who packages this program sets both when it is built.
const COMMIT: &str = match option_env!("BANGER_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
const BUILT_AT: &str = match option_env!("BANGER_BUILT_AT") {
    Some(time) => time,
    None => "unknown",
};

fn metadata(owner: &Account) -> String {
    // An account's texts hold no control character (checked when it was read), so JSON's quoting is TOML's.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "owner_user = {}\nowner_uid = {}\nowner_gid = {}\nowner_home = {}\n\
         version = {}\ncommit = {}\nbuilt_at = {}\ninstalled_at = {}\n",
        quoted(&owner.user),
        owner.uid,
        owner.gid,
        quoted(&owner.home),
        quoted(VERSION),
        quoted(COMMIT),
        quoted(BUILT_AT),
        rfc3339(SystemTime::now()),
    )
}

/// The flags that the helper needs where a path is not the usual one.
fn flags(init: &Init) -> String {
    let named =
        [("state-dir", &init.state_dir), ("runtime-dir", &init.runtime_dir), ("install-meta", &init.install_meta)];
    let unusual = named.iter().zip(DEFAULTS).filter(|((_, path), usual)| path.as_path() != Path::new(usual));
    unusual.map(|((flag, path), _)| format!(" --{flag} {}", show(path))).collect()
}

fn show(path: &Path) -> String {
    text::line(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_toml_and_reads_back() {
        let owner = Account { user: "o'n\"e".into(), uid: 1000, gid: 100, home: "/home/a \\b é".into() };
        let read: Installed = toml::from_str(&metadata(&owner)).unwrap();
        assert!(read.describes(&owner));
    }
}
