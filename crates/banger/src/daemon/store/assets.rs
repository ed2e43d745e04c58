//! The table of images and kernels: names for what lies in the store of files.

use super::signed;
use crate::api::Fault;
use rusqlite::{Connection, OptionalExtension, Row, named_params};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A root file system.
    Image,
    /// A kernel with its modules.
    Kernel,
}

impl Kind {
    /// As the store and people spell it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Image => "image",
            Kind::Kernel => "kernel",
        }
    }
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    /// Which of the two.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// 64 hexadecimal digits.
    pub digest: String,
    /// What it takes on the disk.
    pub size_bytes: u64,
    /// Of a kernel, where it is known.
    pub version: Option<String>,
    /// Where it is from, for a person.
    pub source: String,
    /// Whether it is Debian's own, made of its packages.
    pub is_debians: bool,
    /// Seconds since 1970.
    pub created_at: u64,
}

/// All of a kind, by name.
///
/// # Errors
/// The store's.
pub fn all(connection: &Connection, kind: Kind) -> Result<Vec<Asset>, Fault> {
    let mut statement = connection.prepare("SELECT * FROM assets WHERE kind = ? ORDER BY name")?;
    let rows = statement.query_map([kind.name()], |row| read(kind, row))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The one of that name.
///
/// # Errors
/// The store's.
pub fn by_name(connection: &Connection, kind: Kind, name: &str) -> Result<Option<Asset>, Fault> {
    let mut statement = connection.prepare("SELECT * FROM assets WHERE kind = ? AND name = ?")?;
    Ok(statement.query_row([kind.name(), name], |row| read(kind, row)).optional()?)
}

/// Writes the row; one of that kind and name is replaced.
///
/// # Errors
/// The store's.
pub fn save(connection: &Connection, asset: &Asset) -> Result<(), Fault> {
    let columns = "kind, name, digest, size_bytes, version, source, is_debians, created_at";
    let values = ":kind, :name, :digest, :size_bytes, :version, :source, :is_debians, :created_at";
    let sql = format!("INSERT OR REPLACE INTO assets ({columns}) VALUES ({values})");
    connection.prepare(&sql)?.execute(named_params! {
        ":kind": asset.kind.name(), ":name": asset.name, ":digest": asset.digest,
        ":size_bytes": signed(asset.size_bytes), ":version": asset.version, ":source": asset.source,
        ":is_debians": asset.is_debians, ":created_at": signed(asset.created_at),
    })?;
    Ok(())
}

/// Takes the row away.
///
/// # Errors
/// The store's.
pub fn remove(connection: &Connection, kind: Kind, name: &str) -> Result<(), Fault> {
    connection.prepare("DELETE FROM assets WHERE kind = ? AND name = ?")?.execute([kind.name(), name])?;
    Ok(())
}

fn read(kind: Kind, row: &Row<'_>) -> rusqlite::Result<Asset> {
    let number = |name: &str| row.get::<_, i64>(name).map(|number| number.try_into().unwrap_or(0));
    Ok(Asset {
        kind,
        name: row.get("name")?,
        digest: row.get("digest")?,
        size_bytes: number("size_bytes")?,
        version: row.get("version")?,
        source: row.get("source")?,
        is_debians: row.get("is_debians")?,
        created_at: number("created_at")?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::daemon::store::Store;
    use std::path::Path;

    pub(crate) fn asset(kind: Kind, name: &str, digit: char) -> Asset {
        Asset {
            kind,
            name: name.into(),
            digest: digit.to_string().repeat(64),
            size_bytes: 1 << 30,
            version: None,
            source: "a test".into(),
            is_debians: false,
            created_at: 1_764_031_982,
        }
    }

    #[test]
    fn kinds_have_names_of_their_own() {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let image = asset(Kind::Image, "debian", 'a');
        let kernel = Asset { version: Some("6.1".into()), is_debians: true, ..asset(Kind::Kernel, "debian", 'b') };
        store.change(|t| save(t, &image).and_then(|()| save(t, &kernel))).unwrap();
        let newer = Asset { digest: "c".repeat(64), ..image.clone() };
        store.change(|t| save(t, &newer)).unwrap();
        assert_eq!(store.change(|t| all(t, Kind::Image)).unwrap(), [newer]);
        assert_eq!(store.change(|t| by_name(t, Kind::Kernel, "debian")).unwrap(), Some(kernel));
        store.change(|t| remove(t, Kind::Image, "debian")).unwrap();
        assert_eq!(store.change(|t| all(t, Kind::Image)).unwrap(), []);
        assert_eq!(store.change(|t| all(t, Kind::Kernel)).unwrap().len(), 1);
    }
}
