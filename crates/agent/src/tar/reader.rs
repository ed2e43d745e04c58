//! Entries out of bytes.

use super::field::{self, decimal, record, text};
use super::map::Map;
use super::{BLOCK, Entry, Extent, Extra, Kind, MAX_NAME, MAX_PAX, TarError, fits};

/// What comes out of an archive, in its order: for each entry its head, its content in pieces, and its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// An entry begins.
    Entry(Entry),
    /// A piece of its content, and where in the file it belongs.
    Data(u64, &'a [u8]),
    /// All of its content has come.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many blocks of zeros have come.
    Header(u8),
    /// What is about the next entry, so many bytes and those of which they are padding.
    Records {
        left: u64,
        padding: u64,
        used: Use,
    },
    /// The map of a file with holes; how much content there is with it.
    Map(u64),
    /// What is left of a content, and of how much.
    Content(u64, u64),
    Ended,
}

/// What records before an entry are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Pax,
    /// For all entries: nothing here.
    Skip,
    /// GNU's form of before: a name, a link's target.
    Name,
    Target,
}

/// What was said of the next entry.
#[derive(Debug, Default)]
struct Records {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    owner: (Option<u32>, Option<u32>),
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// What was said of a file with holes.
#[derive(Debug, Default)]
struct Sparse {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// In one of the forms of before.
    is_older: bool,
}

/// An archive on its way. It holds a block and one entry's records, or the map of its holes, at most.
#[derive(Debug)]
pub struct Reader {
    state: State,
    held: Vec<u8>,
    padding: u64,
    records: Records,
    /// A file with holes whose map is under way.
    sparse: Option<Box<(Entry, Map)>>,
    /// What of a content is still to come, and where it belongs; the last one first.
    extents: Vec<Extent>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            state: State::Header(0),
            held: Vec::new(),
            padding: 0,
            records: Records::default(),
            sparse: None,
            extents: Vec::new(),
        }
    }
}

impl Reader {
    /// Takes a first part of `bytes`, which it shortens, and gives what that completed. `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`TarError`]; nothing more is to be taken then.
    pub fn take<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Item<'a>>, TarError> {
        loop {
            let skip = self.padding.min(bytes.len() as u64);
            self.padding -= skip;
            *bytes = &bytes[skip as usize..];
            if self.padding > 0 {
                return Ok(None);
            }
            match self.state {
                State::Content(0, all) => {
                    self.state = State::Header(0);
                    self.padding = all.next_multiple_of(BLOCK as u64) - all;
                    return Ok(Some(Item::Done));
                }
                State::Content(left, all) => {
                    let Some(extent) = self.extents.last_mut() else { return Err(TarError::Sparse) };
                    if extent.length == 0 {
                        self.extents.pop();
                        continue;
                    }
                    let piece = cut(bytes, extent.length);
                    if piece.is_empty() {
                        return Ok(None);
                    }
                    let (at, length) = (extent.at, piece.len() as u64);
                    *extent = Extent { at: at + length, length: extent.length - length };
                    self.state = State::Content(left - length, all);
                    return Ok(Some(Item::Data(at, piece)));
                }
                State::Map(stored) => {
                    let Some(sparse) = &mut self.sparse else { return Err(TarError::Sparse) };
                    if !sparse.1.take(bytes)? {
                        return Ok(None);
                    }
                    return self.mapped(stored).map(|entry| Some(Item::Entry(entry)));
                }
                State::Records { left: 0, padding, used } => {
                    let held = std::mem::take(&mut self.held);
                    self.recorded(&held, used)?;
                    (self.state, self.padding) = (State::Header(0), padding);
                }
                State::Records { left, padding, used } => {
                    let piece = cut(bytes, left);
                    if piece.is_empty() {
                        return Ok(None);
                    }
                    self.held.extend_from_slice(piece);
                    self.state = State::Records { left: left - piece.len() as u64, padding, used };
                }
                State::Header(zeros) => {
                    let piece = cut(bytes, (BLOCK - self.held.len()) as u64);
                    self.held.extend_from_slice(piece);
                    if self.held.len() < BLOCK {
                        return Ok(None);
                    }
                    let held = std::mem::take(&mut self.held);
                    let block = held.first_chunk().ok_or(TarError::Header)?;
                    if let Some(entry) = self.header(block, zeros)? {
                        return Ok(Some(Item::Entry(entry)));
                    }
                }
                // What pads an archive to the size of a tape's record.
                State::Ended if bytes.iter().all(|byte| *byte == 0) => {
                    *bytes = &[];
                    return Ok(None);
                }
                State::Ended => return Err(TarError::AfterEnd),
            }
        }
    }

    /// Whether the archive's end has come.
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    fn header(&mut self, block: &[u8; BLOCK], zeros: u8) -> Result<Option<Entry>, TarError> {
        if block.iter().all(|byte| *byte == 0) {
            self.state = if zeros == 0 { State::Header(1) } else { State::Ended };
            return Ok(None);
        }
        // Both forms that are in use: POSIX's, and GNU's of before.
        let is_tar = block[257..263] == *b"ustar\0" || block[257..265] == *b"ustar  \0";
        if zeros > 0 || !is_tar || !field::sum_is_right(block) {
            return Err(TarError::Header);
        }
        let size = number(&block[124..136])?;
        let used = match block[156] {
            b'x' => Some(Use::Pax),
            b'g' => Some(Use::Skip),
            b'L' => Some(Use::Name),
            b'K' => Some(Use::Target),
            _ => None,
        };
        let Some(used) = used else { return self.entry(block, size) };
        if size > MAX_PAX as u64 {
            return Err(TarError::Pax);
        }
        self.state = State::Records { left: size, padding: size.next_multiple_of(BLOCK as u64) - size, used };
        Ok(None)
    }

    fn recorded(&mut self, held: &[u8], used: Use) -> Result<(), TarError> {
        match used {
            Use::Pax => return read_records(held, &mut self.records),
            Use::Skip => {}
            Use::Name => self.records.name = Some(text(held).to_vec()),
            Use::Target => self.records.target = Some(text(held).to_vec()),
        }
        Ok(())
    }

    /// What a header begins: an entry, or the map that has to come before it can be told.
    fn entry(&mut self, block: &[u8; BLOCK], size: u64) -> Result<Option<Entry>, TarError> {
        let records = std::mem::take(&mut self.records);
        let has_holes = records.sparse.is_one()?;
        let target = || records.target.unwrap_or_else(|| text(&block[157..257]).to_vec());
        let kind = match block[156] {
            b'0' | 0 => Kind::File(records.size.unwrap_or(size)),
            b'5' => Kind::Directory,
            b'2' => Kind::Symlink(target()),
            b'1' => Kind::Hardlink(target()),
            b'3' | b'4' | b'6' => Kind::Other,
            b'S' => return Err(TarError::Sparse),
            _ => return Err(TarError::Kind),
        };
        let content = match kind {
            Kind::File(size) => size,
            _ if size == 0 && !has_holes => 0,
            _ => return Err(TarError::Header),
        };
        let name = records.sparse.name.or(records.name).unwrap_or_else(|| field::name(block));
        let long = matches!(&kind, Kind::Symlink(to) | Kind::Hardlink(to) if to.len() > MAX_NAME || to.contains(&0));
        if long || name.len() > MAX_NAME {
            return Err(TarError::Name);
        }
        let id = |said: Option<u32>, field: &[u8]| match said {
            Some(id) => Ok(id),
            None => u32::try_from(number(field)?).map_err(|_| TarError::Header),
        };
        let owner = (id(records.owner.0, &block[108..116])?, id(records.owner.1, &block[116..124])?);
        let extra = Extra { owner, attributes: records.attributes, extents: None };
        let mode = (number(&block[100..108])? & 0o7777) as u32;
        let mut entry = Entry { name, kind, mode, mtime: number(&block[136..148])?, extra };
        if has_holes {
            entry.kind = Kind::File(records.sparse.size.ok_or(TarError::Sparse)?);
            self.sparse = Some(Box::new((entry, Map::default())));
            self.state = State::Map(content);
            return Ok(None);
        }
        self.extents = vec![Extent { at: 0, length: content }];
        self.state = State::Content(content, content);
        Ok(Some(entry))
    }

    /// The entry whose map has come; its content follows.
    fn mapped(&mut self, stored: u64) -> Result<Entry, TarError> {
        let sparse = self.sparse.take().ok_or(TarError::Sparse)?;
        let (mut entry, map) = *sparse;
        let Kind::File(size) = entry.kind else { return Err(TarError::Sparse) };
        let (extents, took) = map.extents(size, stored)?;
        self.extents = extents.iter().rev().copied().collect();
        entry.extra.extents = Some(extents);
        self.state = State::Content(stored - took, stored - took);
        Ok(entry)
    }
}

impl Sparse {
    /// Whether a file has holes, in the one form that is read.
    fn is_one(&self) -> Result<bool, TarError> {
        match (self.major, self.minor) {
            _ if self.is_older => Err(TarError::Sparse),
            (None, None) => Ok(false),
            (Some(1), Some(0)) => Ok(true),
            _ => Err(TarError::Sparse),
        }
    }
}

/// The first part of `bytes`, of at most so many.
fn cut<'a>(bytes: &mut &'a [u8], most: u64) -> &'a [u8] {
    let (piece, rest) = bytes.split_at(most.min(bytes.len() as u64) as usize);
    *bytes = rest;
    piece
}

/// A number that leaves room to reckon with.
fn number(field: &[u8]) -> Result<u64, TarError> {
    field::number(field).filter(|number| *number < 1 << 62).ok_or(TarError::Header)
}

/// `LENGTH KEY=VALUE\n`, each. What isn't known is for others.
fn read_records(mut records: &[u8], out: &mut Records) -> Result<(), TarError> {
    let size = |value: &[u8]| decimal(value).filter(|n| *n < 1 << 62).ok_or(TarError::Pax);
    let id = |value: &[u8]| decimal(value).and_then(|id| u32::try_from(id).ok()).ok_or(TarError::Pax);
    while !records.is_empty() {
        let (key, value) = record(&mut records).ok_or(TarError::Pax)?;
        match key {
            b"path" => out.name = Some(value.to_vec()),
            b"linkpath" => out.target = Some(value.to_vec()),
            b"size" => out.size = Some(size(value)?),
            b"uid" => out.owner.0 = Some(id(value)?),
            b"gid" => out.owner.1 = Some(id(value)?),
            b"GNU.sparse.major" => out.sparse.major = Some(size(value)?),
            b"GNU.sparse.minor" => out.sparse.minor = Some(size(value)?),
            b"GNU.sparse.name" => out.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" => out.sparse.size = Some(size(value)?),
            b"GNU.sparse.size" | b"GNU.sparse.map" | b"GNU.sparse.numblocks" => out.sparse.is_older = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    attribute(&name_of(name), value, out)?;
                }
            }
        }
    }
    Ok(())
}

/// Adds an attribute; one of the same name takes its place.
fn attribute(name: &[u8], value: &[u8], out: &mut Records) -> Result<(), TarError> {
    out.attributes.retain(|(there, _)| there != name);
    if name.contains(&0) || !fits(&out.attributes, name, value) {
        return Err(TarError::Pax);
    }
    out.attributes.push((name.to_vec(), value.to_vec()));
    Ok(())
}

/// An attribute's name out of its key, where `=` and `%` are written otherwise.
fn name_of(mut key: &[u8]) -> Vec<u8> {
    let mut name = Vec::new();
    while let [first, rest @ ..] = key {
        let (byte, taken) = match key {
            [b'%', b'3', b'D', ..] => (b'=', 3),
            [b'%', b'2', b'5', ..] => (b'%', 3),
            _ => (*first, 1),
        };
        name.push(byte);
        key = &rest[taken - 1..];
    }
    name
}
