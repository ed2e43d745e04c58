//! A tar that a guest made: entries within their bounds or an error, in pieces as whole; and no name that leads out.
#![no_main]

use agent::tar::{Entry, Item, Kind, MAX_NAME, MAX_PART, Reader, TarError, header, parts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&step, bytes)) = data.split_first() else { return };
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(whole, read(bytes, usize::from(step) + 1));
    for (entry, _) in &whole.0 {
        names(entry);
        // What was read can be written, and is read as the same.
        let mut again = Vec::new();
        header(entry, &mut again);
        assert_eq!(read(&again, 100).0.first().map(|(read, _)| read), Some(entry));
    }
});

fn read(bytes: &[u8], step: usize) -> (Vec<(Entry, u64)>, Option<TarError>) {
    let (mut reader, mut entries) = (Reader::default(), Vec::new());
    for mut piece in bytes.chunks(step) {
        loop {
            match reader.take(&mut piece) {
                Ok(Some(Item::Entry(entry))) => entries.push((entry, 0)),
                Ok(Some(Item::Data(at, data))) => {
                    let (entry, came) = entries.last_mut().expect("content of an entry");
                    let Kind::File(size) = entry.kind else { panic!("content of what is no file") };
                    assert!(at + data.len() as u64 <= size);
                    *came += data.len() as u64;
                }
                Ok(Some(Item::Done)) => {
                    let (entry, came) = entries.last().expect("an entry's end");
                    assert_eq!(*came, entry.stored());
                }
                Ok(None) => break,
                Err(error) => return (entries, Some(error)),
            }
        }
        assert!(piece.is_empty());
    }
    (entries, None)
}

fn names(entry: &Entry) {
    assert!(entry.name.len() <= MAX_NAME && entry.mode <= 0o7777);
    let Ok(parts) = parts(&entry.name) else { return };
    for part in parts {
        assert!(!part.is_empty() && part.len() <= MAX_PART && part != b"." && part != b"..");
        assert!(!part.contains(&b'/') && !part.contains(&0));
    }
}
