//! What the guest writes to its console, read from the VMM's log while it is written.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::programs::indented;

/// A console's file, read from a place on.
pub(crate) struct Console {
    path: PathBuf,
    from: u64,
}

impl Console {
    /// What is written to the file from now on.
    pub(crate) fn from_now(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let from = path.metadata().map_or(0, |m| m.len());
        Self { path, from }
    }

    /// All that was written until now.
    pub(crate) fn text(&self) -> String {
        let read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// The stages that the agent has told, in seconds since the guest's kernel began: `banger-agent: 1.482901 root`.
    pub(crate) fn stages(&self) -> Vec<(String, f64)> {
        let stage = |line: &str| {
            let (seconds, name) = line.strip_prefix("banger-agent: ")?.split_once(' ')?;
            Some((name.to_owned(), seconds.parse().ok()?))
        };
        self.text().lines().filter_map(|line| stage(line.trim_end())).collect()
    }

    /// Waits for a word and gives the moment when it was there. `runs` says whether waiting makes sense.
    pub(crate) fn wait_for(&self, word: &str, limit: Duration, runs: impl Fn() -> Result<bool>) -> Result<Instant> {
        let start = Instant::now();
        let mut asked = start;
        loop {
            if self.text().contains(word) {
                return Ok(Instant::now());
            }
            let why = if start.elapsed() > limit {
                format!("did not come to its first word in {} s", limit.as_secs())
            } else if asked.elapsed() > Duration::from_millis(200) && !runs().context("is the VM there?")? {
                "ended before its first word".into()
            } else {
                if asked.elapsed() > Duration::from_millis(200) {
                    asked = Instant::now();
                }
                sleep(Duration::from_millis(1));
                continue;
            };
            bail!("the guest {why}; its console's last lines:\n{}", indented(&self.text(), 24));
        }
    }
}
