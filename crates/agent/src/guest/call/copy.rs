//! Files into this guest and out of it.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use agent::copy::{Copied, CopyError, Pack, Rules, Source, Unpack};
use agent::flow::{Receiver, Sender};
use agent::protocol::{
    ErrorBody, Frame, Get, Grant, Keep, Kind, MAX_LEAVE, ProtocolError, Put, encode, encode_json, stream,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::failed;
use super::job::Outcome;
use crate::guest::accounts;

/// Nothing more is made while this much waits for the host.
const BACKLOG: usize = 64 * 1024;
/// What is packed at once; a frame may hold a header and padding more.
const PIECE: usize = 32 * 1024;
/// The most bytes of the list of what was left out.
const MAX_LIST: usize = 12 * 1024;
/// The most bytes of an error's text.
const MAX_STEP: usize = 1024;

/// Files that come.
#[derive(Debug)]
pub(super) struct Putting {
    unpack: Option<Unpack>,
    keep: Keep,
    flow: Receiver,
    outcome: Option<Outcome>,
}

impl Putting {
    /// Finds the place.
    pub(super) fn new(put: &Put) -> Result<Self, ErrorBody> {
        let owner = match &put.owner {
            Some(text) => {
                let owner = accounts::owner(text);
                Some(owner.ok_or_else(|| failed("no_user", "owner", Errno::NOENT.raw_os_error()))?)
            }
            None if put.keep == Keep::All => None,
            None => Some((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())),
        };
        let to = Path::new(&put.to);
        if !to.is_absolute() {
            return Err(failed("failed", "path", Errno::INVAL.raw_os_error()));
        }
        let (place, top) = match open_directory(to) {
            Ok(place) => (place, None),
            Err(Errno::NOENT | Errno::NOTDIR) if !put.into => {
                let (Some(folder), Some(name)) = (to.parent(), to.file_name()) else {
                    return Err(failed("failed", "path", Errno::INVAL.raw_os_error()));
                };
                let folder = open_directory(folder).map_err(|errno| at_place(&put.to, errno))?;
                (folder, Some(name.as_bytes().to_vec()))
            }
            Err(errno) => return Err(at_place(&put.to, errno)),
        };
        let keep = put.keep;
        let rules = Rules { owner, keep, set_ids: true, clobber: put.clobber, limit: None, top };
        let unpack = Unpack::new(place, rules).map_err(|error| body(&error))?;
        Ok(Self { unpack: Some(unpack), keep, flow: Receiver::default(), outcome: None })
    }

    pub(super) fn frame(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        match (frame.kind, frame.stream) {
            (Kind::Data, stream::IN) => {
                self.flow.take(frame.payload.len())?;
                if let Some(Err(error)) = self.unpack.as_mut().map(|unpack| unpack.take(&frame.payload)) {
                    self.outcome = Some(Outcome::Failed(body(&error)));
                }
                if let Some(bytes) = self.flow.passed_on(frame.payload.len()) {
                    encode_json(out, Kind::Grant, stream::IN, &Grant { bytes });
                }
                Ok(())
            }
            (Kind::End, stream::IN) => {
                self.flow.end()?;
                let ended = self.unpack.take().map(Unpack::end);
                self.outcome = ended.map(|ended| match ended {
                    Ok(copied) => Outcome::Copied(told(copied, self.keep)),
                    Err(error) => Outcome::Failed(body(&error)),
                });
                Ok(())
            }
            _ => Err(ProtocolError::OutOfPlace),
        }
    }

    pub(super) fn outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }
}

/// Files that go.
#[derive(Debug)]
pub(super) struct Getting {
    pack: Pack,
    keep: Keep,
    held: Vec<u8>,
    flow: Sender,
    unwanted: bool,
    outcome: Option<Outcome>,
}

impl Getting {
    pub(super) fn new(get: &Get) -> Result<Self, ErrorBody> {
        let from = Path::new(&get.from);
        if !from.is_absolute() {
            return Err(failed("failed", "path", Errno::INVAL.raw_os_error()));
        }
        let name = if get.contents { None } else { from.file_name() };
        let path = if get.contents { from.join(".").into() } else { OsString::from(&get.from) };
        let source = Source { path, name: name.map(|name| name.as_bytes().to_vec()).unwrap_or_default() };
        let mut pack = Pack::new(vec![source], get.follow);
        pack.keep(get.keep);
        let bytes: usize = get.leave.iter().map(String::len).sum();
        if get.leave.len() > MAX_LEAVE.0 || bytes > MAX_LEAVE.1 {
            return Err(failed("failed", "leave", Errno::TOOBIG.raw_os_error()));
        }
        pack.leave(get.leave.iter().map(|name| name.clone().into_bytes()));
        Ok(Self { pack, keep: get.keep, held: Vec::new(), flow: Sender::default(), unwanted: false, outcome: None })
    }

    pub(super) fn frame(&mut self, frame: &Frame) -> Result<(), ProtocolError> {
        match (frame.kind, frame.stream) {
            (Kind::Grant, stream::OUT) => self.flow.grant(frame.json::<Grant>()?.bytes),
            (Kind::Gone, stream::OUT) => {
                self.unwanted = true;
                Ok(())
            }
            _ => Err(ProtocolError::OutOfPlace),
        }
    }

    /// One piece, where the host wants one.
    pub(super) fn produce(&mut self, out: &mut Vec<u8>) {
        if out.len() >= BACKLOG || self.flow.room() == 0 || self.unwanted || self.outcome.is_some() {
            return;
        }
        if self.held.is_empty()
            && let Err(error) = self.pack.fill(&mut self.held, PIECE)
        {
            self.outcome = Some(Outcome::Failed(body(&error)));
            return;
        }
        let piece = self.held.len().min(self.flow.room()).min(PIECE);
        if piece > 0 {
            encode(out, Kind::Data, stream::OUT, &self.held[..piece]);
            self.held.drain(..piece);
            self.flow.sent(piece);
        } else if let Some(copied) = self.pack.copied() {
            encode(out, Kind::End, stream::OUT, &[]);
            self.outcome = Some(Outcome::Copied(told(copied, self.keep)));
        }
    }

    pub(super) fn outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }
}

/// What the host is told: names only where it asked for them, and no more than a frame holds.
fn told(mut copied: Copied, keep: Keep) -> Copied {
    copied.list_at_most(if keep == Keep::Plain { 0 } else { MAX_LIST });
    copied
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn at_place(path: &str, errno: Errno) -> ErrorBody {
    body(&CopyError::File("open", path.as_bytes().to_vec(), errno))
}

fn body(error: &CopyError) -> ErrorBody {
    let text = error.to_string();
    let end = text.floor_char_boundary(MAX_STEP);
    failed("failed", &text[..end], error.errno())
}
