//! Calls to a VM's guest for a work tree: files in and out, and small scripts.

use super::link::{self, Link};
use crate::api::Fault;
use crate::cli::problem::Problem;
use crate::cli::reach::Reach;
use agent::client::{Client, Output, Program};
use agent::copy::{Copied, Pack, Rules, Source};
use agent::host::{CopyFailure, Failure, get, put};
use agent::protocol::{Exit, Get, Keep, Put, VERSION};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// A script that reads a tree may be silent for so long.
const SILENCE: Duration = Duration::from_secs(600);
/// The most of a script's words.
const WORDS: usize = 256 << 10;
/// The most of a refusal's.
const SHOWN: usize = 300;

/// A VM that runs.
pub(super) struct Guest<'a> {
    pub(super) reach: &'a Reach,
    pub(super) vm: &'a str,
}

impl Guest<'_> {
    /// Copies the content of the folder `from` into the guest's directory `to`.
    pub(super) fn put(&self, from: &Path, to: &str) -> Result<Copied, Problem> {
        let make = |link: &Link| {
            let pack = Pack::new(vec![Source { path: from.join(".").into(), name: Vec::new() }], false);
            let asked = Put { v: VERSION, to: to.to_owned(), into: true, owner: None, clobber: true, keep: Keep::User };
            put(&link.socket, asked, pack, link.limits(), |_| true)
        };
        link::call(self.reach, self.vm, make, |_, failure| self.refused("ship the work tree to", to, failure))
    }

    /// Copies the content of the guest's directory `from` into the folder `to`, but for the directories of those names.
    pub(super) fn get(&self, from: &str, to: &Path, leave: &[String]) -> Result<Copied, Problem> {
        let place = File::open(to).map_err(|error| Problem::of_fault(Fault::file("opening", to, &error)))?;
        let make = |link: &Link| {
            let (from, leave) = (from.to_owned(), leave.to_vec());
            let asked = Get { v: VERSION, from, follow: false, contents: true, keep: Keep::User, leave };
            let rules = Rules { clobber: true, ..Rules::default() };
            let place = place.try_clone().map_err(Failure::Io)?;
            get(&link.socket, asked, place.into(), rules, link.limits(), |_| true)
        };
        link::call(self.reach, self.vm, make, |_, failure| self.refused("fetch the work tree from", from, failure))
    }

    /// Runs a script of the guest's shell as its root; its exit status and its words.
    pub(super) fn script(&self, script: &str) -> Result<(u8, Output), Problem> {
        let make = |link: &Link| {
            let stream = link.socket.try_clone().map_err(Failure::Io)?;
            stream.set_read_timeout(Some(SILENCE)).map_err(Failure::Io)?;
            let args = ["/bin/sh", "-c", script];
            let program = Program { args: &args, env: &["LC_ALL=C"], user: "root", cwd: "/", most: WORDS };
            let out = Client::new(stream)?.exec(program)?;
            let status = match out.exit {
                Exit::Code(code) => code.code,
                Exit::Signal(_) => u8::MAX,
            };
            Ok((status, out))
        };
        link::call(self.reach, self.vm, make, |_, _| None)
    }

    /// What the guest says of its files.
    fn refused(&self, doing: &str, at: &str, failure: &CopyFailure) -> Option<Problem> {
        let CopyFailure::Call(Failure::Refused(body)) = failure else { return None };
        let step: String = body.step.chars().take(SHOWN).collect();
        Some(Problem::new("copy_failed", format!("could not {doing} {}:{at}", self.vm)).why(step))
    }
}
