//! A console line by line: with times, from a time on, of one source, as JSON.

use super::{ASK, LOOK, Logs, Source, runs};
use crate::api::Request;
use crate::api::vm::{LogTimes, Vm};
use crate::cli::problem::Problem;
use crate::cli::{documents, output, text};
use crate::time::{of_unix_ms, unix_now_ms};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};

/// A line without an end is cut in pieces of so many bytes.
const LONGEST: usize = 1 << 20;

/// What a console holds, read on from where its file stands.
struct Lines<'a> {
    logs: &'a Logs,
    /// What is in each line that the VMM wrote, and in none of the guest's, but where that imitates it.
    of_vmm: String,
    times: Times,
    /// Where what is held begins in the file.
    at: u64,
    held: Vec<u8>,
    /// The last lines, as long as only these are wanted.
    last: Option<VecDeque<(u64, Vec<u8>)>>,
}

/// When a console had grown to which length.
struct Times {
    records: Vec<(u64, u64)>,
    /// How long it was when it was first looked at: what is behind comes now.
    length: u64,
}

impl Times {
    /// When the byte came, in milliseconds since 1970; `None` where nobody knows.
    fn of(&self, at: u64) -> Option<u64> {
        let next = self.records.partition_point(|(length, _)| *length <= at);
        match self.records.get(next) {
            Some((_, time)) => Some(*time),
            None => (at >= self.length || !self.records.is_empty()).then(unix_now_ms),
        }
    }
}

/// Shows them; `begin` is where the file stands.
pub(super) fn show(logs: &Logs, mut file: File, begin: u64) -> Result<(), Problem> {
    let failed = |error: io::Error| Problem::new("console", "the console can't be read or shown").why(error);
    let vm: Vm = logs.asked.reach.ask(Request::VmShow { name: logs.name.clone() })?;
    let length = file.metadata().map_err(failed)?.len();
    let LogTimes { times: records } = match logs.needs_times() {
        true => logs.asked.reach.ask(Request::VmLogTimes { name: logs.name.clone() })?,
        false => LogTimes::default(),
    };
    if logs.needs_times() && records.is_empty() && length > 0 {
        output::warning(&format!("when {}'s console was written is not known", vm.name));
    }
    let last = logs.tail.map(|_| VecDeque::new());
    let of_vmm = format!("[{}:", vm.id);
    let mut lines = Lines { logs, of_vmm, times: Times { records, length }, at: begin, held: Vec::new(), last };
    let mut quiet = 0;
    let shown = loop {
        match lines.read(&mut file) {
            Err(error) => break Err(error),
            Ok(0) if !logs.follow => break lines.end(),
            Ok(0) => {
                if let Err(error) = lines.caught_up() {
                    break Err(error);
                }
                quiet += 1;
                if quiet % ASK == 0 && !runs(logs)? {
                    break lines.read(&mut file).and_then(|_| lines.end());
                }
                if output::nobody_reads_within(LOOK) {
                    return Ok(());
                }
            }
            Ok(_) => quiet = 0,
        }
    };
    match shown {
        // Whoever read has had enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error)),
        _ => Ok(()),
    }
}

impl Lines<'_> {
    /// Reads what there is, and takes whole lines of it.
    fn read(&mut self, file: &mut File) -> io::Result<usize> {
        let read = file.take(LONGEST as u64).read_to_end(&mut self.held)?;
        while let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.held.drain(..=end).collect();
            self.take(line)?;
        }
        if self.held.len() >= LONGEST {
            let piece = std::mem::take(&mut self.held);
            self.take(piece)?;
        }
        Ok(read)
    }

    /// No more comes.
    fn end(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.held);
        if !rest.is_empty() {
            self.take(rest)?;
        }
        self.caught_up()
    }

    /// All that was there has been read: the last of it is shown, and whatever comes from here on.
    fn caught_up(&mut self) -> io::Result<()> {
        for (at, line) in self.last.take().into_iter().flatten() {
            self.print(at, &line)?;
        }
        Ok(())
    }

    fn take(&mut self, line: Vec<u8>) -> io::Result<()> {
        let at = self.at;
        self.at += line.len() as u64;
        if !self.is_wanted(at, &line) {
            return Ok(());
        }
        let Some(last) = &mut self.last else { return self.print(at, &line) };
        last.push_back((at, line));
        if last.len() > self.logs.tail.unwrap_or(usize::MAX) {
            last.pop_front();
        }
        Ok(())
    }

    fn is_wanted(&self, at: u64, line: &[u8]) -> bool {
        let source = match self.logs.source {
            Source::All => true,
            wanted => wanted == self.source(line),
        };
        let since = |since: u64| self.times.of(at).is_some_and(|time| time >= since);
        source && self.logs.since.is_none_or(since)
    }

    fn source(&self, line: &[u8]) -> Source {
        let mark = self.of_vmm.as_bytes();
        if line.windows(mark.len()).any(|part| part == mark) { Source::Vmm } else { Source::Console }
    }

    fn print(&self, at: u64, line: &[u8]) -> io::Result<()> {
        let time = || self.times.of(at).map(of_unix_ms);
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        let bare = bare.strip_suffix(b"\r").unwrap_or(bare);
        let mut out = io::stdout().lock();
        if self.logs.asked.json {
            let source = self.source(line).name();
            let (data, data_b64) = match std::str::from_utf8(bare) {
                Ok(data) => (Some(data), None),
                Err(_) => (None, Some(STANDARD.encode(bare))),
            };
            let document = output::of_command(&documents::LogLine { t: time(), source, data, data_b64 });
            out.write_all(document.map_err(|problem| io::Error::other(problem.to_string()))?.as_bytes())?;
            return out.flush();
        }
        if self.logs.timestamps {
            // As wide as a time.
            write!(out, "{:<24} ", time().unwrap_or_else(|| "-".into()))?;
        }
        match output::on_terminal() {
            true => writeln!(out, "{}", text::line(&String::from_utf8_lossy(bare)))?,
            false if line.ends_with(b"\n") => out.write_all(line)?,
            false => out.write_all(&[line, b"\n"].concat())?,
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_came_with_the_first_look_that_saw_it() {
        let times = Times { records: vec![(10, 1000), (20, 2000)], length: 25 };
        assert_eq!([0, 9, 10, 19].map(|at| times.of(at)), [1000, 1000, 2000, 2000].map(Some));
        assert!(times.of(20).unwrap() > 1_700_000_000_000, "nobody has noted it yet: now");
        let none = Times { records: Vec::new(), length: 25 };
        assert_eq!(none.of(3), None);
        assert!(none.of(25).is_some(), "what comes while we look");
    }
}
