//! The table of workspaces: which git work tree was shipped into which VM.

use super::signed;
use crate::api::Fault;
use crate::api::vm::Pushed;
use rusqlite::{Connection, OptionalExtension, Row, named_params};

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// What was shipped, and how.
    pub pushed: Pushed,
    /// When, in seconds since 1970.
    pub pushed_at: u64,
    /// When changes were last fetched.
    pub pulled_at: Option<u64>,
    /// The newest commit that a pull made.
    pub pulled_commit: Option<String>,
    /// Whether commands have run since.
    pub unpulled: bool,
}

/// The one of that VM.
///
/// # Errors
/// The store's.
pub fn of(connection: &Connection, vm_id: &str) -> Result<Option<Workspace>, Fault> {
    let mut statement = connection.prepare("SELECT * FROM workspaces WHERE vm_id = ?")?;
    Ok(statement.query_row([vm_id], read).optional()?)
}

/// Writes down that it was shipped. What a pull made before is kept, where it is the same tree.
///
/// # Errors
/// The store's.
pub fn pushed(connection: &Connection, vm_id: &str, pushed: &Pushed, now: u64) -> Result<(), Fault> {
    let sql = "INSERT INTO workspaces
        (vm_id, host, guest, commit_id, branch, include_untracked, full_history, readonly, pushed_at, unpulled)
        VALUES (:vm_id, :host, :guest, :commit, :branch, :untracked, :full, :readonly, :now, 0)
        ON CONFLICT (vm_id) DO UPDATE SET host = excluded.host, guest = excluded.guest, commit_id = excluded.commit_id,
        branch = excluded.branch, include_untracked = excluded.include_untracked, full_history = excluded.full_history,
        readonly = excluded.readonly, pushed_at = excluded.pushed_at, unpulled = 0,
        pulled_commit = iif(host = excluded.host, pulled_commit, NULL)";
    connection.prepare(sql)?.execute(named_params! {
        ":vm_id": vm_id, ":host": pushed.host, ":guest": pushed.guest, ":commit": pushed.commit,
        ":branch": pushed.branch, ":untracked": pushed.include_untracked, ":full": pushed.full_history,
        ":readonly": pushed.readonly, ":now": signed(now),
    })?;
    Ok(())
}

/// Writes down that its changes were fetched; `commit` is the newest one that was made of them, if any was.
///
/// # Errors
/// The store's.
pub fn pulled(connection: &Connection, vm_id: &str, commit: Option<&str>, now: u64) -> Result<(), Fault> {
    let sql = "UPDATE workspaces SET unpulled = 0, pulled_at = :now, pulled_commit = coalesce(:commit, pulled_commit)
        WHERE vm_id = :vm_id";
    connection.prepare(sql)?.execute(named_params! { ":vm_id": vm_id, ":commit": commit, ":now": signed(now) })?;
    Ok(())
}

/// Writes down that a command may have changed it. Nothing where the VM has none.
///
/// # Errors
/// The store's.
pub fn touch(connection: &Connection, vm_id: &str) -> Result<(), Fault> {
    connection.prepare("UPDATE workspaces SET unpulled = 1 WHERE vm_id = ?")?.execute([vm_id])?;
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<Workspace> {
    let unsigned = |number: i64| number.try_into().unwrap_or(0);
    Ok(Workspace {
        pushed: Pushed {
            host: row.get("host")?,
            guest: row.get("guest")?,
            commit: row.get("commit_id")?,
            branch: row.get("branch")?,
            include_untracked: row.get("include_untracked")?,
            full_history: row.get("full_history")?,
            readonly: row.get("readonly")?,
        },
        pushed_at: unsigned(row.get("pushed_at")?),
        pulled_at: row.get::<_, Option<i64>>("pulled_at")?.map(unsigned),
        pulled_commit: row.get("pulled_commit")?,
        unpulled: row.get("unpulled")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::vms::tests::planned;
    use crate::daemon::store::{Store, vms};
    use std::path::Path;

    #[test]
    fn a_workspace_goes_with_its_vm() {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let vm = planned(2);
        let tree = Pushed {
            host: "/home/o/proj".into(),
            guest: "/root/proj".into(),
            commit: "a".repeat(40),
            branch: None,
            include_untracked: true,
            full_history: false,
            readonly: false,
        };
        let get = || store.change(|t| of(t, &vm.id)).unwrap();
        assert_eq!(store.change(|t| pushed(t, &vm.id, &tree, 1)).unwrap_err().code, "store", "there is no such VM");
        store.change(|t| vms::save(t, &vm).and_then(|()| touch(t, &vm.id))).unwrap();
        assert_eq!(get(), None);
        store.change(|t| pushed(t, &vm.id, &tree, 7)).unwrap();
        let want =
            Workspace { pushed: tree.clone(), pushed_at: 7, pulled_at: None, pulled_commit: None, unpulled: false };
        assert_eq!(get(), Some(want.clone()));
        // The VM's row is written anew with each step of its way.
        store.change(|t| touch(t, &vm.id).and_then(|()| vms::save(t, &vm))).unwrap();
        assert!(get().unwrap().unpulled);
        store.change(|t| pulled(t, &vm.id, Some("b"), 9)).unwrap();
        store.change(|t| pulled(t, &vm.id, None, 10)).unwrap();
        let want = Workspace { pulled_at: Some(10), pulled_commit: Some("b".into()), ..want };
        assert_eq!(get(), Some(want));
        store.change(|t| pushed(t, &vm.id, &tree, 11)).unwrap();
        assert_eq!(get().unwrap().pulled_commit.as_deref(), Some("b"));
        let other = Pushed { host: "/home/o/other".into(), ..tree };
        store.change(|t| pushed(t, &vm.id, &other, 12)).unwrap();
        assert_eq!(get().unwrap().pulled_commit, None);
        store.change(|t| vms::remove(t, &vm.id)).unwrap();
        assert_eq!(get(), None);
    }
}
