//! The table of templates.

use super::signed;
use crate::api::Fault;
use rusqlite::{Connection, Row, named_params};
use std::path::PathBuf;

/// So often one after the other it may fail.
const FAILURES: u32 = 2;

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// 12 hexadecimal digits.
    pub id: String,
    /// The digest of `parts`.
    pub key: String,
    /// What it is bound to, a line each.
    pub parts: String,
    /// The image's name.
    pub image: String,
    /// Its digest, `sha256:…`; `None` where it was given as a file.
    pub digest: Option<String>,
    /// The image.
    pub root: PathBuf,
    /// The kernel's name.
    pub kernel: String,
    /// The kernel.
    pub vmlinux: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    /// vCPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Its files, as they were when they were whole.
    pub files: String,
    /// What it takes on the disk.
    pub size_bytes: u64,
    /// How often one after the other it could not be gone on from.
    pub failures: u32,
    /// Seconds since 1970.
    pub created_at: u64,
}

impl Template {
    /// Whether it failed too often to be tried again.
    pub fn is_dropped(&self) -> bool {
        self.failures >= FAILURES
    }
}

/// All, the oldest first.
///
/// # Errors
/// The store's.
pub fn all(connection: &Connection) -> Result<Vec<Template>, Fault> {
    let mut statement = connection.prepare("SELECT * FROM templates ORDER BY created_at, id")?;
    let rows = statement.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Writes a new row.
///
/// # Errors
/// The store's; there is one of that id or key.
pub fn add(connection: &Connection, template: &Template) -> Result<(), Fault> {
    let path = |path: &PathBuf| path.to_string_lossy().into_owned();
    let columns = "id, key, parts, image, image_digest, root_path, kernel, kernel_path, initrd_path, cpus, memory_mib, \
                   files, size_bytes, failures, created_at";
    let values = ":id, :key, :parts, :image, :image_digest, :root_path, :kernel, :kernel_path, :initrd_path, :cpus, \
                  :memory_mib, :files, :size_bytes, :failures, :created_at";
    connection.prepare(&format!("INSERT INTO templates ({columns}) VALUES ({values})"))?.execute(named_params! {
        ":id": template.id, ":key": template.key, ":parts": template.parts, ":image": template.image,
        ":image_digest": template.digest, ":root_path": path(&template.root), ":kernel": template.kernel,
        ":kernel_path": path(&template.vmlinux), ":initrd_path": path(&template.initrd), ":cpus": template.cpus,
        ":memory_mib": signed(template.memory_mib), ":files": template.files, ":size_bytes": signed(template.size_bytes),
        ":failures": template.failures, ":created_at": signed(template.created_at),
    })?;
    Ok(())
}

/// Writes down that it failed, or that it did not.
///
/// # Errors
/// The store's.
pub fn tried(connection: &Connection, id: &str, failed: bool) -> Result<(), Fault> {
    let change = match failed {
        true => "UPDATE templates SET failures = failures + 1 WHERE id = ?",
        // Nothing is written where nothing changes, which is each time but seldom.
        false => "UPDATE templates SET failures = 0 WHERE id = ? AND failures <> 0",
    };
    connection.prepare(change)?.execute([id])?;
    Ok(())
}

/// Writes down that it is not to be tried again.
///
/// # Errors
/// The store's.
pub fn drop(connection: &Connection, id: &str) -> Result<(), Fault> {
    connection.prepare("UPDATE templates SET failures = ? WHERE id = ?")?.execute((FAILURES, id))?;
    Ok(())
}

/// Takes the row away.
///
/// # Errors
/// The store's.
pub fn remove(connection: &Connection, id: &str) -> Result<(), Fault> {
    connection.prepare("DELETE FROM templates WHERE id = ?")?.execute([id])?;
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<Template> {
    let path = |name: &str| row.get::<_, String>(name).map(PathBuf::from);
    let number = |name: &str| row.get::<_, i64>(name).map(|number| number.try_into().unwrap_or(0));
    Ok(Template {
        id: row.get("id")?,
        key: row.get("key")?,
        parts: row.get("parts")?,
        image: row.get("image")?,
        digest: row.get("image_digest")?,
        root: path("root_path")?,
        kernel: row.get("kernel")?,
        vmlinux: path("kernel_path")?,
        initrd: path("initrd_path")?,
        cpus: row.get("cpus")?,
        memory_mib: number("memory_mib")?,
        files: row.get("files")?,
        size_bytes: number("size_bytes")?,
        failures: row.get("failures")?,
        created_at: number("created_at")?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::daemon::store::Store;
    use std::path::Path;

    /// One whose id and key end in that digit.
    pub(crate) fn template(digit: char) -> Template {
        Template {
            id: format!("00000000000{digit}"),
            key: digit.to_string().repeat(64),
            parts: "memory 512\n".into(),
            image: "debian-12".into(),
            digest: Some("sha256:0".into()),
            root: "/s/root.ext4".into(),
            kernel: "debian".into(),
            vmlinux: "/s/vmlinux".into(),
            initrd: "/s/initrd".into(),
            cpus: 1,
            memory_mib: 512,
            files: String::new(),
            size_bytes: 1 << 28,
            failures: 0,
            created_at: 1_764_031_982,
        }
    }

    #[test]
    fn a_key_has_one_template_and_that_one_fails_twice_in_a_row() {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let one = template('a');
        store.change(|t| add(t, &one)).unwrap();
        let same = Template { id: "b".into(), ..one.clone() };
        assert_eq!(store.change(|t| add(t, &same)).unwrap_err().code, "store");
        assert_eq!(store.change(|t| all(t)).unwrap(), std::slice::from_ref(&one));
        let dropped = |failed| {
            store.change(|t| tried(t, &one.id, failed)).unwrap();
            store.change(|t| all(t)).unwrap()[0].is_dropped()
        };
        assert_eq!([true, false, true, true].map(dropped), [false, false, false, true]);
        store.change(|t| remove(t, &one.id)).unwrap();
        assert!(store.change(|t| all(t)).unwrap().is_empty());
    }
}
