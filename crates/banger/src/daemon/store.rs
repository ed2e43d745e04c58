//! The store: one SQLite file that this daemon alone writes, with one writer at a time.
//!
//! Each table has a file here with its rows' type. A change of the tables is a new file in [`MIGRATIONS`], never a change
//! of one that was released.

pub mod assets;
pub mod ports;
pub mod templates;
pub mod usual;
pub mod vms;
pub mod workspaces;

use crate::api::Fault;
use crate::daemon::error::exit;
use rusqlite::{Connection, OpenFlags, Transaction};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The tables' history: the store's `user_version` says how many of these it has had.
const MIGRATIONS: &[&str] = &[
    include_str!("store/1-vms.sql"),
    include_str!("store/2-images.sql"),
    include_str!("store/3-vmm.sql"),
    include_str!("store/4-workspaces.sql"),
    include_str!("store/5-tap.sql"),
    include_str!("store/6-ports.sql"),
    include_str!("store/7-init.sql"),
    include_str!("store/8-templates.sql"),
    include_str!("store/9-templates.sql"),
    include_str!("store/10-usual.sql"),
    include_str!("store/11-templates-init.sql"),
];

/// The open store.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It is.
    Do,
    /// It is told what would come of it: `--dry-run`.
    Tell,
}

impl Act {
    pub(crate) fn of(dry_run: bool) -> Act {
        if dry_run { Act::Tell } else { Act::Do }
    }
}

impl Store {
    /// Opens the file, makes it where it is missing, and brings its tables up to date.
    ///
    /// # Errors
    /// `store`, or `store_newer` where a later version of this program has changed the tables.
    pub fn open(path: &Path) -> Result<Store, Fault> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        // A crash of this program loses nothing; one of the machine at most the last writes, and no order.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        migrate(&mut connection, MIGRATIONS)?;
        Ok(Store { connection: Mutex::new(connection) })
    }

    /// Reads or writes as one transaction: all of it, or nothing where `act` fails.
    ///
    /// # Errors
    /// `act`'s, or the store's.
    pub fn change<T>(&self, act: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
        self.change_or_tell(Act::Do, act)
    }

    /// The same, or only what would come of it: then all is as it was.
    ///
    /// # Errors
    /// As [`Store::change`].
    pub fn change_or_tell<T>(
        &self,
        earnest: Act,
        act: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        // A thread that panicked here left no half transaction: dropping one takes it back.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction()?;
        let out = act(&transaction)?;
        match earnest {
            Act::Do => transaction.commit()?,
            Act::Tell => transaction.rollback()?,
        }
        Ok(out)
    }
}

fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), Fault> {
    let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let Some(missing) = migrations.get(version as usize..) else {
        return Err(Fault::new("store_newer", exit::MACHINE, "bangerd's store was written by a newer version")
            .why(format!("it is of version {version}, this program knows {}", migrations.len()))
            .fix("install that version of bangerd again"));
    };
    for (number, step) in (version + 1..).zip(missing) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(())
}

/// SQLite's numbers are signed; nothing here comes near the bound.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_brought_up_to_date_once_and_a_newer_one_is_left_alone() {
        let mut connection = Connection::open_in_memory().unwrap();
        let two = ["CREATE TABLE a (x INTEGER)", "CREATE TABLE b (x INTEGER)"];
        migrate(&mut connection, &two[..1]).unwrap();
        migrate(&mut connection, &two).unwrap();
        migrate(&mut connection, &two).unwrap();
        assert_eq!(migrate(&mut connection, &two[..1]).unwrap_err().code, "store_newer");
        let failing = ["", "", "CREATE TABLE c (x INTEGER); CREATE TABLE a (x INTEGER)"];
        assert_eq!(migrate(&mut connection, &failing).unwrap_err().code, "store");
        let tables: u32 =
            connection.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'c'", [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 0, "half a step stays undone");
    }
}
