//! The console's output into a file or FIFO of the client's, with its limit. What is beyond the limit, or what the file
//! does not take, is dropped: a guest that prints without an end holds up nobody.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use wire::firecracker::{Serial, TokenBucket};

/// The client's wish, and the file that it names.
#[derive(Debug)]
pub(crate) struct Console {
    pub(crate) file: File,
    pub(crate) limit: Option<TokenBucket>,
}

impl Console {
    /// Opens what is named; `None` where nothing is, which means standard output.
    ///
    /// # Errors
    /// What opening says.
    pub(crate) fn open(config: &Serial) -> io::Result<Option<Self>> {
        let Some(path) = &config.serial_out_path else { return Ok(None) };
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        // Reading too, so that a FIFO opens without a reader.
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
            .open(path.as_str())?;
        Ok(Some(Self { file, limit: config.rate_limiter.filter(TokenBucket::limits) }))
    }

    /// Starts to copy what comes from `guest`, until its other end is gone.
    ///
    /// # Errors
    /// No second descriptor, or no thread.
    pub(crate) fn follow(&self, mut guest: UnixStream) -> io::Result<()> {
        let mut file = self.file.try_clone()?;
        let mut bucket = self.limit.map(|limit| Bucket::new(limit, Instant::now()));
        let copy = move || {
            let mut piece = [0; 16 * 1024];
            while let Ok(got @ 1..) = guest.read(&mut piece) {
                let left = bucket.as_mut().map_or(got, |bucket| bucket.take(got, Instant::now()));
                // A full disk or FIFO drops it.
                let _ = file.write_all(&piece[..left]);
            }
        };
        std::thread::Builder::new().name("console".into()).spawn(copy).map(drop)
    }
}

/// Firecracker's bucket: it starts full, with the burst on top, and fills again at `size` in each `refill_time`.
#[derive(Debug)]
struct Bucket {
    limit: TokenBucket,
    burst: u64,
    held: u64,
    filled_at: Instant,
}

impl Bucket {
    fn new(limit: TokenBucket, now: Instant) -> Self {
        Self { limit, burst: limit.one_time_burst.unwrap_or(0), held: limit.size, filled_at: now }
    }

    /// Takes up to `wanted` tokens; tells how many there were.
    fn take(&mut self, wanted: usize, now: Instant) -> usize {
        let waited = now.saturating_duration_since(self.filled_at);
        let (size, span) = (u128::from(self.limit.size), u128::from(self.limit.refill_time) * 1_000_000);
        let more = u64::try_from(waited.as_nanos() * size / span).unwrap_or(u64::MAX);
        if more > 0 {
            self.held = self.held.saturating_add(more).min(self.limit.size);
            // The rest of a token is kept for the next time.
            let used = u64::try_from(u128::from(more) * span / size).unwrap_or(u64::MAX);
            self.filled_at = self.filled_at.checked_add(Duration::from_nanos(used)).unwrap_or(now).min(now);
        }
        let wanted = wanted as u64;
        let burst = wanted.min(self.burst);
        let held = (wanted - burst).min(self.held);
        self.burst -= burst;
        self.held -= held;
        usize::try_from(burst + held).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_once_and_then_what_it_is_refilled_with() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut bucket = Bucket::new(TokenBucket { size: 100, one_time_burst: Some(50), refill_time: 1000 }, begin);
        assert_eq!([bucket.take(1000, at(0)), bucket.take(1000, at(0))], [150, 0]);
        assert_eq!([bucket.take(1000, at(505)), bucket.take(1000, at(509))], [50, 0]);
        assert_eq!(bucket.take(1000, at(510)), 1, "the halves of before are kept");
        assert_eq!(bucket.take(1000, at(100_000)), 100);
    }

    #[test]
    fn a_guest_that_prints_without_an_end_fills_no_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("console");
        let config =
            serde_json::json!({"serial_out_path": path, "rate_limiter": {"size": 5000, "refill_time": 3_600_000}});
        let console = Console::open(&serde_json::from_value(config).expect("a body")).expect("opened").expect("a file");
        let (mut guest, ours) = UnixStream::pair().expect("a pair");
        console.follow(ours).expect("followed");
        for _ in 0..1000 {
            guest.write_all(&[b'x'; 1000]).expect("nobody is held up");
        }
        let end = Instant::now() + Duration::from_secs(10);
        while std::fs::metadata(&path).expect("a file").len() < 5000 {
            assert!(Instant::now() < end);
        }
        assert!(std::fs::metadata(&path).expect("a file").len() < 5010);
    }
}
