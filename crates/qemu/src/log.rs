//! The log: a line for each thing worth knowing, to standard error until a file or FIFO is named.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wire::firecracker::{LogLevel, Logger};
use wire::time::Utc;

/// Where lines go and which.
#[derive(Debug)]
pub(crate) struct Log {
    id: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    file: Option<File>,
    level: LogLevel,
    show_level: bool,
}

impl Log {
    pub(crate) fn new(id: &str) -> Self {
        Self { id: id.to_owned(), inner: Mutex::default() }
    }

    /// Changes what is named; the level becomes `Info` where none is, as in Firecracker.
    ///
    /// # Errors
    /// The file can't be opened; then nothing is changed.
    pub(crate) fn update(&self, config: &Logger) -> io::Result<()> {
        let file = config.log_path.as_ref().map(|path| open_append(path.as_str().as_ref())).transpose()?;
        let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.level = config.level.unwrap_or_default();
        inner.show_level = config.show_level.unwrap_or(inner.show_level);
        inner.file = file.or(inner.file.take());
        Ok(())
    }

    pub(crate) fn error(&self, message: &str) {
        self.line(LogLevel::Error, message);
    }

    pub(crate) fn warn(&self, message: &str) {
        self.line(LogLevel::Warn, message);
    }

    pub(crate) fn info(&self, message: &str) {
        self.line(LogLevel::Info, message);
    }

    /// Writes one line; what would break it or a terminal is escaped. A line that can't be written is lost.
    fn line(&self, level: LogLevel, message: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if level > inner.level || level == LogLevel::Off {
            return;
        }
        let shown = if inner.show_level { format!(":{level:?}").to_uppercase() } else { String::new() };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = format!("{} [{}:banger-qemu{shown}] {}\n", timestamp(now), self.id, escaped(message));
        // The result can't be told anywhere else.
        let _ = match &mut inner.file {
            Some(file) => file.write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }
}

/// Opens a file or FIFO to append to, made where it is missing, without ever waiting for a FIFO's reader.
pub(crate) fn open_append(path: &Path) -> io::Result<File> {
    let nonblock = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(nonblock.bits()).unwrap_or(0);
    // Reading is asked for so that a FIFO opens without a reader, and a reader may come and go.
    File::options().read(true).append(true).create(true).custom_flags(flags).open(path)
}

fn escaped(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// UTC, as `2026-01-31T23:59:59.123456789`.
fn timestamp(since_epoch: Duration) -> String {
    format!("{}.{:09}", Utc::since_epoch(since_epoch), since_epoch.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::firecracker::HostPath;

    #[test]
    fn times_are_those_of_date() {
        // `date -u -d @N +%FT%T`
        assert_eq!(timestamp(Duration::from_secs(0)), "1970-01-01T00:00:00.000000000");
        assert_eq!(timestamp(Duration::from_secs(951_782_399)), "2000-02-28T23:59:59.000000000");
        assert_eq!(timestamp(Duration::new(4_107_542_400, 7)), "2100-03-01T00:00:00.000000007");
    }

    #[test]
    fn lines_go_to_the_file_by_level_and_stay_one_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let log = Log::new("vm-1");
        let config = Logger {
            log_path: Some(HostPath::new(path.to_str().expect("text")).expect("a path")),
            level: Some(LogLevel::Warn),
            show_level: Some(true),
            ..Logger::default()
        };
        log.update(&config).expect("opened");
        log.info("not this");
        log.warn("two\nlines\u{1b}[2J");
        let text = std::fs::read_to_string(&path).expect("read");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.ends_with("[vm-1:banger-qemu:WARN] two\\nlines\\u{1b}[2J\n"), "{text}");
    }

    #[test]
    fn a_fifo_without_a_reader_opens_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
        open_append(&path).expect("opened");
    }
}
