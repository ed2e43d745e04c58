//! The qcow2 format, version 3 (QEMU's docs/interop/qcow2.txt), as far as a layer over a raw disk needs it: what the root
//! helper makes an empty one of, and what is believed of one that a VMM has written to.
//!
//! A layer's own words about what lies below it, and about snapshots, count for nothing: nobody asks for them here.

/// Bytes of a cluster: QEMU's own default, by its power of two.
const CLUSTER_BITS: u32 = 16;
/// Bytes of a cluster.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of a table that fills a cluster; each has 8 bytes.
pub const ENTRIES: u64 = CLUSTER / 8;
/// What one entry of the first table stands for: a second table's clusters.
pub const BY_ENTRY: u64 = CLUSTER * ENTRIES;
/// The largest disk: its first table fills a cluster.
pub const MOST: u64 = BY_ENTRY * ENTRIES;
/// Disks have whole sectors.
pub const SECTOR: u64 = 512;
/// Bytes of the header that are looked at.
pub const HEADER: usize = 104;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: u32 = 3;

/// Where an empty layer's parts are, by clusters: the header first, one cluster each.
const REFERENCES: u64 = 1;
const REFERENCE_BLOCK: u64 = 2;
const TABLE: u64 = 3;
const CLUSTERS: u64 = 4;

/// Which bits of an entry are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is this table's alone. It says nothing about where it is.
const ONLY_HERE: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZEROS: u64 = 1;

/// How long an empty layer is; what [`empty`] doesn't name is zeros.
pub const EMPTY: u64 = CLUSTERS * CLUSTER;

/// The parts of an empty layer of a disk of `size` bytes, each with where it stands, in the order in which they are to be
/// written: without the header, the last one, the file is none.
pub fn empty(size: u64) -> [(u64, Vec<u8>); 3] {
    let references = (0..CLUSTERS).flat_map(|_| 1u16.to_be_bytes()).collect();
    [
        (REFERENCES * CLUSTER, (REFERENCE_BLOCK * CLUSTER).to_be_bytes().to_vec()),
        (REFERENCE_BLOCK * CLUSTER, references),
        (0, header(size)),
    ]
}

/// The header, without a name of anything below.
fn header(size: u64) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    let mut word = |word: u32| header.extend(word.to_be_bytes());
    let halves = |long: u64| [(long >> 32) as u32, long as u32];
    word(VERSION);
    // No backing file: its offset and its length.
    [0, 0, 0].into_iter().for_each(&mut word);
    word(CLUSTER_BITS);
    halves(size).into_iter().for_each(&mut word);
    // No encryption.
    word(0);
    word(u32::try_from(size.div_ceil(BY_ENTRY)).unwrap_or(u32::MAX));
    halves(TABLE * CLUSTER).into_iter().for_each(&mut word);
    halves(REFERENCES * CLUSTER).into_iter().for_each(&mut word);
    word(1);
    // No snapshots, no features of any kind.
    [0; 9].into_iter().for_each(&mut word);
    // References have 16 bits; the header's length; no extensions.
    [4, HEADER as u32, 0, 0].into_iter().for_each(&mut word);
    header
}

/// What is wrong with a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The header is not that of a layer of ours.
    Header,
    /// It needs what a layer of ours never has: compression, encryption, a file of its data, entries of another size.
    Feature,
    /// It is not as long as what lies below.
    Size,
    /// A table or a cluster is where none can be.
    Place,
    /// Two things are in one place.
    Overlap,
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Bad::Header => "its header is no layer's of ours",
            Bad::Feature => "it has clusters or features that no layer of ours has",
            Bad::Size => "it is of a disk of another size",
            Bad::Place => "it names a place that is not there",
            Bad::Overlap => "it names a place twice",
        })
    }
}

impl std::error::Error for Bad {}

/// Where the first table is, of a layer of a disk of `size` bytes.
///
/// # Errors
/// The header is not one that [`empty`] makes, as far as it counts for reading. VMMs move what counts references.
pub fn table(header: &[u8; HEADER], size: u64) -> Result<u64, Bad> {
    let word = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    let long = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    if header[..4] != MAGIC || word(4) != VERSION || word(20) != CLUSTER_BITS || word(100) < HEADER as u32 {
        return Err(Bad::Header);
    }
    // Encryption, and features that a reader has to know.
    if word(32) != 0 || long(72) != 0 {
        return Err(Bad::Feature);
    }
    if long(24) != size || u64::from(word(36)) != size.div_ceil(BY_ENTRY) {
        return Err(Bad::Size);
    }
    Ok(long(40))
}

/// What an entry of a second table says of its cluster of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// As it is below.
    Below,
    /// Zeros.
    Zeros,
    /// What is at that place of the layer.
    At(u64),
}

/// Reads an entry of the first table: where the second one is, `None` where there is none.
///
/// # Errors
/// It has bits that no entry has.
pub fn outer(entry: u64) -> Result<Option<u64>, Bad> {
    match entry & !ONLY_HERE {
        0 => Ok(None),
        at if at & !OFFSET == 0 => Ok(Some(at)),
        _ => Err(Bad::Place),
    }
}

/// Reads an entry of a second table.
///
/// # Errors
/// It is compressed, or has bits that no entry has.
pub fn inner(entry: u64) -> Result<Entry, Bad> {
    if entry & COMPRESSED != 0 {
        return Err(Bad::Feature);
    }
    match entry & !ONLY_HERE {
        0 => Ok(Entry::Below),
        // It may have a cluster, for what is written there later.
        zeros if zeros & !OFFSET == ZEROS => Ok(Entry::Zeros),
        at if at & !OFFSET == 0 => Ok(Entry::At(at)),
        _ => Err(Bad::Place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(size: u64) -> [u8; HEADER] {
        *header(size).first_chunk().unwrap()
    }

    #[test]
    fn a_header_has_its_length_and_is_read_back() {
        assert_eq!(header(1 << 30).len(), HEADER + 8);
        assert_eq!(header(1 << 30)[36..40], 2u32.to_be_bytes(), "two entries for a GiB");
        for size in [0, SECTOR, 1 << 30, (1 << 30) + SECTOR, MOST] {
            assert_eq!(table(&made(size), size), Ok(TABLE * CLUSTER));
        }
    }

    #[test]
    fn a_header_that_says_something_else_is_refused() {
        let with = |at: usize, byte: u8| {
            let mut header = made(1 << 30);
            header[at] ^= byte;
            table(&header, 1 << 30)
        };
        for at in [0, 3, 7, 23, 103] {
            assert_eq!(with(at, 0x7f), Err(Bad::Header), "{at}");
        }
        for at in [32, 35, 72, 79] {
            assert_eq!(with(at, 1), Err(Bad::Feature), "{at}");
        }
        for at in [24, 31, 36, 39] {
            assert_eq!(with(at, 1), Err(Bad::Size), "{at}");
        }
        // What lies below, snapshots, references, features that a reader needs not know.
        for at in [8, 15, 19, 48, 56, 60, 64, 80, 88, 96] {
            assert_eq!(with(at, 1), Ok(TABLE * CLUSTER), "{at}");
        }
    }

    #[test]
    fn entries_are_what_the_format_says() {
        assert_eq!(outer(0), Ok(None));
        assert_eq!(outer(ONLY_HERE | CLUSTER), Ok(Some(CLUSTER)));
        assert_eq!(inner(ONLY_HERE), Ok(Entry::Below));
        assert_eq!(inner(CLUSTER), Ok(Entry::At(CLUSTER)));
        assert_eq!((inner(1), inner(ONLY_HERE | CLUSTER | 1)), (Ok(Entry::Zeros), Ok(Entry::Zeros)));
        assert_eq!(inner(COMPRESSED | CLUSTER), Err(Bad::Feature));
        for bit in (1..9).chain(56..62) {
            assert_eq!(outer(CLUSTER | 1 << bit), Err(Bad::Place), "{bit}");
            assert_eq!(inner(CLUSTER | 1 << bit), Err(Bad::Place), "{bit}");
        }
        assert_eq!(outer(CLUSTER | 1), Err(Bad::Place));
    }
}
