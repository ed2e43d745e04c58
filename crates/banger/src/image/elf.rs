//! The little of ELF64 that is read here: numbers, a kernel's segments, a module's sections. Nothing outside the file is
//! ever reached: what points there is `None`.

/// `PT_LOAD`: bytes of the program itself.
pub(super) const PT_LOAD: u32 = 1;
/// `PT_NOTE`: notes about it.
pub(super) const PT_NOTE: u32 = 4;

/// Whether the file is little-endian ELF64 for x86-64.
pub(super) fn is_x86_64(elf: &[u8]) -> bool {
    elf.get(..6) == Some(b"\x7fELF\x02\x01") && le16(elf, 18) == Some(62)
}

/// The types and bytes of all segments; `None` where one lies outside the file.
pub(super) fn segments(elf: &[u8]) -> Option<Vec<(u32, &[u8])>> {
    table(elf, le64(elf, 32)?, le16(elf, 54)?, le16(elf, 56)?)
        .map(|at| {
            let at = at?;
            Some((le32(elf, at)?, range(elf, le64(elf, at + 8)?, le64(elf, at + 32)?)?))
        })
        .collect()
}

/// The bytes of the section that has this name.
pub(super) fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let headers: Vec<usize> = table(elf, le64(elf, 40)?, le16(elf, 58)?, le16(elf, 60)?).collect::<Option<_>>()?;
    let bytes = |at: usize| range(elf, le64(elf, at + 24)?, le64(elf, at + 32)?);
    let names = bytes(*headers.get(usize::from(le16(elf, 62)?))?)?;
    let found = headers.iter().find(|at| {
        let start = le32(elf, **at).and_then(|n| names.get(n as usize..));
        start.is_some_and(|s| s.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0)))
    })?;
    bytes(*found)
}

/// Where each of a table's entries begins in the file.
fn table(elf: &[u8], start: u64, size: u16, count: u16) -> impl Iterator<Item = Option<usize>> + '_ {
    (0..u64::from(count)).map(move |n| {
        let at = start.checked_add(n * u64::from(size))?;
        usize::try_from(at).ok().filter(|at| *at < elf.len())
    })
}

fn range(elf: &[u8], from: u64, length: u64) -> Option<&[u8]> {
    let from = usize::try_from(from).ok()?;
    elf.get(from..from.checked_add(usize::try_from(length).ok()?)?)
}

/// A little-endian number at `at`.
pub(super) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

/// A little-endian number at `at`.
pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

/// A little-endian number at `at`.
pub(super) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}
