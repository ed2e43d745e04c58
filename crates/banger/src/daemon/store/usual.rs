//! The table of usual times: how long each stage of a VM's start takes, by image and by the way it comes up.

use super::signed;
use crate::api::Fault;
use rusqlite::{Connection, named_params};

/// The time of a stage that did not take long counts as so much, in microseconds, where a longer one is weighed against it.
const FLOOR: u64 = 1000;

/// A way, a stage, and how long it usually takes, in microseconds.
pub type Usual = (String, String, u64);

/// Those of that image.
///
/// # Errors
/// The store's.
pub fn of(connection: &Connection, image: &str) -> Result<Vec<Usual>, Fault> {
    let mut statement = connection.prepare("SELECT way, stage, us FROM usual WHERE image = ?")?;
    let rows =
        statement.query_map([image], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?.unsigned_abs())))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A stage took so long. A quarter of it counts, of one that took more than twice the usual time no more than that: what
/// happens once is not usual.
///
/// # Errors
/// The store's.
pub fn took(connection: &Connection, image: &str, (way, stage, us): (&str, &str, u64)) -> Result<(), Fault> {
    let sql = "INSERT INTO usual (image, way, stage, us) VALUES (:image, :way, :stage, :us)
               ON CONFLICT DO UPDATE SET us = us + (min(excluded.us, 2 * us + :floor) - us) / 4";
    connection.prepare(sql)?.execute(named_params! {
        ":image": image, ":way": way, ":stage": stage, ":us": signed(us), ":floor": signed(FLOOR),
    })?;
    Ok(())
}

/// The image is gone.
///
/// # Errors
/// The store's.
pub fn forget(connection: &Connection, image: &str) -> Result<(), Fault> {
    connection.execute("DELETE FROM usual WHERE image = ?", [image])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::Store;
    use std::path::Path;

    #[test]
    fn what_is_usual_follows_what_happens_and_not_what_happens_once() {
        let store = Store::open(Path::new(":memory:")).unwrap();
        let took = |way, us| store.change(|t| took(t, "dev", (way, "boot", us))).unwrap();
        let usual = |way: &str| {
            let all = store.change(|t| of(t, "dev")).unwrap();
            all.into_iter().find(|(known, ..)| known == way).map(|(_, stage, us)| (stage, us))
        };
        assert_eq!(usual("cold"), None);
        took("cold", 1_600_000);
        took("warm", 40_000);
        assert_eq!(usual("cold"), Some(("boot".into(), 1_600_000)));
        took("cold", 90_000_000);
        let (_, once) = usual("cold").unwrap();
        assert!((1_900_000..2_100_000).contains(&once), "{once}");
        (0..8).for_each(|_| took("cold", 1_600_000));
        let (_, again) = usual("cold").unwrap();
        assert!((1_600_000..1_650_000).contains(&again), "{again}");
        // A machine that has become slower is believed, soon.
        (0..24).for_each(|_| took("cold", 8_000_000));
        let (_, slower) = usual("cold").unwrap();
        assert!((7_500_000..=8_000_000).contains(&slower), "{slower}");
        assert_eq!(usual("warm"), Some(("boot".into(), 40_000)), "another way");
        took("none", 0);
        (0..40).for_each(|_| took("none", 9_000));
        assert!(usual("none").unwrap().1 > 8_000, "one that took nothing is no end");
        assert!(store.change(|t| of(t, "other")).unwrap().is_empty());
        store.change(|t| forget(t, "dev")).unwrap();
        assert!(store.change(|t| of(t, "dev")).unwrap().is_empty());
    }
}
