//! `vm cp`: files into a guest, out of one, or from one to another.
//!
//! What comes out of a guest is made below one directory of the caller's choice, by `agent::copy`'s rules; the first part
//! of its names is ours to choose, so that a guest can't send other files than were asked for.

mod ends;
mod words;

use super::link::{self, Link};
use crate::api::{Fault, Stage, StageState};
use crate::cli::problem::Problem;
use crate::cli::progress::Progress;
use crate::cli::reach::Asked;
use crate::cli::size;
use agent::copy::{Copied, CopyError, Pack, Rules};
use agent::host::{self, CopyFailure, Failure};
use agent::protocol::{Get, Keep, Put, VERSION};
use clap::Args;
use ends::{End, Place, check, end, is_contents, source, split};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use words::{refine, tell};

#[derive(Args)]
pub(crate) struct Cp {
    /// Keep owners, by number, and all extended attributes, into a VM or between two; else user.* attributes are kept.
    #[arg(short, long)]
    archive: bool,
    /// Copy what a symbolic link leads to in its place.
    #[arg(short = 'L', long)]
    dereference: bool,
    /// Whose the files become in the VM: a user and a group of its own, by name or number [default: root].
    #[arg(long, value_name = "USER[:GROUP]")]
    owner: Option<String>,
    /// Leave what is there already as it is.
    #[arg(long)]
    no_clobber: bool,
    /// Files and directories: a path here, NAME:PATH in a VM, DIR/. for what is in DIR; - is a tar on standard input.
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<OsString>,
    /// Where to: a path here, NAME:PATH in a VM; - is a tar on standard output.
    #[arg(value_name = "DESTINATION")]
    destination: OsString,
    #[command(flatten)]
    asked: Asked,
}

/// How often the line with what has come is drawn anew.
const TICK: Duration = Duration::from_millis(100);

pub(super) fn cp(cp: &Cp) -> Result<(), Problem> {
    let begun = Instant::now();
    let ends: Vec<End> = cp.sources.iter().map(|text| end(text)).collect::<Result<_, _>>()?;
    let to = end(&cp.destination)?;
    check(cp, &ends, &to)?;
    let copy = Copy { cp, progress: Progress::begin(cp.asked.reach.progress(), ""), begun };
    let mut all = Copied::default();
    match &to {
        End::Guest { vm, path } => copy.put_all(&ends, vm, path, &mut all)?,
        End::Here(path) => copy.get_all(&ends, path, &mut all)?,
        End::Stream => {
            if let [End::Guest { vm, path }] = ends.as_slice() {
                copy.onto_stream(vm, path, &mut all)?;
            }
        }
    }
    drop(copy);
    tell(cp, &all, begun.elapsed())
}

/// A copy under way.
struct Copy<'a> {
    cp: &'a Cp,
    progress: Progress,
    begun: Instant,
}

impl Copy<'_> {
    fn put_all(&self, from: &[End], vm: &str, path: &str, all: &mut Copied) -> Result<(), Problem> {
        let into = from.len() > 1 || path.ends_with('/');
        let here: Vec<&PathBuf> =
            from.iter().filter_map(|end| if let End::Here(path) = end { Some(path) } else { None }).collect();
        if !here.is_empty() {
            let sources = |top: &[u8]| here.iter().map(|path| source(path, top)).collect::<Vec<_>>();
            let contents = here.iter().any(|path| is_contents(path.as_os_str()));
            let put = |to: &str, into, top: &[u8]| {
                self.call(vm, path, |link, go_on| {
                    let pack = Pack::new(sources(top), self.cp.dereference);
                    host::put(&link.socket, self.put(to, into), pack, link.limits(), go_on)
                })
            };
            let mut done = put(path, into || contents, b"");
            if let (Err(problem), [_], Some((folder, name))) = (&done, here.as_slice(), split(path))
                && problem.is("no_such_file")
                && contents
            {
                // What is in one directory becomes another's content, which is made for it.
                done = put(folder, true, name.as_bytes());
            }
            add(all, done?);
        }
        for end in from {
            match end {
                End::Here(_) => {}
                End::Stream => {
                    let stdin = io::stdin();
                    let done = self.call(vm, path, |link, go_on| {
                        host::put_archive(&link.socket, self.put(path, into), stdin.as_fd(), link.limits(), go_on)
                    });
                    add(all, done?);
                }
                End::Guest { vm: other, path: there } => add(all, self.between(other, there, vm, path, into)?),
            }
        }
        Ok(())
    }

    fn get_all(&self, from: &[End], path: &Path, all: &mut Copied) -> Result<(), Problem> {
        for end in from {
            let End::Guest { vm, path: there } = end else { continue };
            let contents = is_contents(OsStr::new(there));
            let into = from.len() > 1 || path.as_os_str().as_bytes().ends_with(b"/");
            let place = Place::find(path, Path::new(there), contents, into)?;
            let done = self.call(vm, there, |link, go_on| {
                let (clobber, top) = (!self.cp.no_clobber, place.top.clone());
                let rules = Rules { clobber, top, keep: Keep::User, ..Rules::default() };
                let folder = place.folder.try_clone().map_err(Failure::Io)?;
                host::get(&link.socket, self.get(there), folder, rules, link.limits(), go_on)
            });
            if done.is_err()
                && let Some(made) = place.made
            {
                // Empty, or something of it is there: then it stays.
                let _ = fs::remove_dir(made);
            }
            add(all, done?);
        }
        Ok(())
    }

    fn onto_stream(&self, vm: &str, path: &str, all: &mut Copied) -> Result<(), Problem> {
        let mut stdout = io::stdout().lock();
        let done = self.call(vm, path, |link, go_on| {
            let take = |piece: &[u8]| stdout.write_all(piece).map_err(|error| at_stream(&error));
            host::get_archive(&link.socket, self.get(path), link.limits(), take, go_on)
        });
        match done {
            // A reader that has gone away had enough.
            Err(problem) if problem.is("stream_closed") => Ok(()),
            done => done.map(|copied| add(all, copied)),
        }
    }

    /// From one guest to another. Neither is believed: this end looks at what passes, and so does the other's agent.
    fn between(&self, vm: &str, path: &str, to: &str, place: &str, into: bool) -> Result<Copied, Problem> {
        let (reader, writer) = io::pipe().map_err(|error| Problem::of_fault(Fault::bug(error)))?;
        let into = into || is_contents(OsStr::new(path));
        let (sent, put) = std::thread::scope(|scope| {
            let sending = scope.spawn(move || {
                let mut writer = writer;
                self.call(vm, path, |link, go_on| {
                    let take = |piece: &[u8]| writer.write_all(piece).map_err(|error| at_stream(&error));
                    host::get_archive(&link.socket, self.get(path), link.limits(), take, go_on)
                })
            });
            let put = self.call(to, place, |link, go_on| {
                host::put_archive(&link.socket, self.put(place, into), reader.as_fd(), link.limits(), go_on)
            });
            drop(reader);
            (sending.join().unwrap_or_else(|_| Err(Problem::of_fault(Fault::bug("a copy panicked")))), put)
        });
        match (sent, put) {
            // That nobody took what came says less than why.
            (Err(problem), put) if problem.is("stream_closed") => put,
            (Err(problem), _) => Err(problem),
            (Ok(sent), put) => put.map(|put| Copied {
                left_out: put.left_out.saturating_add(sent.left_out),
                stripped: put.stripped.saturating_add(sent.stripped),
                listed: [sent.listed, put.listed].concat(),
                ..put
            }),
        }
    }

    /// One call of it; `about` is the path in the guest.
    fn call(
        &self,
        vm: &str,
        about: &str,
        mut make: impl FnMut(&Link, &mut dyn FnMut(u64) -> bool) -> Result<Copied, CopyFailure>,
    ) -> Result<Copied, Problem> {
        let about = format!("{vm}:{about}");
        self.stage(&about, StageState::Begun, 0);
        let mut told = Instant::now();
        let mut gone = 0;
        let mut go_on = |bytes| {
            gone = bytes;
            if told.elapsed() >= TICK {
                told = Instant::now();
                self.stage(&about, StageState::Note, bytes);
            }
            true
        };
        let done = link::call(&self.cp.asked.reach, vm, |link| make(link, &mut go_on), refine);
        self.stage(&about, StageState::Ended, gone);
        done
    }

    fn stage(&self, about: &str, state: StageState, bytes: u64) {
        let at_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let note = size::shown(bytes);
        self.progress.stage(&Stage { name: "copy".into(), state, at_us, about: about.into(), note, usual_us: None });
    }

    fn keep(&self) -> Keep {
        if self.cp.archive { Keep::All } else { Keep::User }
    }

    fn put(&self, to: &str, into: bool) -> Put {
        Put {
            v: VERSION,
            to: to.into(),
            into,
            owner: self.cp.owner.clone(),
            clobber: !self.cp.no_clobber,
            keep: self.keep(),
        }
    }

    fn get(&self, from: &str) -> Get {
        let contents = is_contents(OsStr::new(from));
        Get {
            v: VERSION,
            from: from.into(),
            follow: self.cp.dereference,
            contents,
            keep: self.keep(),
            leave: Vec::new(),
        }
    }
}

fn add(all: &mut Copied, one: Copied) {
    all.files += one.files;
    all.bytes += one.bytes;
    all.left_out = all.left_out.saturating_add(one.left_out);
    all.stripped = all.stripped.saturating_add(one.stripped);
    all.listed.extend(one.listed);
}

fn at_stream(error: &io::Error) -> CopyError {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    CopyError::File("write", b"the archive".to_vec(), errno)
}
