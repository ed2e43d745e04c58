//! The table of templates.

use super::signed;
use crate::api::Fault;
use rusqlite::{Connection, OptionalExtension, Row, named_params};
use std::path::PathBuf;

/// So often one after the other it may fail, and so often its making.
const FAILURES: u32 = 2;
/// So many keys that failed are remembered.
const REMEMBERED: u32 = 64;

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
    /// Whether the image's own init is the first process.
    pub init: bool,
    /// Its files, as they were when they were whole.
    pub files: String,
    /// What it takes on the disk.
    pub size_bytes: u64,
    /// How often one after the other it could not be gone on from.
    pub failures: u32,
    /// Higher than that of all which were gone on from before it.
    pub used: u64,
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

/// Writes a new row; none was gone on from later.
///
/// # Errors
/// The store's; there is one of that id or key.
pub fn add(connection: &Connection, template: &Template) -> Result<(), Fault> {
    let path = |path: &PathBuf| path.to_string_lossy().into_owned();
    let columns = "id, key, parts, image, image_digest, root_path, kernel, kernel_path, initrd_path, cpus, memory_mib, \
                   init, files, size_bytes, failures, used, created_at";
    let values = ":id, :key, :parts, :image, :image_digest, :root_path, :kernel, :kernel_path, :initrd_path, :cpus, \
                  :memory_mib, :init, :files, :size_bytes, :failures, (SELECT ifnull(max(used), 0) + 1 FROM templates), :created_at";
    connection.prepare(&format!("INSERT INTO templates ({columns}) VALUES ({values})"))?.execute(named_params! {
        ":id": template.id, ":key": template.key, ":parts": template.parts, ":image": template.image,
        ":image_digest": template.digest, ":root_path": path(&template.root), ":kernel": template.kernel,
        ":kernel_path": path(&template.vmlinux), ":initrd_path": path(&template.initrd), ":cpus": template.cpus,
        ":memory_mib": signed(template.memory_mib), ":init": template.init, ":files": template.files, ":size_bytes": signed(template.size_bytes),
        ":failures": template.failures, ":created_at": signed(template.created_at),
    })?;
    Ok(())
}

/// Writes down that it failed, as one that had failed `seen` times: what several VMs find at once counts once. What failed too often
/// is not made again unasked.
///
/// # Errors
/// The store's.
pub fn failed(connection: &Connection, id: &str, seen: u32) -> Result<(), Fault> {
    let change = "UPDATE templates SET failures = failures + 1 WHERE id = ? AND failures = ?";
    if connection.prepare(change)?.execute((id, seen))? == 0 {
        return Ok(());
    }
    let given_up = connection
        .prepare("SELECT key FROM templates WHERE id = ? AND failures >= ?")?
        .query_row((id, FAILURES), |row| row.get::<_, String>(0))
        .optional()?;
    given_up.map_or(Ok(()), |key| key_failed(connection, &key, FAILURES))
}

/// Writes down that a VM went on from it. Nothing is written where nothing changes: for the one that was the last before, too.
///
/// # Errors
/// The store's.
pub fn used(connection: &Connection, id: &str) -> Result<(), Fault> {
    let change = "UPDATE templates SET failures = 0, used = (SELECT max(used) + 1 FROM templates)
                  WHERE id = ? AND (failures <> 0 OR used < (SELECT max(used) FROM templates))";
    connection.prepare(change)?.execute([id])?;
    Ok(())
}

/// Writes down that templates of that key failed `times` more.
///
/// # Errors
/// The store's.
pub fn key_failed(connection: &Connection, key: &str, times: u32) -> Result<(), Fault> {
    let change = "INSERT INTO template_failures (key, failures) VALUES (:key, :times)
                  ON CONFLICT (key) DO UPDATE SET failures = failures + :times";
    connection.prepare(change)?.execute(named_params! { ":key": key, ":times": times })?;
    let forget = "DELETE FROM template_failures WHERE number <= (SELECT max(number) FROM template_failures) - ?";
    connection.prepare(forget)?.execute([REMEMBERED])?;
    Ok(())
}

/// Forgets that.
///
/// # Errors
/// The store's.
pub fn key_is_good(connection: &Connection, key: &str) -> Result<(), Fault> {
    connection.prepare("DELETE FROM template_failures WHERE key = ?")?.execute([key])?;
    Ok(())
}

/// Whether templates of that key failed too often to be made unasked.
///
/// # Errors
/// The store's.
pub fn is_given_up(connection: &Connection, key: &str) -> Result<bool, Fault> {
    let mut statement = connection.prepare("SELECT 1 FROM template_failures WHERE key = ? AND failures >= ?")?;
    Ok(statement.exists((key, FAILURES))?)
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
        init: row.get("init")?,
        files: row.get("files")?,
        size_bytes: number("size_bytes")?,
        failures: row.get("failures")?,
        used: number("used")?,
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
            init: false,
            files: String::new(),
            size_bytes: 1 << 28,
            failures: 0,
            used: 1,
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
        let now = || store.change(|t| all(t)).unwrap().remove(0);
        let dropped = |has_failed| {
            let seen = now().failures;
            // Two that went on from it at once.
            for _ in 0..2 {
                store.change(|t| if has_failed { failed(t, &one.id, seen) } else { used(t, &one.id) }).unwrap();
            }
            now().is_dropped()
        };
        assert_eq!([true, false, true].map(dropped), [false, false, false]);
        assert!(!store.change(|t| is_given_up(t, &one.key)).unwrap());
        assert!(dropped(true) && store.change(|t| is_given_up(t, &one.key)).unwrap());
        store.change(|t| remove(t, &one.id)).unwrap();
        assert!(store.change(|t| all(t)).unwrap().is_empty());
    }

    #[test]
    fn the_last_one_has_the_highest_number_whatever_the_clock_says() {
        let store = Store::open(Path::new(":memory:")).unwrap();
        // Each is older than the one before: the clock was set back.
        for (digit, created_at) in [('a', 300), ('b', 200), ('c', 100)] {
            store.change(|t| add(t, &Template { created_at, ..template(digit) })).unwrap();
        }
        let order = || {
            let mut all = store.change(|t| all(t)).unwrap();
            all.sort_by_key(|template| template.used);
            all.iter().map(|template| template.id.chars().last().unwrap()).collect::<String>()
        };
        assert_eq!(order(), "abc");
        store.change(|t| used(t, &template('a').id)).unwrap();
        assert_eq!(order(), "bca");
        let changes = || store.change(|t| Ok(t.total_changes())).unwrap();
        let before = changes();
        store.change(|t| used(t, &template('a').id)).unwrap();
        assert_eq!((order().as_str(), changes()), ("bca", before), "nothing is written where nothing changes");
    }

    #[test]
    fn a_key_that_failed_twice_is_given_up_until_it_is_good_or_forgotten() {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let fail = |key: &str| store.change(|t| key_failed(t, key, 1)).unwrap();
        let given_up = |key: &str| store.change(|t| is_given_up(t, key)).unwrap();
        fail("a");
        assert!(!given_up("a"));
        fail("a");
        assert!(given_up("a") && !given_up("b"));
        store.change(|t| key_is_good(t, "a")).unwrap();
        assert!(!given_up("a"));
        fail("a");
        fail("a");
        (0..REMEMBERED).for_each(|n| fail(&n.to_string()));
        assert!(!given_up("a"), "others came");
        fail("0");
        assert!(given_up("0"));
    }
}
