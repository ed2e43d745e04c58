//! Images and kernels: made, listed, removed, and what a VM is started from.

mod make;
mod promote;
mod show;
pub(crate) mod template;

pub(crate) use make::{Incoming, KernelFrom, import, import_kernel};
pub(crate) use promote::promote;
pub(crate) use show::{about, base, list, one, rm, sweep};

use super::error::exit;
use super::store::assets::{self, Asset, Kind};
use crate::api::Fault;
use crate::image::error;
use crate::image::store::Store;
use crate::near::nearest;
use rusqlite::Connection;
use std::sync::Mutex;

/// The store of files, and whose turn it is to make one.
#[derive(Debug)]
pub struct Images {
    /// The files.
    pub(crate) store: Store,
    /// Images are made one after the other: each takes the disk and the processors for itself.
    turn: Mutex<()>,
    /// Of templates.
    pub(crate) templates: template::Templates,
}

impl Images {
    /// Opens the store below the state directory, and removes what was left half-made.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(state: &std::path::Path) -> Result<Images, Fault> {
        Ok(Images { store: Store::open(state)?, turn: Mutex::new(()), templates: template::Templates::default() })
    }
}

impl From<error::Error> for Fault {
    fn from(error: error::Error) -> Fault {
        let status = match error.kind {
            error::Kind::Request => exit::USAGE,
            error::Kind::Machine => exit::MACHINE,
            error::Kind::Room => exit::ROOM,
            error::Kind::Interrupted => exit::INTERRUPTED,
            error::Kind::Program | error::Kind::Mirror | error::Kind::Input | error::Kind::File => exit::FAILED,
        };
        let fault = Fault::new(error.kind.code(), status, error.what);
        let fault = match error.why.as_deref() {
            // A program's last lines, each marked as such.
            Some(why) if why.starts_with("    | ") => {
                let lines: Vec<&str> = why.lines().map(|line| line.trim_start_matches("    | ")).collect();
                fault.why(format!("its last lines:\n{}", lines.join("\n")))
            }
            Some(why) => fault.why(why),
            None => fault,
        };
        error.fix.into_iter().fold(fault, Fault::fix)
    }
}

/// Refuses what is no name of an image or a kernel: `[a-z0-9][a-z0-9._-]{0,63}`.
pub(crate) fn check_name(kind: Kind, name: &str) -> Result<(), Fault> {
    let is_plain = |name: &str| {
        (1..=64).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
    };
    if is_plain(name) {
        return Ok(());
    }
    let message = format!("{} can't be the name of an {}", wire::code::shown(name), kind.name());
    let fault = Fault::new("bad_name", exit::USAGE, message);
    let lower = name.to_ascii_lowercase();
    let fault = if is_plain(&lower) { fault.fix(lower) } else { fault };
    Err(fault.fix("1 to 64 of a-z, 0-9, dot, - and _, a letter or digit first"))
}

/// The one that is meant: by its name, else by 4 or more digits of its digest where only one fits.
pub(crate) fn find(connection: &Connection, kind: Kind, reference: &str) -> Result<Asset, Fault> {
    if let Some(asset) = assets::by_name(connection, kind, reference)? {
        return Ok(asset);
    }
    let all = assets::all(connection, kind)?;
    let digits = reference.strip_prefix("sha256:").unwrap_or(reference);
    if (4..=64).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        let mut fitting = all.iter().filter(|asset| asset.digest.starts_with(&digits.to_ascii_lowercase()));
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => return Ok(one.clone()),
            (Some(one), Some(two)) => {
                let message = format!("{digits} is the beginning of several digests");
                return Err(Fault::new("ambiguous", exit::MISSING, message)
                    .fix(format!("{} or {}: give the name", one.name, two.name)));
            }
            _ => {}
        }
    }
    let what = kind.name();
    let fault = Fault::new(
        if kind == Kind::Image { "no_such_image" } else { "no_such_kernel" },
        exit::MISSING,
        format!("there is no {what} {}", wire::code::shown(reference)),
    );
    Err(match nearest(reference, all.iter().map(|asset| asset.name.as_str())) {
        Some(near) => fault.fix(format!("{near} is close; banger {what} list shows what is here")),
        None if kind == Kind::Image && reference.contains(['/', '@', ':']) => {
            fault.fix(format!("banger image pull {}", crate::cli::line(reference)))
        }
        None => fault.fix(format!("banger {what} list shows what is here")),
    })
}

#[cfg(test)]
mod tests;
