//! Headers.

use super::{BLOCK, Entry, Extent, Kind, MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, MAX_PART};

/// What an octal field of 12 bytes holds.
const MAX_OCTAL: u64 = (1 << 33) - 1;
/// What one of 8 bytes holds.
const MAX_ID: u32 = (1 << 21) - 1;
const NAME: usize = 100;

/// Appends an entry's header, with pax records before it where the old form has no room, and the map of a file with holes
/// behind it. What follows is its content: [`Entry::stored`] bytes, and their [`padding`].
pub fn header(entry: &Entry, out: &mut Vec<u8>) {
    let map = entry.extra.extents.as_deref().map(map).unwrap_or_default();
    let (flag, size, target): (u8, u64, &[u8]) = match &entry.kind {
        Kind::File(_) => (b'0', map.len() as u64 + entry.stored(), b""),
        Kind::Directory => (b'5', 0, b""),
        Kind::Symlink(target) => (b'2', 0, target),
        Kind::Hardlink(target) => (b'1', 0, target),
        Kind::Other => (b'6', 0, b""),
    };
    let mut records = Vec::new();
    let is_sparse = if let (Kind::File(size), Some(_)) = (&entry.kind, &entry.extra.extents) {
        record(b"GNU.sparse.major", b"1", &mut records);
        record(b"GNU.sparse.minor", b"0", &mut records);
        record(b"GNU.sparse.name", &entry.name, &mut records);
        record(b"GNU.sparse.realsize", size.to_string().as_bytes(), &mut records);
        true
    } else {
        false
    };
    if entry.name.len() > NAME && !is_sparse {
        record(b"path", &entry.name, &mut records);
    }
    if target.len() > NAME {
        record(b"linkpath", target, &mut records);
    }
    if size > MAX_OCTAL {
        record(b"size", size.to_string().as_bytes(), &mut records);
    }
    let (uid, gid) = entry.extra.owner;
    for (key, id) in [(b"uid", uid), (b"gid", gid)] {
        if id > MAX_ID {
            record(key, id.to_string().as_bytes(), &mut records);
        }
    }
    for (name, value) in &entry.extra.attributes {
        record(&attribute(name), value, &mut records);
    }
    if !records.is_empty() {
        out.extend(block(b"pax", b'x', 0o600, records.len() as u64, 0, b"", (0, 0)));
        out.extend_from_slice(&records);
        out.extend(padding(records.len() as u64));
    }
    let name = if is_sparse { beside(&entry.name) } else { entry.name.clone() };
    out.extend(block(&name, flag, entry.mode, size.min(MAX_OCTAL), entry.mtime, target, (uid, gid)));
    out.extend(map);
}

/// Whether one more attribute, of so many bytes, is still within what a reader takes.
pub fn fits(attributes: &[(Vec<u8>, Vec<u8>)], name: &[u8], value: &[u8]) -> bool {
    let bytes: usize = attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    let is_name = !name.is_empty() && name.len() <= MAX_PART;
    is_name && attributes.len() < MAX_ATTRIBUTES && bytes + name.len() + value.len() <= MAX_ATTRIBUTE_BYTES
}

/// What follows so many bytes of content, up to the next block.
pub fn padding(bytes: u64) -> Vec<u8> {
    vec![0; (bytes.next_multiple_of(BLOCK as u64) - bytes) as usize]
}

/// The archive's end.
pub fn trailer() -> [u8; 2 * BLOCK] {
    [0; 2 * BLOCK]
}

/// How many extents, then each one's beginning and length, a line each, up to the next block (GNU tar's manual, "Storing
/// Sparse Files": PAX format, version 1.0).
fn map(extents: &[Extent]) -> Vec<u8> {
    let mut out = format!("{}\n", extents.len()).into_bytes();
    for extent in extents {
        out.extend_from_slice(format!("{}\n{}\n", extent.at, extent.length).as_bytes());
    }
    out.extend(padding(out.len() as u64));
    out
}

/// The name that a reader who knows no holes gives such a file.
fn beside(name: &[u8]) -> Vec<u8> {
    let last = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    [b"GNUSparseFile.0/", last].concat()
}

/// A record's key for an attribute. A key ends at its `=`: GNU tar's way around that.
fn attribute(name: &[u8]) -> Vec<u8> {
    let mut key = b"SCHILY.xattr.".to_vec();
    for byte in name {
        match byte {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            byte => key.push(*byte),
        }
    }
    key
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut digits = 1;
    while (rest + digits).to_string().len() > digits {
        digits += 1;
    }
    out.extend_from_slice(format!("{} ", rest + digits).as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn block(
    name: &[u8],
    flag: u8,
    mode: u32,
    size: u64,
    mtime: u64,
    target: &[u8],
    (uid, gid): (u32, u32),
) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(NAME)]);
    put(100, format!("{:07o}\0", mode & 0o7777).as_bytes());
    put(108, format!("{:07o}\0", uid.min(MAX_ID)).as_bytes());
    put(116, format!("{:07o}\0", gid.min(MAX_ID)).as_bytes());
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{:011o}\0", mtime.min(MAX_OCTAL)).as_bytes());
    put(156, &[flag]);
    put(157, &target[..target.len().min(NAME)]);
    put(257, b"ustar\x0000");
    put(148, b"        ");
    let sum: u32 = out.iter().map(|byte| u32::from(*byte)).sum();
    out[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out
}
